// Names whose meaning moves: all of them, and one of them on a page of its own.

import { useState } from "../vendor/hooks.js";
import { get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { meaning } from "../js/meaning.js";
import { Action, CopyCurl, Field, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { allowed, linkTo } from "../js/state.js";
import { brief, mood } from "../js/verdict.js";
import Alias from "./alias.js";

const EVERY_MS = 5000;

/** How the newest experiment of an alias stands, in words. */
function Standing({ experiment }) {
  if (!experiment) return "";
  return html`<span class=${mood(experiment)}>${brief(experiment)}</span>${experiment.ended_at && html` <small>${when(experiment.ended_at)}</small>`}`;
}

function List() {
  const list = useLoaded((signal) => get("/admin/v1/aliases?limit=500", signal), [], EVERY_MS);
  const experiments = useLoaded((signal) => get("/admin/v1/experiments?limit=500", signal), [], EVERY_MS);
  const carried = new Map((experiments.value?.data ?? []).map((one) => [one.alias, one]));
  const [name, setName] = useState("");
  const [model, setModel] = useState("");
  async function create() {
    await send("PUT", `/admin/v1/aliases/${inPath(name)}`, { targets: [{ model }], revision: 0 });
    location.hash = linkTo("aliases", name);
  }
  return html`<h1>Aliases</h1><${Refusal} error=${list.error ?? experiments.error} />
    ${allowed.value?.changes && html`<div class="row"><${Field} label="Name"><input value=${name} maxlength="128" onInput=${(event) => setName(event.target.value)} /><//>
      <${Field} label="Means"><input value=${model} onInput=${(event) => setModel(event.target.value)} /><//>
      <${Action} label="Create" disabled=${!name || !model} does=${create} />
      ${name && html`<a href=${`${linkTo("aliases", name)}?by=content`}>or choose by content</a>`}</div>`}
    ${list.value && html`<${Table} caption="Aliases" head=${["name", "means", "experiment", "changed"]} empty="There is no alias yet."
      rows=${list.value.data.map((alias) => [html`<a href=${linkTo("aliases", alias.name)}>${alias.name}</a>`, meaning(alias),
        html`<${Standing} experiment=${carried.get(alias.name)} />`, when(alias.updated_at)])} />`}
    <p><${CopyCurl} path="/admin/v1/aliases" /></p>`;
}

export default function Aliases({ rest }) {
  return rest.length ? html`<${Alias} key=${rest[0]} name=${rest[0]} />` : html`<${List} />`;
}
