// One name whose meaning moves: shares by slider or what chooses by content, what came of it, and the way back.

import { useState } from "../vendor/hooks.js";
import { get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Field, fixed, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { allowed, linkTo, notify } from "../js/state.js";
import Outcomes from "./alias_outcomes.js";

/** What an alias means, in words. @param {{targets: any[], router?: any}} alias */
export function meaning({ targets, router }) {
  if (router) return `chosen by content among ${router.candidates.join(", ")}, otherwise ${router.otherwise}`;
  const total = targets.reduce((sum, target) => sum + target.weight, 0) || 1;
  return targets.map(({ model, weight }) => (targets.length > 1 ? `${Math.round((weight / total) * 100)} % ${model}` : model)).join(", ");
}

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

/** What chooses by content, and how it decides about a prompt. @param {{path: string, router: any}} given */
function Router({ path, router }) {
  const [prompt, setPrompt] = useState("");
  const [found, setFound] = useState(/** @type {any} */ (null));
  const explain = async () => setFound(await send("POST", `${path}:explain`, { prompt }));
  return html`<p>A router chooses by what a request says. It was fitted from examples${router.recognised === undefined ? "" : `, of which it sends ${fixed(100 * router.recognised, 0)} % to their own candidate when each is left out`}.</p>
    <${Table} caption="Candidates" head=${["candidate", "examples"]} rows=${[...router.candidates.map((name, at) => [name, router.examples?.[at] ?? "–"]), [`${router.otherwise}, otherwise`, ""]]} />
    <div class="row"><${Field} label="How would it decide about this prompt?"><input class="wide" value=${prompt} onInput=${(event) => setPrompt(event.target.value)} /><//>
      <${Action} label="Explain" disabled=${!prompt.trim()} does=${explain} /></div>
    ${found && html`<div role="status"><p><strong>${found.model}</strong> <small>${found.reason}</small></p>
      <${Table} caption="Scores" head=${["candidate", "score"]} rows=${found.scores.map((one) => [one.candidate, fixed(one.score, 3)])} />
      ${found.nearest.length > 0 && html`<p>Most like it: ${found.nearest.slice(0, 3).map((one) => `“${one.text}” (${one.candidate})`).join(", ")}</p>`}</div>`}`;
}

/** What it meant, newest first, each of which can be brought back. */
const History = ({ changes, rollback }) => html`<h2>History</h2>
  <${Table} caption="History" head=${["revision", "meant", "when", ""]} rows=${changes.map((change) => [
    change.revision, change.targets?.length ? meaning(change) : "deleted", when(change.created_at),
    html`<${Action} label="bring back" does=${() => rollback(change.revision)} />`])} />`;

/** @param {{name: string}} given */
export default function Alias({ name }) {
  const path = `/admin/v1/aliases/${inPath(name)}`;
  const alias = useLoaded((signal) => get(path, signal), [path]);
  const history = useLoaded((signal) => get(`${path}/history?limit=20`, signal), [path]);
  const [draft, setDraft] = useState(null);
  const router = alias.value?.router;
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
    ${router && !draft ? html`<${Router} path=${path} router=${router} />` : allowed.value?.changes ? html`<${Targets} targets=${targets} change=${setDraft} />` : html`<p>${alias.value && meaning(alias.value)}</p>`}
    <p class="row">${(!router || draft) && html`<${Action} label="Save" does=${save} disabled=${!draft || targets.some((target) => !target.model.trim())} />`}
      <${Action} label="Roll back" does=${() => rollback(0)} />
      <${Action} label="Delete" kind="danger" sure=${`Delete the alias ${name}?`} does=${async () => {
        await send("DELETE", path);
        location.hash = linkTo("aliases");
      }} /> ${router ? html`<${CopyCurl} path=${path} />` : html`<${CopyCurl} method="PUT" path=${path} body=${body} />`}
      ${alias.value && html`<a href=${`${linkTo("playground")}?models=${inPath(name)}`}>Open in the playground</a>`}</p>
    ${allowed.value?.administers && html`<${Outcomes} name=${name} />`}
    <${History} changes=${history.value?.data ?? []} rollback=${rollback} />`;
}
