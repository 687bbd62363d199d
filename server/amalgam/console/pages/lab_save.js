// What a blend becomes: a version, or an alias; or where a sweep begins.

import { useState } from "../vendor/hooks.js";
import { inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Field } from "../js/parts.js";
import { linkTo, notify } from "../js/state.js";

const WAIT_S = 30;

export default function Save({ text, lab }) {
  const [name, setName] = useState("");
  const body = { name, expression: text };
  async function merge() {
    const made = await send("POST", `/admin/v1/merges?wait_s=${WAIT_S}`, body);
    notify(made.job ? `${name} is being built; see Jobs` : `${made.model} answers now`);
  }
  async function alias() {
    await send("PUT", `/admin/v1/aliases/${inPath(name)}`, { targets: [{ model: text }] });
    notify(`${name} means ${text}`);
  }
  const inputs = lab.inputs.map((input) => input.model).join(",");
  return html`<div class="row" role="group" aria-label="Keep this blend">
    <${Field} label="Name"><input value=${name} maxlength="128" onInput=${(event) => setName(event.target.value)} /><//>
    <${Action} label="Save as version" disabled=${!name || !text} does=${merge} />
    <${Action} label="Make alias" disabled=${!name || !text} does=${alias} />
    <${CopyCurl} method="POST" path="/admin/v1/merges" body=${body} />
    ${lab.inputs.length > 1 && html`<a href=${`${linkTo("evaluations")}?sweep=${inPath(inputs)}`}>Start a sweep from here</a>`}</div>`;
}
