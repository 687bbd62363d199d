// How the server is: the engine, what is in its memory, how fast it answers, and what it was last asked to build.

import { useRef } from "../vendor/hooks.js";
import { ask, get } from "../js/api.js";
import { html } from "../js/html.js";
import { CopyCurl, fixed, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { meanBetween, rate, samples, total } from "../js/prometheus.js";
import { allowed, linkTo } from "../js/state.js";
import { brief } from "../js/verdict.js";

const EVERY_MS = 2000;
const LONG_WAIT_S = 10;
const STALE_S = 5;
const VERDICTS_MS = 15000;
const RECENT_MS = 24 * 3600 * 1000;

const Figure = ({ name, value, unit = "" }) =>
  html`<div class="figure"><dt>${name}</dt><dd>${value}${unit && html` <small>${unit}</small>`}</dd></div>`;

/** The metrics of now and of before, so that rates can be told. They name every adapter, and are the administrator's. */
function useMetrics() {
  const before = useRef(null);
  return useLoaded(async (signal) => {
    if (!allowed.value?.administers) return null;
    const page = samples(await (await ask("GET", "/metrics", { signal })).text());
    const now = { at: performance.now(), page };
    const pair = { before: before.current ?? now, now };
    before.current = now;
    return pair;
  }, [], EVERY_MS);
}

/** What an operator should look at, in words. */
function alerts(engine, pair, experiments) {
  const taken = experiments.filter((one) => one.removed.length && Date.now() - Date.parse(one.ended_at) < RECENT_MS);
  const found = taken.map((one) => `The experiment of the alias ${one.alias} ended: ${brief(one)}.`);
  const page = pair?.now.page;
  const longest = engine.queue[0];
  if (longest?.longest_wait_s > LONG_WAIT_S) found.push(`Requests for ${longest.model} have waited ${Math.round(longest.longest_wait_s)} s for a place; ${longest.waiting} wait.`);
  if (page && total(page, "amalgam_requests_refused_total") > total(pair.before.page, "amalgam_requests_refused_total")) found.push("Requests are being refused, for load or for limits.");
  if (page && total(page, "amalgam_registry_staleness_seconds") > STALE_S) found.push("The registry was not read for a while: what others change is not seen here.");
  if (page && page.has("amalgam_blender_up") && total(page, "amalgam_blender_up") === 0) found.push("The blend process does not run; new blends wait until it does.");
  if (engine.state !== "ready") found.push(`The engine is ${engine.state}; requests wait or are refused.`);
  if (!engine.worker_alive) found.push("The merge process does not run; merges wait until it does.");
  if (engine.restarts) found.push(`The engine was restarted ${engine.restarts} times since this server began.`);
  if (page && total(page, "amalgam_registry_up") === 0) found.push("The registry's database does not answer.");
  if (page && total(page, "amalgam_artifacts_damaged_total")) found.push("Stored adapters were found damaged; see `amalgam adapters verify`.");
  for (const { labels, value } of page?.get("amalgam_loop_up") ?? [])
    if (value === 0) found.push(`The background loop ${labels.loop} is down.`);
  return found;
}

function Speeds({ pair }) {
  const { before, now } = pair;
  const milliseconds = (name) => {
    const mean = meanBetween(before, now, name);
    return mean === null ? "–" : Math.round(mean * 1000);
  };
  return html`<dl class="figures">
    <${Figure} name="requests" value=${fixed(rate(before, now, "amalgam_requests_total"), 1)} unit="1/s" />
    <${Figure} name="first token" value=${milliseconds("amalgam_time_to_first_token_seconds")} unit="ms" />
    <${Figure} name="generated" value=${fixed(rate(before, now, "amalgam_completion_tokens_total"), 0)} unit="tokens/s" />
    <${Figure} name="in progress" value=${total(now.page, "amalgam_requests_admitted")} />
    <${Figure} name="waiting for a turn" value=${total(now.page, "amalgam_adapter_turn_waiting_requests")} />
    <${Figure} name="refused for load" value=${total(now.page, "amalgam_requests_refused_total")} />
  </dl>`;
}

export default function Overview() {
  const engine = useLoaded((signal) => get("/admin/v1/engine", signal), [], EVERY_MS);
  const jobs = useLoaded((signal) => get("/admin/v1/jobs?limit=5", signal), [], EVERY_MS);
  const experiments = useLoaded((signal) => get("/admin/v1/experiments?limit=500", signal), [], VERDICTS_MS);
  const metrics = useMetrics();
  const shown = engine.value;
  if (!shown) return html`<h1>Overview</h1><${Refusal} error=${engine.error} />`;
  const troubles = alerts(shown, metrics.value, experiments.value?.data ?? []);
  return html`<h1>Overview</h1>
    <${Refusal} error=${engine.error ?? metrics.error} />
    ${troubles.map((text) => html`<p class="refusal" role="alert" key=${text}>${text}</p>`)}
    <dl class="figures">
      <${Figure} name="engine" value=${shown.state} />
      <${Figure} name="base model" value=${shown.served_name} />
      <${Figure} name="adapters in memory" value=${`${shown.residents.length} of ${shown.capacity}`} />
      <${Figure} name="different ones in a batch" value=${shown.slots} />
      <${Figure} name="largest rank" value=${shown.max_rank} />
    </dl>
    ${metrics.value && html`<h2>Now</h2><${Speeds} pair=${metrics.value} />`}
    <h2>Queue by adapter</h2>
    <${Table} caption="Queue" head=${["version", "running", "waiting", "longest wait"]} empty="Nothing runs and nothing waits."
      rows=${shown.queue.map((line) => [line.model, line.running, line.waiting, line.waiting ? `${fixed(line.longest_wait_s, 1)} s` : ""])} />
    <h2>In the engine's memory</h2>
    <${Table} caption="Residents" head=${["version", "requests now", "pinned", "load, ms"]}
      rows=${shown.residents.map((one) => [one.model, one.held, one.pinned ? "pinned" : "", Math.round(one.load_s * 1000)])}
      empty="No adapter was asked for yet." />
    <h2>Last jobs</h2>
    <${Table} caption="Last jobs" head=${["job", "makes", "state", "when"]}
      rows=${(jobs.value?.data ?? []).map((job) => [html`<a href=${linkTo("jobs", job.id)}>${job.kind}</a>`, job.name, job.state, when(job.updated_at)])} />
    <p><${CopyCurl} path="/admin/v1/engine" /></p>`;
}
