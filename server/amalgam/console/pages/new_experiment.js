// An experiment that begins: what decides, what matters, and what takes a candidate out.

import { useState } from "../vendor/hooks.js";
import { send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Field, Refusal, useSending } from "../js/parts.js";
import { allowed, notify } from "../js/state.js";

const START = {
  ...{ control: "", metric: "thumb", higher_is_better: true, minimum_effect: "0.02", risk: "0.05", most_outcomes: "", promote: false },
  ...{ assignment: "request", most_errors: "0.02", slow_ms: "", most_slow: "0.05", shadows: "" },
};
const ASSIGNMENTS = { request: "each request draws anew", user: "a user always meets the same", key: "a key always meets the same" };

/** What the form means. */
function bodyOf(form, revision) {
  const number = (text) => (text === "" ? null : Number(text));
  return {
    ...(form.control ? { control: form.control } : {}),
    ...(form.metric ? { metric: form.metric, higher_is_better: form.higher_is_better, minimum_effect: Number(form.minimum_effect) } : {}),
    risk: Number(form.risk),
    ...(form.most_outcomes ? { most_outcomes: number(form.most_outcomes) } : {}),
    promote: form.promote,
    assignment: form.assignment,
    ...(form.most_errors === "" ? {} : { errors: { most_above: Number(form.most_errors) } }),
    ...(form.slow_ms === "" ? {} : { latency: { slow_ms: number(form.slow_ms), most_above: Number(form.most_slow) } }),
    ...(form.shadows.trim() ? { shadows: form.shadows.split("\n").map((name) => name.trim()).filter(Boolean) } : {}),
    revision,
  };
}

/** @param {{alias: any, path: string, begun: () => Promise<any>}} given */
export default function NewExperiment({ alias, path, begun }) {
  const [form, setForm] = useState(START);
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.value });
  const check = (name) => (event) => setForm({ ...form, [name]: event.target.checked });
  // With one target there is nothing to compare; shadows can be watched all the same.
  const compares = alias.targets.length > 1;
  const body = bodyOf(compares ? form : { ...form, control: "", metric: "", most_errors: "", slow_ms: "" }, alias.revision);
  const { wrong, send: start } = useSending(async () => {
    await send("PUT", `${path}/experiment`, body);
    notify(`${alias.name} carries an experiment`);
    await begun();
  });
  if (!allowed.value?.changes) return null;
  const number = (name, label, bounds, hint = "") => html`<${Field} label=${label} hint=${hint}><input type="number" ...${bounds} value=${form[name]} onInput=${set(name)} /><//>`;
  return html`<details><summary>New experiment</summary>
    ${compares ? html`<div class="row"><${Field} label="Control" hint="stays where nothing better is found"><select value=${form.control} onChange=${set("control")}><option value="">the one of the largest share</option>
        ${alias.targets.map(({ model }) => html`<option key=${model} value=${model}>${model}</option>`)}</select><//>
      <${Field} label="Feedback that decides" hint="as clients name it; empty: guards alone watch"><input value=${form.metric} maxlength="32" pattern="[a-z][a-z0-9_]*" onInput=${set("metric")} /><//>
      ${number("minimum_effect", "Least difference that matters", { min: 0.001, max: 0.999, step: 0.001 })}
      ${number("risk", "Risk of ever ending wrongly", { min: 0.000001, max: 0.5, step: "any" })}
      ${number("most_outcomes", "Most outcomes", { min: 1, step: 1, placeholder: "no end" }, "then it ends undecided")}
      <${Field} label="Who meets what"><select value=${form.assignment} onChange=${set("assignment")}>
        ${Object.entries(ASSIGNMENTS).map(([value, words]) => html`<option key=${value} value=${value}>${words}</option>`)}</select><//></div>
    <p class="row"><label class="check"><input type="checkbox" checked=${form.promote} onChange=${check("promote")} /> let the alias mean the winner alone at the end</label>
      <label class="check"><input type="checkbox" checked=${form.higher_is_better} onChange=${check("higher_is_better")} /> a higher value is better</label></p>
    <fieldset><legend>Guards: a candidate that is worse is taken out by itself</legend><div class="row">
      ${number("most_errors", "Share of errors above the control's", { min: 0, max: 0.999, step: 0.001, placeholder: "no guard" })}
      ${number("slow_ms", "Slow is above, ms", { min: 1, step: 1, placeholder: "no guard" })}
      ${number("most_slow", "Share of slow ones above the control's", { min: 0, max: 0.999, step: 0.001 })}</div></fieldset>`
    : html`<p class="warning">It has one target: add a second one to compare, or name shadows.</p>`}
    <${Field} label="Shadows, one a line: get copies of requests, and never answer"><textarea class="wide" rows="2" spellcheck="false" value=${form.shadows} onInput=${set("shadows")}></textarea><//>
    <${Refusal} error=${wrong} />
    <p class="row"><${Action} label="Begin the experiment" disabled=${!compares && !form.shadows.trim()} does=${start} /> <${CopyCurl} method="PUT" path=${`${path}/experiment`} body=${body} /></p></details>`;
}
