// One job, followed by its own stream of events.

import { useEffect, useState } from "../vendor/hooks.js";
import { events, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, fixed, Refusal, Table, when } from "../js/parts.js";
import { linkTo } from "../js/state.js";

export const ENDED = new Set(["published", "failed", "cancelled"]);

export function Progress({ job }) {
  const { modules_done: done, modules_total: all } = job.progress ?? {};
  if (ENDED.has(job.state) || !all) return html`<span>${job.state}</span>`;
  return html`<label>${job.state} <progress value=${done} max=${all}></progress></label>`;
}

/** What came of it; an error ends with what to do next. */
export function Result({ job }) {
  if (job.error) return html`<span class="refusal">${job.error.message} <code>${job.error.code}</code></span>`;
  if (!job.version) return null;
  return html`<a href=${linkTo("adapters", job.name)}>${job.version}</a>`;
}

/** The job as its stream tells it, and when it came to each state here. @param {string} path */
function useFollowed(path) {
  const [job, setJob] = useState(/** @type {any} */ (null));
  const [states, setStates] = useState(/** @type {{state: string, at: string}[]} */ ([]));
  const [error, setError] = useState(null);
  const [round, setRound] = useState(0);
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    async function follow() {
      let last = /** @type {any} */ (null);
      for await (const { kind, data } of events(`${path}/events`, abort.signal)) {
        setError(null);
        if (kind === "progress") setJob((known) => known && { ...known, progress: data });
        if (kind !== "state") continue;
        last = data;
        setJob(data);
        setStates((known) => (known[known.length - 1]?.state === data.state ? known : [...known, { state: data.state, at: data.updated_at }]));
      }
      return last;
    }
    follow().then(
      // A stream that ends while the job goes on was cut: it is followed anew.
      (last) => abort.signal.aborted || ENDED.has(last?.state) || (timer = setTimeout(() => setRound(round + 1), 1000)),
      (problem) => abort.signal.aborted || setError(problem),
    );
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [path, round]);
  return { job, states, error };
}

/** What a fit goes by and came to. */
export function Fitted({ fit }) {
  const found = fit.method === "iteris"
    ? (fit.tokens === null ? "nothing is read yet" : `${fit.tokens} tokens were read`)
    : Object.entries(fit.weights).map(([input, weight]) => `${weight} of ${input}`).join(", ") || "weights are searched";
  return html`<p>Fitted by ${fit.method}, by ${fit.by === "kept" ? "the inputs' own answers" : "answers that are given"}: ${found}${fit.unread ? `; ${fit.unread} modules are summed as they are` : ""}.
    ${fit.sweep && html` <a href=${linkTo("evaluations", fit.sweep)}>the search</a>`}</p>`;
}

/** A job on the page of what began it. @param {{id: string}} given */
export function FollowedJob({ id }) {
  const { job, error } = useFollowed(`/admin/v1/jobs/${inPath(id)}`);
  return html`<${Refusal} error=${error} />${job && html`<div role="status"><p><a href=${linkTo("jobs", id)}>${job.kind} of ${job.name}</a> <${Progress} job=${job} /> <${Result} job=${job} /></p></div>`}`;
}

export default function Job({ id }) {
  const path = `/admin/v1/jobs/${inPath(id)}`;
  const { job, states, error } = useFollowed(path);
  if (!job) return html`<h1>Job</h1><${Refusal} error=${error} />`;
  const steps = Object.entries(job.timings_s);
  return html`<p><a href=${linkTo("jobs")}>All jobs</a></p><h1>${job.kind} of ${job.name}</h1><${Refusal} error=${error} />
    <div role="status"><p><${Progress} job=${job} /> <${Result} job=${job} /></p></div>
    <p class="row">${!ENDED.has(job.state) && html`<${Action} label="cancel" does=${() => send("POST", `${path}:cancel`)} />`} <${CopyCurl} path=${`${path}/events`} /></p>
    ${job.fit && html`<${Fitted} fit=${job.fit} />`}
    <h2>Events</h2><${Table} caption="Events" head=${["state", "when"]} rows=${states.map((one) => [one.state, when(one.at)])} />
    <h2>Seconds by step</h2><${Table} caption="Steps" head=${["step", "seconds"]} rows=${steps.map(([step, seconds]) => [step, fixed(Number(seconds), 3)])} empty="Told once it has ended." />
    <details><summary>Recipe</summary><pre tabindex="0">${JSON.stringify(job.recipe, null, 1)}</pre></details>`;
}
