// A search over merges: its candidates by what they keep of each task, as points that arrive while it runs.

import { useMemo, useState } from "../vendor/hooks.js";
import { get, inPath, send } from "../js/api.js";
import { Chart, colour } from "../js/chart.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Field, fixed, Refusal, Table, useLoaded } from "../js/parts.js";
import { linkTo, notify } from "../js/state.js";

const EVERY_MS = 1500;

/** Worst retention against mean retention. Both grow to the upper right. */
function pareto(candidates, winner, chosen) {
  const measured = candidates.filter((one) => one.worst !== null && one.mean !== null);
  const series = (name, symbolSize, color, wanted) => ({
    name, type: "scatter", symbolSize, itemStyle: { color },
    data: measured.filter(wanted).map((one) => ({
      value: [one.worst, one.mean], name: one.model,
      itemStyle: one.model === chosen ? { borderColor: colour("text"), borderWidth: 2 } : {},
    })),
  });
  const isWinner = (one) => one.target === winner;
  return measured.length ? {
    grid: { left: 60, right: 24, top: 40, bottom: 50 },
    legend: {},
    tooltip: { formatter: ({ data }) => `${data.name}\nworst ${fixed(data.value[0])}, mean ${fixed(data.value[1])}` },
    xAxis: { type: "value", scale: true, name: "worst retention of a task", nameLocation: "middle", nameGap: 30 },
    yAxis: { type: "value", scale: true, name: "mean retention", nameLocation: "middle", nameGap: 42 },
    series: [
      series("beaten by another", 9, colour("faint"), (one) => !one.on_front && !isWinner(one)),
      series("on the front", 12, colour("accent"), (one) => one.on_front && !isWinner(one)),
      series("winner", 15, colour("good"), isWinner),
    ],
  } : null;
}

export default function Sweep({ id }) {
  const path = `/admin/v1/sweeps/${inPath(id)}`;
  const report = useLoaded((signal) => get(path, signal), [path], EVERY_MS);
  const [chosen, setChosen] = useState("");
  const [name, setName] = useState("");
  const { evaluation, candidates = [], winner = null } = report.value ?? {};
  const picked = chosen || candidates.find((one) => one.target === winner)?.model || "";
  const option = useMemo(() => pareto(candidates, winner, picked), [report.value, picked]);
  if (!report.value) return html`<h1>Sweep</h1><${Refusal} error=${report.error} />`;
  async function promote() {
    await send("POST", `${path}:promote?wait_s=30`, { name, candidate: picked });
    notify(`${name} is a merge of ${picked}`);
    location.hash = linkTo("adapters", name);
  }
  const sorted = [...candidates].sort((a, b) => (b.worst ?? -Infinity) - (a.worst ?? -Infinity));
  return html`<p><a href=${linkTo("evaluations")}>All evaluations</a></p><h1>${evaluation.label || id}</h1>
    <p><progress value=${evaluation.done} max=${evaluation.total} aria-label="measured"></progress> ${evaluation.done} of ${evaluation.total}, ${evaluation.state}</p>
    ${evaluation.error && html`<p class="refusal">${evaluation.error.message}</p>`}
    ${option ? html`<${Chart} option=${option} pick=${(data) => setChosen(data.name)}
      label="Candidates by the worst and the mean of what they keep; the table below has each" />` : html`<p class="empty">Points appear as candidates are measured.</p>`}
    ${picked && html`<div class="row"><code>${picked}</code> <a href=${`${linkTo("lab")}?recipe=${inPath(picked)}`}>Open in the lab</a>
      <${Field} label="Name"><input value=${name} maxlength="128" onInput=${(event) => setName(event.target.value)} /><//>
      <${Action} label="Promote" disabled=${!name} does=${promote} /></div>`}
    <${Table} caption="Candidates" head=${["candidate", "worst", "mean", "by task"]} rows=${sorted.map((one) => [
      html`<button type="button" class="quiet" aria-pressed=${one.model === picked} onClick=${() => setChosen(one.model)}>${one.model}</button>`, fixed(one.worst), fixed(one.mean),
      Object.entries(one.retention).map(([task, value]) => `${task} ${fixed(value)}`).join(", ")])} />
    <p><${CopyCurl} path=${path} /></p>`;
}
