// A router that is made or changed: what it chooses among, and by what.

import { useState } from "../vendor/hooks.js";
import { get, send } from "../js/api.js";
import { lined, unlined } from "../js/examples.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Field, Refusal, useLoaded, useSending } from "../js/parts.js";
import { notify } from "../js/state.js";

const LEAST_EXAMPLES = 3;
const MOST_CANDIDATES = 15;

/** @typedef {{model: string, examples: string}} Candidate */
/** @typedef {{candidates: Candidate[], otherwise: string, neither: string, prompts: string, threshold: string, margin: string, blend: boolean}} Form */

/** The form as an alias has it; thresholds are found anew unless somebody says them. @returns {Form} */
function formOf(router, examples, targets) {
  const names = router?.candidates ?? (targets.length ? targets : ["", ""]);
  const candidates = names.map((model) => ({ model, examples: lined(examples[model] ?? []) }));
  const otherwise = router?.otherwise ?? "";
  const neither = names.includes(otherwise) ? "" : lined(examples[otherwise] ?? []);
  return { candidates, otherwise, neither, prompts: "", threshold: "", margin: "", blend: router?.blend ?? false };
}

/** What the form means. @param {Form} form @param {string} base */
function bodyOf(form, base) {
  const named = form.candidates.filter((one) => one.model.trim());
  const texts = named.map((one) => [one.model.trim(), unlined(one.examples)]);
  texts.push([form.otherwise.trim() || base, unlined(form.neither)]);
  const prompts = unlined(form.prompts);
  return {
    candidates: named.map((one) => one.model.trim()),
    ...(form.otherwise.trim() ? { otherwise: form.otherwise.trim() } : {}),
    by: {
      examples: Object.fromEntries(texts.filter(([, some]) => some.length)),
      ...(prompts.length ? { adapters: { prompts } } : {}),
      ...(form.threshold === "" ? {} : { threshold: Number(form.threshold) }),
      ...(form.margin === "" ? {} : { margin: Number(form.margin) }),
    },
    blend: form.blend,
  };
}

/** @param {{one: Candidate, at: number, set: (part: Partial<Candidate>) => void, remove: null | (() => void)}} given */
function CandidateFields({ one, at, set, remove }) {
  const count = unlined(one.examples).length;
  const label = one.model || `candidate ${at + 1}`;
  return html`<fieldset><legend>${label}</legend><div class="row">
      <${Field} label="Candidate"><input list="targets" maxlength="1024" value=${one.model} onInput=${(event) => set({ model: event.target.value })} /><//>
      ${remove && html`<button type="button" class="quiet" aria-label=${`leave out ${label}`} onClick=${remove}>×</button>`}</div>
    <${Field} label=${`Examples of ${label}, one a line`} hint=${count ? `${count}; ten to thirty in several wordings are good` : ""}>
      <textarea class="wide" rows="4" value=${one.examples} onInput=${(event) => set({ examples: event.target.value })}></textarea><//></fieldset>`;
}

/** By what a choice is made besides the examples. */
function Signals({ form, set }) {
  const prompts = unlined(form.prompts).length;
  return html`<details><summary>Let the adapters find examples</summary>
      <${Field} label="Prompts without a target, one a line" hint=${`up to 500${prompts ? `, ${prompts} so far; the base model reads each once, about a second a prompt on processors` : "; each that one candidate's adapter knows better than the others do becomes its example"}`}>
        <textarea class="wide" rows="4" value=${form.prompts} onInput=${set("prompts")}></textarea><//></details>
    <div class="row"><${Field} label="Threshold" hint="least score, 0 to 1"><input type="number" min="0" max="1" step="any" placeholder="found" value=${form.threshold} onInput=${set("threshold")} /><//>
      <${Field} label="Margin" hint="least distance to the next score"><input type="number" min="0" max="1" step="any" placeholder="found" value=${form.margin} onInput=${set("margin")} /><//></div>`;
}

/**
 * @param {{name: string, path: string, revision: number, router?: any, examples?: Record<string, string[]>, targets?: string[], saved: () => Promise<any>}} given
 */
export default function RouterForm({ name, path, revision, router = null, examples = {}, targets = [], saved }) {
  const [form, setForm] = useState(() => formOf(router, examples, targets));
  const engine = useLoaded((signal) => get("/admin/v1/engine", signal), []);
  const adapters = useLoaded((signal) => get("/admin/v1/adapters?limit=500", signal), []);
  const base = engine.value?.served_name ?? "";
  const set = (part) => (event) => setForm({ ...form, [part]: event.target.value });
  const change = (at) => (part) => setForm({ ...form, candidates: form.candidates.with(at, { ...form.candidates[at], ...part }) });
  const body = { router: bodyOf(form, base), revision };
  const short = form.candidates.filter((one) => one.model.trim() && unlined(one.examples).length < LEAST_EXAMPLES);
  const lacks = !body.router.candidates.length ? "Name a candidate." : short.length && !form.prompts.trim()
    ? `${short.map((one) => one.model.trim()).join(", ")}: ${LEAST_EXAMPLES} examples or more are needed, or prompts that the adapters tell apart.` : "";
  const { wrong, send: save } = useSending(async () => {
    const made = await send("PUT", path, body);
    notify(`${name} chooses by content: of the examples it recognises ${Math.round(100 * made.router.recognised)} % when they are left out`);
    await saved();
  });
  return html`<datalist id="targets">${base && html`<option value=${base}></option>`}${(adapters.value?.data ?? []).map((one) => html`<option key=${one.name} value=${one.name}>${one.description}</option>`)}</datalist>
    <${Refusal} error=${engine.error ?? adapters.error} />
    ${form.candidates.map((one, at) => html`<${CandidateFields} key=${at} one=${one} at=${at} set=${change(at)}
      remove=${form.candidates.length > 1 ? () => setForm({ ...form, candidates: form.candidates.toSpliced(at, 1) }) : null} />`)}
    ${form.candidates.length < MOST_CANDIDATES && html`<p><button type="button" onClick=${() => setForm({ ...form, candidates: [...form.candidates, { model: "", examples: "" }] })}>Add a candidate</button></p>`}
    <fieldset><legend>Otherwise</legend><${Field} label="Target for the rest" hint="what is like no candidate, or like two"><input list="targets" maxlength="1024" placeholder=${base} value=${form.otherwise} onInput=${set("otherwise")} /><//>
      <${Field} label="Examples that are for no candidate, one a line" hint="tasks that no candidate is for"><textarea class="wide" rows="2" value=${form.neither} onInput=${set("neither")}></textarea><//></fieldset>
    <${Signals} form=${form} set=${set} />
    <p><label class="check"><input type="checkbox" checked=${form.blend} onChange=${(event) => setForm({ ...form, blend: event.target.checked })} /> two close scores give a blend of both, in steps of a quarter</label></p>
    ${lacks && html`<p class="empty">${lacks}</p>`}<${Refusal} error=${wrong} />
    <p class="row"><${Action} label="Save the router" disabled=${Boolean(lacks) || !base} does=${save} /> <${CopyCurl} method="PUT" path=${path} body=${body} /></p>`;
}
