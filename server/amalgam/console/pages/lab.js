// The merge lab: adapters, a method and sliders; every position of them is a blend that answers beside its parents.

import { useEffect, useState } from "../vendor/hooks.js";
import { get } from "../js/api.js";
import { html } from "../js/html.js";
import { Field, Refusal, useLoaded } from "../js/parts.js";
import { read, written } from "../js/recipe.js";
import { place, query } from "../js/state.js";
import Answers from "./lab_answers.js";
import Fit from "./lab_fit.js";
import Inputs from "./lab_inputs.js";
import Log, { useTried } from "./lab_log.js";
import Plan from "./lab_plan.js";
import Save from "./lab_save.js";

const KEPT = 50;
const STEP = 0.05;
const EMPTY = { method: "task_arithmetic", inputs: [], parameters: {} };

/** Choices of a parameter, or the numbers it may have, by the server's own schema. */
function Parameter({ name, schema, value, set }) {
  const choices = schema.enum ?? schema.anyOf?.find((one) => one.enum)?.enum;
  const hint = `${schema.description ?? ""}${schema.default === undefined || schema.default === null ? "" : ` (${schema.default})`}`;
  const change = (event) => set(event.target.value);
  if (choices) return html`<${Field} label=${name} hint=${hint}><select value=${value} onChange=${change}><option value="">default</option>
    ${choices.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select><//>`;
  const [least, most] = [schema.minimum ?? schema.exclusiveMinimum, schema.maximum ?? schema.exclusiveMaximum];
  const number = html`<input type=${schema.type === "boolean" ? "text" : "number"} step="any" min=${least} max=${most} value=${value} onChange=${change} />`;
  if (schema.type !== "number" || least === undefined || most === undefined) return html`<${Field} label=${name} hint=${hint}>${number}<//>`;
  // Between its bounds, which themselves are allowed only where the schema says so.
  const low = schema.minimum ?? least + STEP;
  return html`<${Field} label=${name} hint=${hint}><span class="pair">${number}
    <input type="range" aria-label=${`${name}, as a slider`} min=${low} max=${schema.maximum ?? most - STEP} step=${STEP} value=${value === "" ? schema.default ?? low : value} onInput=${change} /></span><//>`;
}

function Method({ methods, lab, change }) {
  const row = methods.find((one) => one.name === lab.method);
  const set = (name) => (value) => change({ ...lab, parameters: { ...lab.parameters, [name]: value } });
  const extra = { rank: { type: "integer", minimum: 1, description: "of the result; empty: what the method gives" } };
  if (row?.random) extra.seed = { type: "integer", minimum: 0, description: "of the draws" };
  if ((row?.spaces.length ?? 0) > 1) extra.space = { enum: row.spaces, description: "where the rule is applied" };
  return html`<section class="method" aria-label="Method"><${Field} label="Method" hint=${row?.summary ?? ""}>
      <select value=${lab.method} onChange=${(event) => change({ ...lab, method: event.target.value, parameters: {} })}>
        ${methods.map((one) => html`<option key=${one.name} value=${one.name}>${one.name}</option>`)}</select><//>
    ${Object.entries({ ...row?.parameters.properties, ...extra }).map(([name, schema]) => html`
      <${Parameter} key=${name} name=${name} schema=${schema} value=${lab.parameters[name] ?? ""} set=${set(name)} />`)}
  </section>`;
}

/** The text of the merge: it follows the sliders, and they follow it where they can show it. */
function Recipe({ text, change }) {
  const [typed, setTyped] = useState(null);
  const shown = typed ?? text;
  function input(event) {
    const found = read(event.target.value);
    setTyped(found === null ? event.target.value : null);
    if (found !== null) change(found);
  }
  return html`<${Field} label="Recipe" hint=${typed === null ? "what a request's model or a merge takes" : "sliders cannot show this text yet"}>
    <input class="wide" value=${shown} spellcheck="false" onInput=${input} onBlur=${() => setTyped(null)} /><//>`;
}

export default function Lab() {
  const methods = useLoaded((signal) => get("/admin/v1/merge-methods", signal), []);
  const [past, setPast] = useState([]);
  const { tried, answered } = useTried();
  const [lab, setLab] = useState(() => read(query().get("recipe") ?? "") ?? EMPTY);
  const text = written(lab);
  const asked = place.value[0] === "lab" ? query().get("recipe") : null;
  // A link to another recipe, or the way back to an earlier one, while the lab is open.
  useEffect(() => {
    const found = read(asked ?? "");
    if (found && written(found) !== text) change(found);
  }, [asked]);

  function change(next) {
    if (written(next) !== text) setPast([...past.slice(1 - KEPT), lab]);
    setLab(next);
  }
  function undo() {
    setLab(past[past.length - 1]);
    setPast(past.slice(0, -1));
  }
  if (!methods.value) return html`<h1>Merge lab</h1><${Refusal} error=${methods.error} />`;
  return html`<h1>Merge lab</h1>
    <div class="lab">
      <div><${Inputs} lab=${lab} change=${change} undo=${past.length ? undo : null} /><${Recipe} text=${text} change=${change} /></div>
      <${Method} methods=${methods.value.data} lab=${lab} change=${change} />
    </div>
    <${Answers} lab=${lab} text=${text} answered=${answered} change=${change} />
    <${Save} text=${text} lab=${lab} />
    <${Fit} text=${text} lab=${lab} />
    <${Plan} text=${text} />
    <${Log} tried=${tried} text=${text} load=${(expression) => change(read(expression) ?? lab)} />`;
}
