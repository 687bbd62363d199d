// The adapters of a merge and their weights.

import { useEffect, useState } from "../vendor/hooks.js";
import { get, inPath } from "../js/api.js";
import { html } from "../js/html.js";
import { Field, Refusal, useLoaded } from "../js/parts.js";
import { diced, normalised, short } from "../js/recipe.js";

const LOWEST = -1;
const HIGHEST = 2;
const STEP = 0.05;
const MOST = 8;
const OFFERED = 50;
/** So many stand there to be clicked on; all are found by name. */
const NAMED = 12;

function Slider({ input, set, remove }) {
  const { model, weight, locked } = input;
  const change = (event) => set({ ...input, weight: Number(event.target.value) });
  return html`<li class="slider">
    <span class="name">${model}</span>
    <input type="range" aria-label=${`weight of ${model}`} min=${LOWEST} max=${HIGHEST} step=${STEP} value=${weight} onInput=${change} />
    <input type="number" aria-label=${`weight of ${model}, as a number`} step=${STEP} value=${short(weight)} onChange=${change} />
    <button type="button" class="quiet" aria-pressed=${locked} onClick=${() => set({ ...input, locked: !locked })}>lock</button>
    <button type="button" class="quiet" aria-label=${`leave out ${model}`} onClick=${remove}>×</button></li>`;
}

/** Adapters whose names have what was typed, the one of exactly that name among them. @param {string} wanted @param {AbortSignal} signal */
async function named(wanted, signal) {
  const page = await get(`/admin/v1/adapters?limit=${OFFERED}&search=${inPath(wanted)}`, signal);
  if (!page.next_cursor || !wanted || page.data.some((one) => one.name === wanted)) return { wanted, names: page.data };
  // Of many that have it in their names, the one that has no other need not be on the first page.
  const exact = await get(`/admin/v1/adapters/${inPath(wanted)}`, signal).catch(() => null);
  return { wanted, names: exact ? [exact, ...page.data] : page.data };
}

/** The server searches, since there may be thousands. */
function Add({ inputs, add }) {
  const [wanted, setWanted] = useState("");
  const [sure, setSure] = useState(false);
  const found = useLoaded((signal) => named(wanted, signal), [wanted]);
  const free = (found.value?.names ?? []).filter((one) => one.default_version !== null && !inputs.some((input) => input.model === one.name));
  useEffect(() => {
    if (!wanted || found.value?.wanted !== wanted || !free.some((one) => one.name === wanted)) return;
    if (!sure && free.some((one) => one.name !== wanted && one.name.startsWith(wanted))) return;
    setWanted("");
    setSure(false);
    add(wanted);
  }, [sure, wanted, found.value]);
  /** What is picked from the list is meant; what is typed is meant where no longer name begins so, or once Enter or Tab says so. */
  function input(event) {
    setWanted(event.target.value.replace(/[^\w.-]/g, ""));
    setSure(!/^(insert(Text|CompositionText|FromPaste)|delete)/.test(event.inputType ?? ""));
  }
  return html`<${Field} label="Add an adapter" hint=${inputs.length ? "" : "two of them make a blend; each gets a slider"}>
    <input list="adapters" value=${wanted} maxlength="128" onInput=${input} onChange=${() => setSure(true)} />
    <datalist id="adapters">${free.map((one) => html`<option key=${one.name} value=${one.name}>${one.description}</option>`)}</datalist><//>
    ${!wanted && free.length > 0 && html`<p class="row">${free.slice(0, NAMED).map((one) => html`<button type="button" class="chip" key=${one.name} title=${one.description} onClick=${() => add(one.name)}>+ ${one.name}</button>`)}
      ${free.length > NAMED && html`<small>and others, by name</small>`}</p>`}
    <${Refusal} error=${found.error} />`;
}

export default function Inputs({ lab, change, undo }) {
  const { inputs } = lab;
  const set = (at) => (input) => change({ ...lab, inputs: inputs.with(at, input) });
  const add = (model) => change({ ...lab, inputs: [...inputs, { model, weight: inputs.length ? 0.5 : 1, locked: false }] });
  return html`<section class="inputs" aria-label="Inputs">
    <ul>${inputs.map((input, at) => html`<${Slider} key=${input.model} input=${input} set=${set(at)}
      remove=${() => change({ ...lab, inputs: inputs.toSpliced(at, 1) })} />`)}</ul>
    ${inputs.length < MOST && html`<${Add} inputs=${inputs} add=${add} />`}
    <p class="row">
      <button type="button" disabled=${!inputs.length} onClick=${() => change({ ...lab, inputs: normalised(inputs) })}>normalise</button>
      <button type="button" disabled=${!inputs.length} onClick=${() => change({ ...lab, inputs: diced(inputs, Math.random) })}>dice</button>
      <button type="button" disabled=${!undo} onClick=${undo}>undo</button></p></section>`;
}
