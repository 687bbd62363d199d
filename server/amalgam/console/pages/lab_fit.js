// A merge that is fitted to prompts of its inputs: the form, what it would take, and the job that makes it.

import { useState } from "../vendor/hooks.js";
import { send } from "../js/api.js";
import { unlined } from "../js/examples.js";
import { html } from "../js/html.js";
import { itemsOf } from "../js/items.js";
import { Action, CopyCurl, Field, Refusal, size, useSending } from "../js/parts.js";
import { FollowedJob } from "./job.js";

const LONGEST_NAME = 128;
const BY = { kept: "their own answers", items: "answers that are given", evaluation: "the items of an evaluation" };
const METHODS = { "": "the server chooses", iteris: "iteris: inputs fitted to what they read", weights: "weights: a search on the engine" };
const EMPTY = { name: "", by: "kept", method: "", evaluation: "", tokens: "", seconds: "", required: "" };

/** @typedef {{name: string, by: string, method: string, evaluation: string, tokens: string, seconds: string, required: string}} Form */

/** What is read of each input, as the API takes it. @param {Form} form @param {Record<string, string>} given @param {string[]} models */
function readings(form, given, models) {
  if (form.by === "evaluation") return { by: "items", evaluation: form.evaluation.trim() };
  if (form.by === "kept") return { by: "kept", prompts: Object.fromEntries(models.map((model) => [model, unlined(given[model] ?? "")])) };
  return { by: "items", items: Object.fromEntries(models.map((model) => [model, itemsOf(given[model] ?? "").map(({ task, ...item }) => item)])) };
}

/** What the form means; fields that are left empty are the server's own. @param {Form} form @param {Record<string, string>} given @param {string[]} models @param {string} text */
function bodyOf(form, given, models, text) {
  const fit = {
    ...readings(form, given, models),
    ...(form.method ? { method: form.method } : {}),
    ...(form.tokens === "" ? {} : { max_tokens: Number(form.tokens) }),
    ...(form.seconds === "" ? {} : { budget_s: Number(form.seconds) }),
  };
  return { name: form.name, expression: text, fit, ...(form.required === "" ? {} : { require: { kept: Number(form.required) } }) };
}

/** What is still to be filled in; empty where nothing is. @param {Form} form @param {Record<string, string>} given @param {string[]} models */
function lacking(form, given, models) {
  if (!form.name) return "Name the version that it makes.";
  if (form.by === "evaluation") return form.evaluation.trim() ? "" : "Name an evaluation; its tasks are named like the inputs.";
  const bare = models.filter((model) => !(given[model] ?? "").trim());
  return bare.length ? `Nothing is there yet for ${bare.join(", ")}.` : "";
}

/** What is asked of one input. */
function Given({ model, by, value, set }) {
  const label = by === "kept" ? `Asked of ${model}, one a line` : `Items of ${model}, a JSON list or one object a line`;
  const hint = by === "kept" ? `${unlined(value).length || "ten in several wordings are good, none"} so far` : 'such as {"prompt": "2 + 2 = ?", "reference": "4"}';
  return html`<${Field} label=${label} hint=${hint}><textarea class="wide" rows="4" spellcheck="false" value=${value} onInput=${(event) => set(event.target.value)}></textarea><//>
    <p><input type="file" aria-label=${`what is asked of ${model}, from a file`} accept=".json,.jsonl,.txt" onChange=${async (event) => set(await event.target.files[0].text())} /></p>`;
}

/** What a fit will take, as its plan says. */
function Taken({ fit, warnings }) {
  const { reading } = fit;
  const counts = Object.entries(fit.prompts).map(([input, count]) => `${count} of ${input}`).join(", ");
  return html`<dl class="figures" aria-label="What the fit takes">
      <div class="figure"><dt>method</dt><dd>${fit.method}</dd></div>
      <div class="figure"><dt>prompts</dt><dd>${counts}</dd></div>
      <div class="figure"><dt>answers first</dt><dd>${fit.answers} <small>of at most ${fit.max_tokens} tokens</small></dd></div>
      ${fit.candidates !== null && html`<div class="figure"><dt>candidates</dt><dd>${fit.candidates} <small>at most</small></dd></div>`}
      ${reading && html`<div class="figure"><dt>memory</dt><dd>${size(reading.memory_bytes)} <small>of ${size(reading.free_bytes)} free</small></dd></div>
        <div class="figure"><dt>computed</dt><dd>${reading.dtype} <small>on ${reading.device}, ${reading.threads} threads</small></dd></div>`}
      <div class="figure"><dt>longest</dt><dd>${fit.budget_s} <small>s</small></dd></div></dl>
    ${warnings.filter((one) => one.startsWith("fit_")).map((one) => html`<p class="warning" key=${one}>${one}</p>`)}`;
}

/** @param {{models: string[], text: string}} given */
function Form({ models, text }) {
  const [form, setForm] = useState(EMPTY);
  const [given, setGiven] = useState(/** @type {Record<string, string>} */ ({}));
  const [plan, setPlan] = useState(/** @type {any} */ (null));
  const [job, setJob] = useState("");
  const set = (part) => (event) => setForm({ ...form, [part]: event.target.value });
  const lacks = lacking(form, given, models);
  const ask = useSending(async () => {
    setPlan(null);
    setPlan(await send("POST", "/admin/v1/merges:plan", bodyOf(form, given, models, text)));
  });
  const begin = useSending(async () => {
    setJob("");
    const made = await send("POST", "/admin/v1/merges", bodyOf(form, given, models, text));
    setJob(made.job.id);
  });
  const choices = (some) => Object.entries(some).map(([value, label]) => html`<option key=${value} value=${value}>${label}</option>`);
  return html`<div class="row"><${Field} label="Version it makes"><input value=${form.name} maxlength=${LONGEST_NAME} onInput=${set("name")} /><//>
      <${Field} label="Fitted by"><select value=${form.by} onChange=${set("by")}>${choices(BY)}</select><//>
      <${Field} label="Way"><select value=${form.method} onChange=${set("method")}>${choices(METHODS)}</select><//></div>
    ${form.by === "evaluation"
      ? html`<${Field} label="Id of the evaluation" hint="its tasks are named like the inputs"><input value=${form.evaluation} onInput=${set("evaluation")} /><//>`
      : models.map((model) => html`<${Given} key=${model} model=${model} by=${form.by} value=${given[model] ?? ""} set=${(value) => setGiven({ ...given, [model]: value })} />`)}
    <div class="row"><${Field} label="Longest answer" hint="tokens"><input type="number" min="1" placeholder="64" value=${form.tokens} onInput=${set("tokens")} /><//>
      <${Field} label="Longest time" hint="seconds"><input type="number" min="1" placeholder="300" value=${form.seconds} onInput=${set("seconds")} /><//>
      <${Field} label="Published if it keeps" hint="of each input's answers, 0 to 1; empty: in any case"><input type="number" min="0" max="1" step="any" value=${form.required} onInput=${set("required")} /><//></div>
    ${lacks && html`<p class="empty">${lacks}</p>`}<${Refusal} error=${ask.wrong ?? begin.wrong} />
    <p class="row"><${Action} label="Say what it takes" disabled=${Boolean(lacks)} does=${ask.send} />
      <${Action} label="Fit and publish" disabled=${Boolean(lacks)} does=${begin.send} />
      ${!lacks && form.by !== "items" && html`<${CopyCurl} method="POST" path="/admin/v1/merges" body=${bodyOf(form, given, models, text)} />`}</p>
    ${plan && html`<${Taken} fit=${plan.fit} warnings=${plan.warnings} />`}
    ${job && html`<${FollowedJob} key=${job} id=${job} />`}`;
}

export default function Fit({ lab, text }) {
  const [open, setOpen] = useState(false);
  const models = lab.inputs.filter((input) => input.weight !== 0).map((input) => input.model);
  if (models.length < 2) return null;
  return html`<section aria-label="Fit"><p><button type="button" aria-expanded=${open} onClick=${() => setOpen(!open)}>fit it to prompts of its inputs</button>
      <small> so that each input acts on what is its own</small></p>
    ${open && html`<${Form} models=${models} text=${text} />`}</section>`;
}
