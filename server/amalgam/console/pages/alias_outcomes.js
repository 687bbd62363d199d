// What the targets of an alias did: requests, those that were not answered, and how long they took, with how certain that is.

import { ask, get } from "../js/api.js";
import { html } from "../js/html.js";
import { CopyCurl, fixed, Refusal, Table, useLoaded } from "../js/parts.js";
import { samples } from "../js/prometheus.js";
import { allowed } from "../js/state.js";
import { medianBetween, shareBetween } from "../js/statistics.js";
import { between } from "../js/verdict.js";

const EVERY_MS = 5000;
const SECONDS = "amalgam_alias_request_duration_seconds";

/** How many were not answered, and between which shares the true one lies. @param {number} wrong @param {number} count */
function errors(wrong, count) {
  if (!count) return "–";
  const [low, high] = shareBetween(wrong, count).map((share) => (100 * share).toFixed(1));
  return `${wrong} (${low} to ${high} %)`;
}

/** @param {Map<number, number>} buckets */
function median(buckets) {
  const found = medianBetween([...buckets].sort(([one], [other]) => one - other));
  if (!found) return "–";
  const [low, high] = found.map((seconds) => (seconds === Infinity ? "more" : `${Math.round(seconds * 1000)}`));
  return `${low} to ${high} ms`;
}

/** Requests, errors and times of an alias, by the version that was drawn. */
function outcomes(page, name) {
  const rows = new Map();
  const row = (adapter) => rows.get(adapter) ?? rows.set(adapter, { count: 0, wrong: 0, sum: 0, timed: 0, buckets: new Map() }).get(adapter);
  const of = (metric) => (page.get(metric) ?? []).filter(({ labels }) => labels.alias === name);
  for (const { labels, value } of of("amalgam_alias_requests_total")) {
    row(labels.adapter).count += value;
    if (!labels.code.startsWith("2")) row(labels.adapter).wrong += value;
  }
  for (const { labels, value } of of(`${SECONDS}_sum`)) row(labels.adapter).sum += value;
  for (const { labels, value } of of(`${SECONDS}_count`)) row(labels.adapter).timed += value;
  for (const { labels, value } of of(`${SECONDS}_bucket`)) row(labels.adapter).buckets.set(labels.le === "+Inf" ? Infinity : Number(labels.le), value);
  return [...rows].map(([adapter, one]) => [adapter, one.count, errors(one.wrong, one.count),
    one.timed ? `${Math.round((one.sum / one.timed) * 1000)} ms` : "–", median(one.buckets)]);
}

/** What clients said, by target, version and name. @param {{path: string}} given */
function Feedback({ path }) {
  const found = useLoaded((signal) => get(`${path}/outcomes`, signal), [path], EVERY_MS);
  return html`<h2>What clients say</h2><${Refusal} error=${found.error} />
    ${found.value && html`<${Table} caption="Feedback" head=${["target", "version", "name", "count", "mean", "the mean lies between"]} empty="No feedback about its answers yet."
      rows=${found.value.data.map((one) => [one.target, one.version, one.name, one.count, fixed(one.mean, 3), between(one.interval)])} />`}
    <p><${CopyCurl} path=${`${path}/outcomes`} /></p>`;
}

/** The metrics name every adapter, and are the administrator's. @param {{name: string}} given */
function Requests({ name }) {
  const metrics = useLoaded(async (signal) => samples(await (await ask("GET", "/metrics", { signal })).text()), [name], EVERY_MS);
  return html`<h2>What its targets did</h2><p><small>Since the server began, with 95 % certainty.</small></p><${Refusal} error=${metrics.error} />
    ${metrics.value && html`<${Table} caption="Outcomes" head=${["version", "requests", "not answered, and its share", "mean time", "median time"]}
      rows=${outcomes(metrics.value, name)} empty="No request named it since the server began." />`}`;
}

/** @param {{name: string, path: string}} given */
export default function Outcomes({ name, path }) {
  return html`<${Feedback} path=${path} />${allowed.value?.administers && html`<${Requests} name=${name} />`}`;
}
