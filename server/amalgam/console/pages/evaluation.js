// One evaluation: means by task, and two targets compared item by item.

import { useState } from "../vendor/hooks.js";
import { download, get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Field, fixed, Refusal, Table, useLoaded } from "../js/parts.js";
import { linkTo } from "../js/state.js";

const EVERY_MS = 1500;
/** Rows of a table that is still read by a person. */
const SHOWN = 200;

/** By task: on how many items the right one is better, and how likely that is by chance. */
function Standing({ path, pair, done }) {
  const [baseline, candidate] = pair;
  const found = useLoaded((signal) => get(`${path}/compare?baseline=${baseline}&candidate=${candidate}`, signal), [path, baseline, candidate, done]);
  return html`<${Refusal} error=${found.error} />
    <${Table} caption="Comparison" head=${["task", "metric", "left", "right", "right better", "left better", "by chance"]} rows=${(found.value?.data ?? []).map((row) => [
      row.task, row.metric, fixed(row.baseline, 3), fixed(row.candidate, 3), row.wins, row.losses, row.p_value < 0.001 ? "less than 0.1 %" : `${fixed(100 * row.p_value, 1)} %`])} />`;
}

/** What was asked, in one line: the last that a user says, or the text to continue. @param {any} item */
function question(item) {
  if (!item) return "";
  const turns = item.messages?.filter((turn) => turn.role === "user") ?? [];
  const said = item.prompt ?? turns[turns.length - 1]?.content ?? "";
  return typeof said === "string" ? said : JSON.stringify(said);
}

/** A question in a cell, whole on hover, with what was wanted. */
function Asked({ item }) {
  const text = question(item);
  return html`<div class="cell" title=${text}>${text.slice(0, 300)}</div>${item?.reference && html`<small>wanted: ${item.reference.slice(0, 120)}</small>`}`;
}

/** The items of two targets side by side, those on which they differ first. */
function Compare({ path, targets, done }) {
  const [pair, setPair] = useState([0, Math.min(1, targets.length - 1)]);
  const results = useLoaded((signal) => Promise.all(pair.map((target) => get(`${path}/results?target=${target}&limit=500`, signal))), [path, done, ...pair]);
  const items = useLoaded((signal) => get(`${path}/items?limit=500`, signal), [path]);
  const asked = new Map((items.value?.data ?? []).map((item) => [item.item, item]));
  const choose = (side) => (event) => setPair(pair.with(side, Number(event.target.value)));
  const select = (side, label) => html`<${Field} label=${label}><select value=${pair[side]} onChange=${choose(side)}>
    ${targets.map((target, at) => html`<option key=${at} value=${at}>${target.model}</option>`)}</select><//>`;
  const [left = [], right = []] = (results.value ?? []).map((page) => page.data);
  const other = new Map(right.map((one) => [one.item, one]));
  const score = (one) => Object.values(one?.values ?? {}).map((value) => fixed(value)).join(", ");
  const rows = left.map((one) => ({ one, two: other.get(one.item) }));
  const differs = ({ one, two }) => (score(one) === score(two) ? 1 : 0);
  rows.sort((a, b) => differs(a) - differs(b) || a.one.item - b.one.item);
  return html`<h2>Item by item</h2><div class="row">${select(0, "Left")}${select(1, "Right")}</div><${Standing} path=${path} pair=${pair} done=${done} />
    <${Refusal} error=${results.error ?? items.error} />
    ${rows.length > SHOWN && html`<p><small>${SHOWN} of ${rows.length}, those that differ first; all are in the CSV file.</small></p>`}
    <${Table} caption="Answers" head=${["item", "asked", "left", "", "right", ""]} rows=${rows.slice(0, SHOWN).map(({ one, two }) => [
      one.item, html`<${Asked} item=${asked.get(one.item)} />`, one.answer ?? "", score(one), two?.answer ?? "", score(two)])} />`;
}

export default function Evaluation({ id }) {
  const path = `/admin/v1/evaluations/${inPath(id)}`;
  const report = useLoaded((signal) => get(path, signal), [path], EVERY_MS);
  if (!report.value) return html`<h1>Evaluation</h1><${Refusal} error=${report.error} />`;
  const { evaluation, table, refused } = report.value;
  const act = (verb) => async () => {
    await send("POST", `${path}:${verb}`);
    await report.again();
  };
  return html`<p><a href=${linkTo("evaluations")}>All evaluations</a></p><h1>${evaluation.label || id}</h1>
    <p><progress value=${evaluation.done} max=${evaluation.total} aria-label="measured"></progress> ${evaluation.done} of ${evaluation.total}, ${evaluation.state}</p>
    ${evaluation.error && html`<p class="refusal">${evaluation.error.message}</p>`}
    <p class="row">${evaluation.state === "running" && html`<${Action} label="Stop" does=${act("cancel")} />`}
      ${["interrupted", "failed", "cancelled"].includes(evaluation.state) && html`<${Action} label="Go on" does=${act("resume")} />`}
      <${Action} label="Download as CSV" needs="reads" does=${() => download(`${path}/export?format=csv`, `${id}.csv`)} /> <${CopyCurl} path=${path} /></p>
    <${Table} caption="Means" head=${["model", "task", "metric", "mean", "items"]} rows=${table.map((cell) => [cell.model, cell.task, cell.metric, fixed(cell.mean, 3), cell.count])} />
    ${refused.map((one) => html`<p class="warning" key=${`${one.target} ${one.code}`}>${evaluation.targets[one.target]?.model}: ${one.count} items ended with <code>${one.code}</code></p>`)}
    ${evaluation.targets.length > 1 && html`<${Compare} path=${path} targets=${evaluation.targets} done=${evaluation.done} />`}`;
}
