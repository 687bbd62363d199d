// Two weights as a table: what each pair of them answers to the prompt.

import { useEffect, useRef, useState } from "../vendor/hooks.js";
import { chat, messagesOf, textOf } from "../js/chat.js";
import { html } from "../js/html.js";
import { Action, Field, Table } from "../js/parts.js";
import { short, written } from "../js/recipe.js";

const WEIGHTS = [0, 0.25, 0.5, 0.75, 1];

export default function Grid({ lab, prompt, tokens }) {
  const [answers, setAnswers] = useState({});
  const [first, second] = lab.inputs;
  const [wanted, setWanted] = useState("");
  const running = useRef(new AbortController());
  // What is left of a grid that nobody looks at any more is not asked.
  useEffect(() => () => running.current.abort(), []);
  /** The text of one cell; where both weights are 0 there is nothing to ask. */
  const cell = (one, other) => written({ ...lab, inputs: [{ ...first, weight: one }, { ...second, weight: other }] });

  async function fill() {
    setAnswers({});
    const { signal } = running.current;
    // One after another: a client may build only so many blends a minute, and others are served meanwhile.
    for (const one of WEIGHTS)
      for (const other of WEIGHTS) {
        const model = cell(one, other);
        if (!model) continue;
        let text = "";
        for await (const state of chat({ model, messages: messagesOf("", prompt), max_tokens: tokens, temperature: 0 }, signal)) text = textOf(state);
        setAnswers((found) => ({ ...found, [model]: text }));
      }
  }
  const asked = Object.values(answers);
  const has = (text) => wanted !== "" && text !== undefined && text.toLowerCase().includes(wanted.toLowerCase());
  return html`<div class="row"><${Field} label="Mark answers that contain"><input value=${wanted} onInput=${(event) => setWanted(event.target.value)} /><//>
      ${wanted && asked.length > 0 && html`<span>${asked.filter(has).length} of ${asked.length}</span>`}</div>
    <${Action} label="fill the grid" needs="reads" disabled=${!prompt.trim()} does=${fill} />
    <${Table} caption=${`Answers by the weights of ${first.model} and ${second.model}`} head=${[`${first.model} ↓ ${second.model} →`, ...WEIGHTS.map(short)]}
      rows=${WEIGHTS.map((one) => [short(one), ...WEIGHTS.map((other) => html`<span class=${has(answers[cell(one, other)]) ? "cell wanted" : "cell"} title=${cell(one, other)}>${answers[cell(one, other)] ?? ""}</span>`)])} />`;
}
