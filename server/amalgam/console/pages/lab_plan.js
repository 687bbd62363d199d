// What a merge would do, in numbers that follow the sliders: rank, what is kept, and how its inputs agree by module.

import { useEffect, useState } from "../vendor/hooks.js";
import { send } from "../js/api.js";
import { html } from "../js/html.js";
import { fixed, Refusal, size, Table } from "../js/parts.js";

const REST_MS = 500;
const MODULE = /layers\.(\d+)\..*?([a-z_]+)$/;

/** The plan of a text that has rested for a moment. @param {string} text */
function usePlan(text) {
  const [plan, setPlan] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    setError(null);
    if (!text) {
      setPlan(null);
      return undefined;
    }
    const abort = new AbortController();
    const timer = setTimeout(() => {
      send("POST", "/admin/v1/merges:plan", { name: "plan", expression: text }, abort.signal).then(setPlan, (problem) => !abort.signal.aborted && setError(problem));
    }, REST_MS);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [text]);
  return { plan, error };
}

/** A value of each layer and kind of module, as a map of colours from the least to the greatest, with the number behind each. */
function HeatMap({ title, modules, value }) {
  const cells = new Map();
  const kinds = new Set();
  const layers = new Set();
  for (const module of modules) {
    const match = MODULE.exec(module.name);
    if (!match) continue;
    layers.add(Number(match[1]));
    kinds.add(match[2]);
    cells.set(`${match[1]} ${match[2]}`, value(module));
  }
  const columns = [...layers].sort((one, other) => one - other);
  if (!columns.length) return null;
  const [low, high] = [Math.min(...cells.values()), Math.max(...cells.values())];
  /** Blue below the middle, orange above it. */
  const colour = (number) => {
    const share = Math.max(0, Math.min(1, high > low ? (number - low) / (high - low) : 0.5));
    return { background: `color-mix(in oklab, var(--cold) ${Math.round((1 - share) * 100)}%, var(--warm))` };
  };
  return html`<figure><figcaption>${title} <small>${fixed(low)} to ${fixed(high)}, by layer</small></figcaption><div class="scroll" tabindex="0" role="group" aria-label=${title}><table class="heat">
    <thead><tr><th scope="col"><span class="unseen">module</span></th>${columns.map((layer) => html`<th scope="col" key=${layer}>${layer}</th>`)}</tr></thead>
    <tbody>${[...kinds].map((kind) => html`<tr key=${kind}><th scope="row">${kind}</th>${columns.map((layer) => {
      const number = cells.get(`${layer} ${kind}`);
      return number === undefined ? html`<td key=${layer}></td>` : html`<td key=${layer} style=${colour(number)} title=${`layer ${layer}, ${kind}: ${fixed(number, 3)}`}><span class="unseen">${fixed(number)}</span></td>`;
    })}</tr>`)}</tbody></table></div></figure>`;
}

/** The mean over pairs of inputs. @param {number[][]} matrix */
function pairs(matrix) {
  let sum = 0;
  let count = 0;
  for (let row = 0; row < matrix.length; row++)
    for (let column = 0; column < row; column++) {
      sum += matrix[row][column];
      count++;
    }
  return count ? sum / count : 0;
}

export default function Plan({ text }) {
  const { plan, error } = usePlan(text);
  if (error) return html`<${Refusal} error=${error} />`;
  if (!plan) return null;
  const forecast = plan.forecast;
  const overall = forecast?.overall ?? {};
  return html`<section aria-label="Plan"><h2>What this merge would do</h2>
    <dl class="figures">
      <div class="figure"><dt>rank</dt><dd>${plan.rank} <small>of ${plan.exact_rank} exact</small></dd></div>
      <div class="figure"><dt>energy kept</dt><dd>${fixed(forecast?.energy_kept, 3)}</dd></div>
      <div class="figure"><dt>size</dt><dd>${size(plan.output_bytes)}</dd></div>
      <div class="figure"><dt>time to compute</dt><dd>${fixed(forecast?.compute_s, 1)} <small>s</small></dd></div>
      <div class="figure"><dt>modules</dt><dd>${plan.modules}</dd></div></dl>
    ${plan.warnings.map((warning) => html`<p class="warning" key=${warning}>${warning}</p>`)}
    ${overall.inputs && html`<${Table} caption="Inputs" head=${["input", "norm", "retention"]}
      rows=${overall.inputs.map((input, at) => [input, fixed(overall.norms?.[at]), fixed(overall.retention?.[at])])} />`}
    ${forecast && plan.recipe.inputs.length > 1 && html`<div class="maps">
      <${HeatMap} title="Energy kept" modules=${forecast.modules.filter((one) => one.result)} value=${(one) => one.result.energy_kept} />
      <${HeatMap} title="Cosine of the inputs" modules=${forecast.modules} value=${(one) => pairs(one.given.cosine)} />
      <${HeatMap} title="Entries of opposite signs" modules=${forecast.modules} value=${(one) => pairs(one.given.sign_conflict)} /></div>`}</section>`;
}
