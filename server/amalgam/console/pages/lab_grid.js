// Two weights as a table: what each pair of them answers to the prompt, and how it scores on a set of items.

import { useEffect, useRef, useState } from "../vendor/hooks.js";
import { get, inPath, send } from "../js/api.js";
import { chat, messagesOf, textOf } from "../js/chat.js";
import { html } from "../js/html.js";
import { example, itemsOf } from "../js/items.js";
import { Action, Field, fixed, Refusal, Table, useLoaded } from "../js/parts.js";
import { short, written } from "../js/recipe.js";
import { linkTo } from "../js/state.js";

const WEIGHTS = "0, 0.25, 0.5, 0.75, 1";
const MOST = 7;
const EVERY_MS = 1000;
const METRICS = ["exact_match", "contains", "json_equal", "json_valid", "log_likelihood"];

/** Numbers of a line, each once, no more than a table of answers can show. @param {string} text */
function numbers(text) {
  const found = text.split(",").map((part) => part.trim()).filter(Boolean).map(Number).filter(Number.isFinite);
  return [...new Set(found)].slice(0, MOST);
}

/** The mean of all items of each target, by what was asked for; of targets that were measured. */
function scores(report) {
  const sums = new Map();
  for (const cell of report?.table ?? []) {
    const sum = sums.get(cell.model) ?? sums.set(cell.model, { all: 0, count: 0 }).get(cell.model);
    sum.all += cell.mean * cell.count;
    sum.count += cell.count;
  }
  return new Map([...sums].map(([model, { all, count }]) => [model, all / count]));
}

/** Items, and by what their answers are scored. */
function Items({ models, cells, begun }) {
  const [items, setItems] = useState(JSON.stringify(example(["all"]), null, 1));
  const [metric, setMetric] = useState(METRICS[0]);
  async function score() {
    const body = { label: `grid of ${models.join(" and ")}`, targets: cells, metrics: [metric], items: itemsOf(items) };
    const made = await send("POST", "/admin/v1/evaluations", body);
    begun((made.evaluation ?? made).id);
  }
  return html`<details><summary>Score it by a set of items</summary>
    <${Field} label="Items: a JSON list, or one JSON object a line"><textarea class="wide" rows="5" spellcheck="false" value=${items} onInput=${(event) => setItems(event.target.value)}></textarea><//>
    <div class="row"><input type="file" aria-label="items from a file" accept=".json,.jsonl,.txt" onChange=${async (event) => setItems(await event.target.files[0].text())} />
      <${Field} label="Metric"><select value=${metric} onChange=${(event) => setMetric(event.target.value)}>${METRICS.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select><//>
      <${Action} label="score the grid" disabled=${!cells.length} does=${score} /></div></details>`;
}

/** What every pair answers to the prompt, one after another: a client may build only so many blends a minute. */
function useAnswers(cells, prompt, tokens) {
  const [answers, setAnswers] = useState(/** @type {Record<string, string>} */ ({}));
  const running = useRef(new AbortController());
  // What is left of a grid that nobody looks at any more is not asked.
  useEffect(() => () => running.current.abort(), []);
  async function fill() {
    setAnswers({});
    const { signal } = running.current;
    for (const model of cells) {
      let text = "";
      for await (const state of chat({ model, messages: messagesOf("", prompt), max_tokens: tokens, temperature: 0 }, signal)) text = textOf(state);
      setAnswers((found) => ({ ...found, [model]: text }));
    }
  }
  return { answers, fill };
}

export default function Grid({ lab, prompt, tokens, change }) {
  const [first, second] = lab.inputs;
  const [wanted, setWanted] = useState("");
  const [steps, setSteps] = useState(WEIGHTS);
  const [scored, setScored] = useState("");
  const weights = numbers(steps);
  const weighted = (one, other) => [{ ...first, weight: one }, { ...second, weight: other }];
  /** The text of one cell; where both weights are 0 there is nothing to ask. */
  const cell = (one, other) => (one === 0 && other === 0 ? "" : written({ ...lab, inputs: weighted(one, other) }));
  const cells = weights.flatMap((one) => weights.map((other) => cell(one, other))).filter(Boolean);
  const { answers, fill } = useAnswers(cells, prompt, tokens);
  const report = useLoaded((signal) => (scored ? get(`/admin/v1/evaluations/${inPath(scored)}`, signal) : Promise.resolve(null)), [scored], EVERY_MS);
  const means = scores(report.value);
  const best = Math.max(...means.values());
  const asked = Object.values(answers);
  const has = (text) => wanted !== "" && text !== undefined && text.toLowerCase().includes(wanted.toLowerCase());
  const evaluation = report.value?.evaluation;

  function shown(one, other) {
    const model = cell(one, other);
    const mean = means.get(model);
    if (!model) return html`<span class="cell">–</span>`;
    return html`<div class=${has(answers[model]) ? "cell wanted" : "cell"} title=${model}>
      <button type="button" class="quiet" aria-label=${`take ${model}`} onClick=${() => change({ ...lab, inputs: weighted(one, other) })}>${mean === undefined ? "take" : fixed(mean, 3)}</button>
      ${mean !== undefined && mean === best && html`<strong>best</strong> `}${answers[model] ?? ""}</div>`;
  }
  return html`<div class="row"><${Field} label="Weights of both"><input value=${steps} onInput=${(event) => setSteps(event.target.value)} /><//>
      <${Action} label="fill the grid" needs="reads" disabled=${!prompt.trim()} does=${fill} />
      <${Field} label="Mark answers that contain"><input value=${wanted} onInput=${(event) => setWanted(event.target.value)} /><//>
      ${wanted && asked.length > 0 && html`<span>${asked.filter(has).length} of ${asked.length}</span>`}</div>
    <${Items} models=${[first.model, second.model]} cells=${cells} begun=${setScored} />
    <${Refusal} error=${report.error} />
    ${evaluation && html`<p><progress value=${evaluation.done} max=${evaluation.total} aria-label="measured"></progress> ${evaluation.done} of ${evaluation.total}, ${evaluation.state};
      <a href=${linkTo("evaluations", "one", scored)}>item by item</a></p>`}
    <${Table} caption=${`Answers by the weights of ${first.model} and ${second.model}`} head=${[`${first.model} ↓ ${second.model} →`, ...weights.map(short)]}
      rows=${weights.map((one) => [short(one), ...weights.map((other) => shown(one, other))])} />`;
}
