// A search over merges: its candidates by what they keep of each task, as points that arrive while it runs.

import { useState } from "../vendor/hooks.js";
import { get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Field, fixed, Refusal, Table, useLoaded } from "../js/parts.js";
import { linkTo, notify } from "../js/state.js";

const EVERY_MS = 1500;
const WIDE = 480;
const HIGH = 320;
const EDGE = 40;

/** Worst retention against mean retention. Both grow to the upper right. */
function Pareto({ candidates, winner, chosen, choose }) {
  const measured = candidates.filter((one) => one.worst !== null && one.mean !== null);
  if (!measured.length) return html`<p class="empty">Points appear as candidates are measured.</p>`;
  const most = Math.max(1, ...measured.map((one) => one.mean));
  const least = Math.min(0, ...measured.map((one) => one.worst));
  const x = (value) => EDGE + ((value - least) / (most - least)) * (WIDE - 2 * EDGE);
  const y = (value) => HIGH - EDGE - ((value - least) / (most - least)) * (HIGH - 2 * EDGE);
  const kind = (one) => [one.target === winner ? "winner" : one.on_front ? "front" : "point", one.model === chosen ? "chosen" : ""].join(" ");
  return html`<svg viewBox=${`0 0 ${WIDE} ${HIGH}`} role="group" aria-label="Candidates: worst retention to the right, mean retention upward">
    <line class="axis" x1=${EDGE} y1=${HIGH - EDGE} x2=${WIDE - EDGE} y2=${HIGH - EDGE} /><line class="axis" x1=${EDGE} y1=${EDGE} x2=${EDGE} y2=${HIGH - EDGE} />
    <text x=${WIDE - EDGE} y=${HIGH - 12} text-anchor="end">worst retention, to ${fixed(most)}</text><text x="8" y=${EDGE - 12}>mean retention, to ${fixed(most)}</text>
    ${measured.map((one) => html`<circle key=${one.target} class=${kind(one)} cx=${x(one.worst)} cy=${y(one.mean)} r="6" tabindex="0" role="button"
      aria-label=${`${one.model}: worst ${fixed(one.worst)}, mean ${fixed(one.mean)}`} onClick=${() => choose(one.model)}
      onKeyDown=${(event) => event.key === "Enter" && choose(one.model)}><title>${one.model}: ${fixed(one.worst)}, ${fixed(one.mean)}</title></circle>`)}</svg>`;
}

export default function Sweep({ id }) {
  const path = `/admin/v1/sweeps/${inPath(id)}`;
  const report = useLoaded((signal) => get(path, signal), [path], EVERY_MS);
  const [chosen, setChosen] = useState("");
  const [name, setName] = useState("");
  if (!report.value) return html`<h1>Sweep</h1><${Refusal} error=${report.error} />`;
  const { evaluation, candidates, winner } = report.value;
  const picked = chosen || candidates.find((one) => one.target === winner)?.model || "";
  async function promote() {
    await send("POST", `${path}:promote?wait_s=30`, { name, candidate: picked });
    notify(`${name} is a merge of ${picked}`);
    location.hash = linkTo("adapters", name);
  }
  const sorted = [...candidates].sort((a, b) => (b.worst ?? -Infinity) - (a.worst ?? -Infinity));
  return html`<p><a href=${linkTo("evaluations")}>All evaluations</a></p><h1>${evaluation.label || id}</h1>
    <p><progress value=${evaluation.done} max=${evaluation.total} aria-label="measured"></progress> ${evaluation.done} of ${evaluation.total}, ${evaluation.state}</p>
    ${evaluation.error && html`<p class="refusal">${evaluation.error.message}</p>`}
    <${Pareto} candidates=${candidates} winner=${winner} chosen=${picked} choose=${setChosen} />
    ${picked && html`<div class="row"><code>${picked}</code> <a href=${`${linkTo("lab")}?recipe=${inPath(picked)}`}>Open in the lab</a>
      <${Field} label="Name"><input value=${name} maxlength="128" onInput=${(event) => setName(event.target.value)} /><//>
      <${Action} label="Promote" disabled=${!name} does=${promote} /></div>`}
    <${Table} caption="Candidates" head=${["candidate", "worst", "mean", "by task"]} rows=${sorted.map((one) => [
      html`<button type="button" class="quiet" aria-pressed=${one.model === picked} onClick=${() => setChosen(one.model)}>${one.model}</button>`, fixed(one.worst), fixed(one.mean),
      Object.entries(one.retention).map(([task, value]) => `${task} ${fixed(value)}`).join(", ")])} />
    <p><${CopyCurl} path=${path} /></p>`;
}
