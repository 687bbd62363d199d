// One prompt, asked of the blend that the sliders mean, of every parent and of the base model, side by side.

import { useEffect, useState } from "../vendor/hooks.js";
import { Answer, useAnswer } from "../js/answer.js";
import { get } from "../js/api.js";
import { messagesOf, textOf } from "../js/chat.js";
import { html } from "../js/html.js";
import { Field, useLoaded } from "../js/parts.js";
import Grid from "./lab_grid.js";

const REST_MS = 60;

/** @param {{model: string, title: string, prompt: string, tokens: number, told?: null | ((model: string, answer: string, firstMs: number) => void)}} given */
function Column({ model, title, prompt, tokens, told = null }) {
  const body = prompt.trim() && model ? { model, messages: messagesOf("", prompt), max_tokens: tokens, temperature: 0 } : null;
  const { answer, error } = useAnswer(body, REST_MS);
  useEffect(() => {
    if (told && answer.ended && answer.firstMs !== null) told(model, textOf(answer), answer.firstMs);
  }, [answer.ended, model]);
  return html`<section class="column" aria-label=${title}><h3>${title}</h3><${Answer} answer=${answer} error=${error} /></section>`;
}

export default function Answers({ lab, text, answered, change }) {
  const [prompt, setPrompt] = useState("");
  const [tokens, setTokens] = useState(48);
  const [grid, setGrid] = useState(false);
  const engine = useLoaded((signal) => get("/admin/v1/engine", signal), []);
  const base = engine.value?.served_name ?? "";
  return html`<section aria-label="Answers"><div class="row">
      <${Field} label="Prompt"><textarea class="wide" rows="3" placeholder="What every parent and the blend are asked, again whenever a slider moves" value=${prompt} onInput=${(event) => setPrompt(event.target.value)}></textarea><//>
      <${Field} label="Tokens"><input type="number" min="1" max="512" value=${tokens} onChange=${(event) => setTokens(Number(event.target.value) || 1)} /><//></div>
    <div class="columns">
      <${Column} model=${text} title="The blend" prompt=${prompt} tokens=${tokens} told=${answered} />
      ${lab.inputs.map((input) => html`<${Column} key=${input.model} model=${input.model} title=${input.model} prompt=${prompt} tokens=${tokens} />`)}
      <${Column} model=${base} title="The base model" prompt=${prompt} tokens=${tokens} />
    </div>
    ${lab.inputs.length === 2 && html`<p><button type="button" aria-expanded=${grid} onClick=${() => setGrid(!grid)}>weights as a grid</button></p>`}
    ${grid && lab.inputs.length === 2 && html`<${Grid} lab=${lab} prompt=${prompt} tokens=${tokens} change=${change} />`}</section>`;
}
