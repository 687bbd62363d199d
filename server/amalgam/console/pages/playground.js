// The same chat asked of two to four models side by side.

import { useEffect, useState } from "../vendor/hooks.js";
import { asPython, get } from "../js/api.js";
import { Answer, useAnswer } from "../js/answer.js";
import { messagesOf } from "../js/chat.js";
import { html } from "../js/html.js";
import { Copy, CopyCurl, Field, Refusal, useLoaded } from "../js/parts.js";
import { linkTo, query } from "../js/state.js";

const MOST = 4;
const START = { system: "", user: "", temperature: "0", max_tokens: "128", top_p: "", seed: "", logprobs: false, more: "" };

/** What the form means, for one model. Throws a SyntaxError where the further fields are no JSON. */
function bodyOf(model, form) {
  const numbers = ["temperature", "max_tokens", "top_p", "seed"].filter((name) => form[name] !== "");
  const given = Object.fromEntries(numbers.map((name) => [name, Number(form[name])]));
  const extra = form.logprobs ? { logprobs: true, top_logprobs: 3 } : {};
  return { model, messages: messagesOf(form.system, form.user), ...given, ...extra, ...(form.more.trim() ? JSON.parse(form.more) : {}) };
}

function Column({ model, set, remove, sent, round, report, beside }) {
  const body = sent && model.trim() ? bodyOf(model, sent) : null;
  const { answer, error } = useAnswer(body, 0, round);
  useEffect(() => report(answer), [answer]);
  return html`<section class="column" aria-label=${`Answer of ${model}`}>
    <div class="row"><input class="wide" list="models" aria-label="model" value=${model} onInput=${(event) => set(event.target.value)} />
      ${remove && html`<button type="button" class="quiet" aria-label=${`leave out ${model}`} onClick=${remove}>×</button>`}</div>
    <${Answer} answer=${answer} error=${error} beside=${beside} />
    ${body && html`<p class="row"><${CopyCurl} method="POST" path="/v1/chat/completions" body=${body} />
      <${Copy} label="copy as Python" text=${() => asPython(body)} /></p>`}</section>`;
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

function Form({ form, change, submit, wrong }) {
  const field = (name) => (event) => change({ ...form, [name]: event.target.value });
  const number = (name, step, least, most) => html`<${Field} label=${name}><input type="number" step=${step} min=${least} max=${most} value=${form[name]} onInput=${field(name)} /><//>`;
  return html`<form onSubmit=${submit}>
    <${Field} label="System prompt"><textarea class="wide" rows="2" value=${form.system} onInput=${field("system")}></textarea><//>
    <${Field} label="Prompt"><textarea class="wide" rows="4" value=${form.user} onInput=${field("user")}></textarea><//>
    <div class="row">${number("temperature", 0.1, 0, 2)}${number("max_tokens", 1, 1)}${number("top_p", 0.05, 0, 1)}${number("seed", 1, 0)}
      <label class="check"><input type="checkbox" checked=${form.logprobs} onChange=${(event) => change({ ...form, logprobs: event.target.checked })} /> log-probabilities on hover</label></div>
    <details><summary>Tools, JSON schema and other fields</summary>
      <${Field} label="Further fields of the request, as JSON" hint='{"response_format": {"type": "json_object"}}'>
        <textarea class="wide" rows="4" spellcheck="false" value=${form.more} onInput=${field("more")}></textarea><//></details>
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
      setWrong(new Error(`The further fields are no JSON: ${problem instanceof Error ? problem.message : problem}`));
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
