// The same chat asked of two to four models side by side.

import { useEffect, useState } from "../vendor/hooks.js";
import { get } from "../js/api.js";
import { Answer, useAnswer } from "../js/answer.js";
import { messagesOf } from "../js/chat.js";
import { html } from "../js/html.js";
import { Copy, CopyCurl, Field, Refusal, useLoaded } from "../js/parts.js";
import { linkTo, query } from "../js/state.js";

const MOST = 4;
const NUMBERS = {
  temperature: { step: 0.1, least: 0, most: 2 },
  max_tokens: { step: 1, least: 1 },
  top_p: { step: 0.05, least: 0, most: 1 },
  top_k: { step: 1, least: -1 },
  presence_penalty: { step: 0.1, least: -2, most: 2 },
  frequency_penalty: { step: 0.1, least: -2, most: 2 },
  seed: { step: 1, least: 0 },
};
const START = {
  ...{ system: "", user: "", temperature: "0", max_tokens: "128", top_p: "", top_k: "", presence_penalty: "", frequency_penalty: "", seed: "" },
  ...{ stop: "", logprobs: false, tools: "", tool_choice: "", schema: "", more: "" },
};
const TOOLS = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]';
const SCHEMA = '{"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}';
const MORE = '{"chat_template_kwargs": {"enable_thinking": false}}';

/** The JSON of a field; undefined where it is empty. @param {string} text @param {string} words */
function json(text, words) {
  if (!text.trim()) return undefined;
  try {
    return JSON.parse(text);
  } catch (problem) {
    throw new Error(`${words} are no JSON: ${problem instanceof Error ? problem.message : problem}`);
  }
}

/** What the form means, for one model. Throws an Error where a field is to be JSON and is none. */
function bodyOf(model, form) {
  const given = Object.fromEntries(Object.keys(NUMBERS).filter((name) => form[name] !== "").map((name) => [name, Number(form[name])]));
  const [tools, schema] = [json(form.tools, "The tools"), json(form.schema, "The fields of the JSON schema")];
  return {
    model,
    messages: messagesOf(form.system, form.user),
    ...given,
    ...(form.stop ? { stop: form.stop.split("|") } : {}),
    ...(form.logprobs ? { logprobs: true, top_logprobs: 3 } : {}),
    ...(tools ? { tools, ...(form.tool_choice ? { tool_choice: form.tool_choice } : {}) } : {}),
    ...(schema ? { response_format: { type: "json_schema", json_schema: { name: "answer", schema } } } : {}),
    ...json(form.more, "The further fields"),
  };
}

function Column({ model, set, remove, sent, round, report, beside }) {
  const body = sent && model.trim() ? bodyOf(model, sent) : null;
  const { answer, error } = useAnswer(body, 0, round);
  useEffect(() => report(answer), [answer]);
  return html`<section class="column" aria-label=${`Answer of ${model}`}>
    <div class="row"><input class="wide" list="models" aria-label="model" value=${model} onInput=${(event) => set(event.target.value)} />
      ${remove && html`<button type="button" class="quiet" aria-label=${`leave out ${model}`} onClick=${remove}>×</button>`}</div>
    <${Answer} answer=${answer} error=${error} beside=${beside} />
    ${body && html`<p class="row"><${CopyCurl} method="POST" path="/v1/chat/completions" body=${body} /></p>`}</section>`;
}

/** The state in the address, so that it can be sent to somebody. */
function fromAddress() {
  const given = query();
  const form = Object.fromEntries(Object.entries(START).map(([name, value]) => [name, typeof value === "boolean" ? given.has(name) : given.get(name) ?? value]));
  return { form, models: given.get("models")?.split("|").slice(0, MOST) ?? null };
}

function link(form, models) {
  const set = Object.entries(form).filter(([, value]) => value !== "" && value !== false);
  const search = new URLSearchParams([["models", models.join("|")], ...set.map(([name, value]) => [name, String(value)])]);
  return `${location.href.split("#")[0]}${linkTo("playground")}?${search}`;
}

/** What an answer may be and what the model may call, as JSON. */
function Constraints({ form, field }) {
  // As the address has it; what is typed later, or taken away, folds nothing.
  const [open] = useState(Boolean(form.tools || form.schema || form.more));
  return html`<details open=${open}><summary>Tools, JSON schema and other fields</summary>
    <div class="columns"><div><${Field} label="Tools, a JSON list" hint=${TOOLS}><textarea class="wide" rows="3" spellcheck="false" value=${form.tools} onInput=${field("tools")}></textarea><//>
    <${Field} label="tool_choice"><select value=${form.tool_choice} onChange=${field("tool_choice")}>
      ${["", "auto", "none", "required"].map((one) => html`<option key=${one} value=${one}>${one || "default"}</option>`)}</select><//></div>
    <${Field} label="JSON schema of the answer" hint=${SCHEMA}><textarea class="wide" rows="3" spellcheck="false" value=${form.schema} onInput=${field("schema")}></textarea><//></div>
    <${Field} label="Further fields of the request, as JSON" hint=${MORE}><textarea class="wide" rows="3" spellcheck="false" value=${form.more} onInput=${field("more")}></textarea><//></details>`;
}

function Form({ form, change, submit, wrong }) {
  const field = (name) => (event) => change({ ...form, [name]: event.target.value });
  return html`<form onSubmit=${submit}>
    <${Field} label="System prompt"><textarea class="wide" rows="2" value=${form.system} onInput=${field("system")}></textarea><//>
    <${Field} label="Prompt"><textarea class="wide" rows="4" value=${form.user} onInput=${field("user")}></textarea><//>
    <div class="row">${Object.entries(NUMBERS).map(([name, { step, least, most }]) => html`<${Field} key=${name} label=${name}>
        <input type="number" step=${step} min=${least} max=${most} value=${form[name]} onInput=${field(name)} /><//>`)}
      <${Field} label="stop, with | between"><input value=${form.stop} onInput=${field("stop")} /><//>
      <label class="check"><input type="checkbox" checked=${form.logprobs} onChange=${(event) => change({ ...form, logprobs: event.target.checked })} /> log-probabilities on hover</label></div>
    <${Constraints} form=${form} field=${field} />
    <${Refusal} error=${wrong} />
    <div class="row"><button type="submit" disabled=${!form.user.trim()}>Ask</button></div></form>`;
}

export default function Playground() {
  const start = fromAddress();
  const [form, setForm] = useState(start.form);
  const [chosen, setModels] = useState(start.models);
  const [sent, setSent] = useState(null);
  const [round, setRound] = useState(0);
  const [wrong, setWrong] = useState(null);
  const [first, setFirst] = useState(null);
  const list = useLoaded((signal) => get("/v1/models?limit=500", signal), []);
  const known = list.value?.data?.map((one) => one.id) ?? [];
  const models = chosen ?? known.slice(0, 2);
  function submit(event) {
    event.preventDefault();
    try {
      bodyOf("", form);
    } catch (problem) {
      setWrong(problem);
      return;
    }
    setWrong(null);
    setSent(form);
    setRound(round + 1);
  }
  return html`<h1>Playground</h1><${Refusal} error=${list.error} />
    <datalist id="models">${known.map((id) => html`<option key=${id} value=${id}></option>`)}</datalist>
    <${Form} form=${form} change=${setForm} submit=${submit} wrong=${wrong} />
    <div class="columns">${models.map((model, at) => html`<${Column} key=${at} model=${model} sent=${sent} round=${round}
      set=${(name) => setModels(models.with(at, name))} remove=${models.length > 1 ? () => setModels(models.toSpliced(at, 1)) : null}
      report=${(answer) => at === 0 && setFirst(answer)} beside=${at === 0 ? null : first} />`)}</div>
    <p class="row">${models.length < MOST && html`<button type="button" onClick=${() => setModels([...models, known[models.length] ?? ""])}>Add a column</button>`}
      <${Copy} label="copy link to this" text=${() => link(form, models)} /></p>`;
}
