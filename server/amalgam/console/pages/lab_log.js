// The blends that answered in this tab, newest first, and those that were kept under a name in this browser.

import { useState } from "../vendor/hooks.js";
import { html } from "../js/html.js";
import { Table } from "../js/parts.js";

const KEPT = 50;
const TRIED = "amalgam.tried";
const PRESETS = "amalgam.presets";

/** @typedef {{expression: string, answer: string, firstMs: number}} Tried */

/** The log of this tab, each blend once. */
export function useTried() {
  const [tried, setTried] = useState(() => /** @type {Tried[]} */ (JSON.parse(sessionStorage.getItem(TRIED) ?? "[]")));
  function answered(expression, answer, firstMs) {
    setTried((rows) => {
      const next = [{ expression, answer, firstMs }, ...rows.filter((row) => row.expression !== expression)].slice(0, KEPT);
      sessionStorage.setItem(TRIED, JSON.stringify(next));
      return next;
    });
  }
  return { tried, answered };
}

/** Expressions by name; they hold nothing that was asked or answered. @returns {Record<string, string>} */
const stored = () => JSON.parse(localStorage.getItem(PRESETS) ?? "{}");

function Presets({ text, load }) {
  const [presets, setPresets] = useState(stored);
  const [name, setName] = useState("");
  function put(next) {
    localStorage.setItem(PRESETS, JSON.stringify(next));
    setPresets(next);
  }
  function keep(event) {
    event.preventDefault();
    put({ ...presets, [name.trim()]: text });
    setName("");
  }
  const without = (gone) => Object.fromEntries(Object.entries(presets).filter(([one]) => one !== gone));
  return html`<h2>Presets</h2>
    <form class="row" onSubmit=${keep}><input aria-label="name of the preset" placeholder="name" maxlength="64" value=${name} onInput=${(event) => setName(event.target.value)} />
      <button disabled=${!name.trim() || !text}>Keep these weights</button></form>
    <${Table} caption="Presets" head=${["name", "recipe", ""]} empty="Weights that are kept stay in this browser, under a name."
      rows=${Object.entries(presets).map(([one, expression]) => [
        html`<button type="button" class="quiet" onClick=${() => load(expression)}>${one}</button>`, html`<code>${expression}</code>`,
        html`<button type="button" class="quiet" aria-label=${`forget ${one}`} onClick=${() => put(without(one))}>×</button>`])} />`;
}

/** @param {{tried: Tried[], text: string, load: (expression: string) => void}} given */
export default function Log({ tried, text, load }) {
  return html`<h2>Tried</h2>
    <${Table} caption="Blends tried" head=${["recipe", "answer", "first token, ms"]} rows=${tried.map((row) => [
      html`<button type="button" class="quiet" onClick=${() => load(row.expression)}>${row.expression}</button>`,
      row.answer.slice(0, 120), Math.round(row.firstMs)])} empty="Every blend that answered is kept here, until this tab is closed." />
    <${Presets} text=${text} load=${load} />`;
}
