// One name whose meaning moves: shares by slider or what chooses by content, what came of it, and the way back.

import { useState } from "../vendor/hooks.js";
import { get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { meaning } from "../js/meaning.js";
import { Action, CopyCurl, Refusal, useLoaded } from "../js/parts.js";
import { allowed, linkTo, notify, query } from "../js/state.js";
import { Audit, History } from "./alias_changes.js";
import AliasExperiment from "./alias_experiment.js";
import Outcomes from "./alias_outcomes.js";
import AliasRouter from "./alias_router.js";
import RouterForm from "./router_form.js";

function Targets({ targets, change }) {
  const total = targets.reduce((sum, target) => sum + target.weight, 0) || 1;
  const set = (at, part) => change(targets.with(at, { ...targets[at], ...part }));
  return html`<ul>${targets.map((target, at) => html`<li class="slider" key=${at}>
      <input class="name" aria-label="target" value=${target.model} onInput=${(event) => set(at, { model: event.target.value })} />
      <input type="range" min="1" max=${Math.max(100, target.weight)} aria-label=${`weight of ${target.model}`} value=${target.weight} onInput=${(event) => set(at, { weight: Number(event.target.value) })} />
      <span class="number">${Math.round((target.weight / total) * 100)} %</span>
      ${targets.length > 1 && html`<button type="button" class="quiet" aria-label=${`leave out ${target.model}`} onClick=${() => change(targets.toSpliced(at, 1))}>×</button>`}</li>`)}</ul>
    <button type="button" class="quiet" onClick=${() => change([...targets, { model: "", weight: 10 }])}>add a target</button>`;
}

/** Shares by slider, and the button that lets them count. */
function Weights({ name, path, alias, saved }) {
  const [draft, setDraft] = useState(/** @type {any[] | null} */ (null));
  const targets = draft ?? alias?.targets.map(({ model, weight }) => ({ model, weight })) ?? [];
  if (!allowed.value?.changes) return html`<p>${alias && meaning(alias)}</p>`;
  const body = { targets, revision: alias?.revision ?? 0 };
  async function save() {
    await send("PUT", path, body);
    setDraft(null);
    notify(`${name} has changed`);
    await saved();
  }
  const lacks = !draft || !targets.length || targets.some((target) => !target.model.trim());
  const sure = alias?.experiment ? "This ends the experiment that it carries, without a verdict. Save?" : "";
  return html`<${Targets} targets=${targets} change=${setDraft} />
    <p class="row"><${Action} label="Save" does=${save} disabled=${lacks} sure=${sure} />
      ${draft && html`<button type="button" onClick=${() => setDraft(null)}>As it was</button>`} <${CopyCurl} method="PUT" path=${path} body=${body} /></p>`;
}

/** What it means, and how that is changed: by weight, or by content. */
function Meaning({ name, path, alias, saved }) {
  const isRouted = Boolean(alias?.router) || (!alias && query().get("by") === "content");
  const [byContent, setByContent] = useState(isRouted);
  const choose = (wanted) => html`<label class="check"><input type="radio" name="by" checked=${byContent === wanted} onChange=${() => setByContent(wanted)} /> ${wanted ? "by content" : "by weight"}</label>`;
  const targets = alias?.targets.map((target) => target.model) ?? [];
  return html`${allowed.value?.changes && html`<div class="row" role="radiogroup" aria-label="How a target is chosen">${choose(false)} ${choose(true)}</div>`}
    ${byContent && alias?.router && html`<${AliasRouter} alias=${alias} path=${path} saved=${saved} />`}
    ${byContent && !alias?.router && html`<${RouterForm} name=${name} path=${path} revision=${alias?.revision ?? 0} targets=${targets} saved=${saved} />`}
    ${!byContent && html`<${Weights} name=${name} path=${path} alias=${alias} saved=${saved} />`}`;
}

/** @param {{name: string}} given */
export default function Alias({ name }) {
  const path = `/admin/v1/aliases/${inPath(name)}`;
  const found = useLoaded((signal) => get(path, signal), [path]);
  const history = useLoaded((signal) => get(`${path}/history?limit=20`, signal), [path]);
  const isNew = found.error?.status === 404;
  const alias = isNew ? null : found.value;
  const renew = () => Promise.all([found.again(), history.again()]);
  async function rollback(revision) {
    await send("POST", `${path}:rollback`, revision ? { to_revision: revision } : {});
    notify(`${name} means again what it meant`);
    await renew();
  }
  if (!alias && !found.error) return html`<h1>${name}</h1><p class="loading">Loading…</p>`;
  return html`<p><a href=${linkTo("aliases")}>All aliases</a></p><h1>${name}</h1>
    <${Refusal} error=${isNew ? null : found.error} />${isNew && html`<p>There is no such alias: say what it is to mean.</p>`}
    <${Meaning} key=${`${name} ${Boolean(alias?.router)}`} name=${name} path=${path} alias=${alias} saved=${renew} />
    ${alias && html`<p class="row"><${Action} label="Roll back" does=${() => rollback(0)} />
      <${Action} label="Delete" kind="danger" sure=${`Delete the alias ${name}?`} does=${async () => {
        await send("DELETE", path);
        location.hash = linkTo("aliases");
      }} /> <${CopyCurl} path=${path} /> <a href=${`${linkTo("playground")}?models=${inPath(name)}`}>Open in the playground</a></p>
    ${!alias.router && html`<${AliasExperiment} alias=${alias} path=${path} renew=${renew} />`}
    <${Outcomes} name=${name} path=${path} />`}
    <${History} changes=${history.value?.data ?? []} rollback=${rollback} current=${alias?.revision ?? 0} />
    <${Audit} name=${name} depends=${[alias?.revision, alias?.experiment]} />`;
}
