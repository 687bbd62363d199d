// The adapters of a merge and their weights.

import { useState } from "../vendor/hooks.js";
import { html } from "../js/html.js";
import { Field } from "../js/parts.js";
import { diced, normalised, short } from "../js/recipe.js";

const LOWEST = -1;
const HIGHEST = 2;
const STEP = 0.05;
const MOST = 8;

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

export default function Inputs({ adapters, lab, change, undo }) {
  const [wanted, setWanted] = useState("");
  const { inputs } = lab;
  const free = adapters.filter((one) => one.default_version !== null && !inputs.some((input) => input.model === one.name));
  const set = (at) => (input) => change({ ...lab, inputs: inputs.with(at, input) });
  function add(name) {
    if (!free.some((one) => one.name === name)) return setWanted(name);
    setWanted("");
    return change({ ...lab, inputs: [...inputs, { model: name, weight: inputs.length ? 0.5 : 1, locked: false }] });
  }
  return html`<section class="inputs" aria-label="Inputs">
    <ul>${inputs.map((input, at) => html`<${Slider} key=${input.model} input=${input} set=${set(at)}
      remove=${() => change({ ...lab, inputs: inputs.toSpliced(at, 1) })} />`)}</ul>
    ${inputs.length < MOST && html`<${Field} label="Add an adapter"><input list="adapters" value=${wanted} onInput=${(event) => add(event.target.value)} />
      <datalist id="adapters">${free.map((one) => html`<option key=${one.name} value=${one.name}>${one.description}</option>`)}</datalist><//>`}
    <p class="row">
      <button type="button" disabled=${!inputs.length} onClick=${() => change({ ...lab, inputs: normalised(inputs) })}>normalise</button>
      <button type="button" disabled=${!inputs.length} onClick=${() => change({ ...lab, inputs: diced(inputs, Math.random) })}>dice</button>
      <button type="button" disabled=${!undo} onClick=${undo}>undo</button></p></section>`;
}
