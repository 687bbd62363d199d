// Items asked of several models, and searches over merges: made, followed, compared.

import { useState } from "../vendor/hooks.js";
import { get, send } from "../js/api.js";
import { html } from "../js/html.js";
import { example, itemsOf } from "../js/items.js";
import { Action, CopyCurl, Field, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { allowed, linkTo, query } from "../js/state.js";
import Evaluation from "./evaluation.js";
import Sweep from "./sweep.js";

const EVERY_MS = 2000;
/** The body of a search over the weights of some adapters, each measured on the task of its own name. */
function sweepOf(adapters, items, trials) {
  const weights = Object.fromEntries(adapters.map((name) => [name, { low: 0.2, high: 1.2 }]));
  const tasks = Object.fromEntries(adapters.map((name) => [name.replace(/[^\w.-]/g, "-"), { adapter: name }]));
  return { label: "from the console", tasks, items, search: { kind: "random", trials, seed: 1, weights } };
}

function Create({ done }) {
  const asked = query().get("sweep");
  const [kind, setKind] = useState(asked ? "sweep" : "evaluation");
  const [targets, setTargets] = useState(asked ?? "");
  const [items, setItems] = useState(JSON.stringify(example(asked?.split(",") ?? ["all"]), null, 1));
  const [trials, setTrials] = useState(16);
  async function create() {
    const names = targets.split(kind === "sweep" ? "," : "\n").map((name) => name.trim()).filter(Boolean);
    const read = itemsOf(items);
    const made = kind === "sweep"
      ? await send("POST", "/admin/v1/sweeps", sweepOf(names, read, trials))
      : await send("POST", "/admin/v1/evaluations", { label: "from the console", targets: names, metrics: ["exact_match"], items: read });
    const { id } = made.evaluation ?? made;
    done();
    location.hash = linkTo("evaluations", kind === "sweep" ? "sweep" : "one", id);
  }
  return html`<details open=${Boolean(asked)}><summary>New</summary>
    <div class="row"><${Field} label="Kind"><select value=${kind} onChange=${(event) => setKind(event.target.value)}>
        <option value="evaluation">evaluation</option><option value="sweep">sweep over weights</option></select><//>
      ${kind === "sweep" && html`<${Field} label="Candidates"><input type="number" min="1" max="64" value=${trials} onInput=${(event) => setTrials(Number(event.target.value))} /><//>`}</div>
    <${Field} label=${kind === "sweep" ? "Adapters, with commas; the items of each name it as their task" : "Targets, one a line"}>
      <textarea class="wide" rows="3" value=${targets} onInput=${(event) => setTargets(event.target.value)}></textarea><//>
    <${Field} label="Items: a JSON list, or one JSON object a line"><textarea class="wide" rows="6" spellcheck="false" value=${items} onInput=${(event) => setItems(event.target.value)}></textarea><//>
    <div class="row"><input type="file" aria-label="items from a file" accept=".json,.jsonl,.txt" onChange=${async (event) => setItems(await event.target.files[0].text())} />
    <${Action} label="Start" disabled=${!targets.trim()} does=${create} /></div></details>`;
}

function List() {
  const list = useLoaded((signal) => get("/admin/v1/evaluations?limit=100", signal), [], EVERY_MS);
  return html`<h1>Evaluations and sweeps</h1>${allowed.value?.changes && html`<${Create} done=${list.again} />`}<${Refusal} error=${list.error} />
    ${list.value && html`<${Table} caption="Evaluations" head=${["kind", "label", "targets", "state", "measured", "when"]} rows=${list.value.data.map((one) => [
      html`<a href=${linkTo("evaluations", one.kind === "sweep" ? "sweep" : "one", one.id)}>${one.kind}</a>`, one.label || one.id,
      one.targets.length, one.state, `${one.done} of ${one.total}`, when(one.created_at)])} />`}
    <p><${CopyCurl} path="/admin/v1/evaluations" /></p>`;
}

export default function Evaluations({ rest: [kind, id] }) {
  if (!id) return html`<${List} />`;
  return kind === "sweep" ? html`<${Sweep} key=${id} id=${id} />` : html`<${Evaluation} key=${id} id=${id} />`;
}
