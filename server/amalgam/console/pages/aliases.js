// Names whose meaning moves: shares by slider, history, and the way back.

import { useState } from "../vendor/hooks.js";
import { ask, get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Field, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { samples } from "../js/prometheus.js";
import { linkTo, notify } from "../js/state.js";

const meaning = (targets) => targets.map((target) => (targets.length > 1 ? `${Math.round((target.share ?? 0) * 100)} % ${target.model}` : target.model)).join(", ");

function Targets({ targets, change }) {
  const total = targets.reduce((sum, target) => sum + target.weight, 0) || 1;
  const set = (at, part) => change(targets.with(at, { ...targets[at], ...part }));
  return html`<ul>${targets.map((target, at) => html`<li class="slider" key=${at}>
      <input class="name" aria-label="target" value=${target.model} onInput=${(event) => set(at, { model: event.target.value })} />
      <input type="range" min="1" max="100" aria-label=${`weight of ${target.model}`} value=${target.weight} onInput=${(event) => set(at, { weight: Number(event.target.value) })} />
      <span class="number">${Math.round((target.weight / total) * 100)} %</span>
      ${targets.length > 1 && html`<button type="button" class="quiet" aria-label=${`leave out ${target.model}`} onClick=${() => change(targets.toSpliced(at, 1))}>×</button>`}</li>`)}</ul>
    <button type="button" class="quiet" onClick=${() => change([...targets, { model: "", weight: 10 }])}>add a target</button>`;
}

/** Between which shares the true one lies with 95 % certainty, by Wilson; in percent. @param {number} wrong @param {number} count */
function interval(wrong, count) {
  const z = 1.96;
  const middle = wrong / count + z ** 2 / (2 * count);
  const half = z * Math.sqrt(((wrong / count) * (1 - wrong / count)) / count + z ** 2 / (4 * count ** 2));
  const [low, high] = [middle - half, middle + half].map((share) => Math.max(0, (100 * share) / (1 + z ** 2 / count)).toFixed(1));
  return `${wrong} (${low} to ${high} %)`;
}

/** Requests, errors and latency of an alias, by the version that was drawn. */
function outcomes(page, name) {
  const rows = new Map();
  const row = (adapter) => rows.get(adapter) ?? rows.set(adapter, { count: 0, wrong: 0, sum: 0, timed: 0 }).get(adapter);
  const of = (metric) => (page.get(metric) ?? []).filter(({ labels }) => labels.alias === name);
  for (const { labels, value } of of("amalgam_alias_requests_total")) {
    row(labels.adapter).count += value;
    if (!labels.code.startsWith("2")) row(labels.adapter).wrong += value;
  }
  for (const { labels, value } of of("amalgam_alias_request_duration_seconds_sum")) row(labels.adapter).sum += value;
  for (const { labels, value } of of("amalgam_alias_request_duration_seconds_count")) row(labels.adapter).timed += value;
  return [...rows].map(([adapter, one]) => [adapter, one.count, one.count ? interval(one.wrong, one.count) : 0, one.timed ? `${Math.round((one.sum / one.timed) * 1000)} ms` : "–"]);
}

function One({ name }) {
  const path = `/admin/v1/aliases/${inPath(name)}`;
  const alias = useLoaded((signal) => get(path, signal), [path]);
  const history = useLoaded((signal) => get(`${path}/history?limit=20`, signal), [path]);
  const metrics = useLoaded(async (signal) => samples(await (await ask("GET", "/metrics", { signal })).text()), [path], 5000);
  const [draft, setDraft] = useState(null);
  const targets = draft ?? alias.value?.targets.map(({ model, weight }) => ({ model, weight })) ?? [];
  const body = { targets, revision: alias.value?.revision ?? 0 };
  const renew = () => Promise.all([alias.again(), history.again()]);
  async function save() {
    await send("PUT", path, body);
    setDraft(null);
    notify(`${name} has changed`);
    await renew();
  }
  async function rollback(revision) {
    await send("POST", `${path}:rollback`, revision ? { to_revision: revision } : {});
    setDraft(null);
    notify(`${name} means again what it meant`);
    await renew();
  }
  return html`<p><a href=${linkTo("aliases")}>All aliases</a></p><h1>${name}</h1>
    <${Refusal} error=${alias.error?.status === 404 ? null : alias.error} />
    <${Targets} targets=${targets} change=${setDraft} />
    <p class="row"><${Action} label="Save" does=${save} disabled=${!draft || targets.some((target) => !target.model.trim())} />
      <${Action} label="Roll back" does=${() => rollback(0)} />
      <${Action} label="Delete" kind="danger" sure=${`Delete the alias ${name}?`} does=${async () => {
        await send("DELETE", path);
        location.hash = linkTo("aliases");
      }} /> <${CopyCurl} method="PUT" path=${path} body=${body} /></p>
    ${metrics.value && html`<h2>What its targets did</h2><${Table} caption="Outcomes" head=${["version", "requests", "not answered, and its share with 95 % certainty", "mean time"]} rows=${outcomes(metrics.value, name)} empty="No request named it since the server began." />`}
    <h2>History</h2>
    <${Table} caption="History" head=${["revision", "meant", "when", ""]} rows=${(history.value?.data ?? []).map((change) => [
      change.revision, change.targets?.length ? meaning(withShares(change.targets)) : "deleted", when(change.created_at),
      html`<${Action} label="bring back" does=${() => rollback(change.revision)} />`])} />`;
}

function withShares(targets) {
  const total = targets.reduce((sum, target) => sum + target.weight, 0) || 1;
  return targets.map((target) => ({ ...target, share: target.weight / total }));
}

function List() {
  const list = useLoaded((signal) => get("/admin/v1/aliases?limit=500", signal), [], 5000);
  const [name, setName] = useState("");
  const [model, setModel] = useState("");
  async function create() {
    await send("PUT", `/admin/v1/aliases/${inPath(name)}`, { targets: [{ model }], revision: 0 });
    location.hash = linkTo("aliases", name);
  }
  return html`<h1>Aliases</h1><${Refusal} error=${list.error} />
    <div class="row"><${Field} label="Name"><input value=${name} maxlength="128" onInput=${(event) => setName(event.target.value)} /><//>
      <${Field} label="Means"><input value=${model} onInput=${(event) => setModel(event.target.value)} /><//>
      <${Action} label="Create" disabled=${!name || !model} does=${create} /></div>
    ${list.value && html`<${Table} caption="Aliases" head=${["name", "means", "changed"]} empty="There is no alias yet."
      rows=${list.value.data.map((alias) => [html`<a href=${linkTo("aliases", alias.name)}>${alias.name}</a>`, meaning(alias.targets), when(alias.updated_at)])} />`}
    <p><${CopyCurl} path="/admin/v1/aliases" /></p>`;
}

export default function Aliases({ rest }) {
  return rest.length ? html`<${One} key=${rest[0]} name=${rest[0]} />` : html`<${List} />`;
}
