// Where a version comes from, drawn: what went into what, with which weight; and any of it built again.

import { useMemo, useState } from "../vendor/hooks.js";
import { get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { layered } from "../js/layers.js";
import { Action, CopyCurl, fixed, Refusal, useLoaded, when } from "../js/parts.js";
import { short } from "../js/recipe.js";
import { linkTo, notify } from "../js/state.js";
import { Fitted } from "./job.js";

const WIDE = 190;
const HIGH = 56;
const COLUMN = 300;
const ROW = 80;
const PAD = 8;

/** A weight in words. */
const told = (weight) => (typeof weight === "number" ? short(weight) : weight === null ? "kept clear of" : "by layer");

/** A line from what went in to what came out, past what lies between, with its weight. @param {{edge: any, way: {x: number, y: number}[]}} given */
function Line({ edge, way }) {
  const left = ({ x }) => x * COLUMN + PAD;
  const middle = ({ y }) => y * ROW + HIGH / 2 + PAD;
  const steps = way.slice(1).map((to, at) => {
    const [x1, y1, x2, y2] = [left(way[at]) + WIDE, middle(way[at]), left(to), middle(to)];
    const bend = (x2 - x1) / 2;
    const through = at < way.length - 2 ? ` H${x2 + WIDE}` : "";
    return `C${x1 + bend},${y1} ${x2 - bend},${y2} ${through ? x2 : x2 - 5},${y2}${through}`;
  });
  const [from, next] = way;
  return html`<g class=${edge.role === "input" ? "edge" : "edge beside"}>
    <path d=${`M${left(from) + WIDE},${middle(from)} ${steps.join(" ")}`} marker-end="url(#arrow)" />
    <text x=${left(from) + WIDE + 12} y=${middle(from) + (middle(next) - middle(from)) * 0.12 + (middle(next) > middle(from) ? 14 : -5)}>${told(edge.weight)}</text></g>`;
}

function Graph({ graph, chosen, choose }) {
  const { nodes, edges, root } = graph;
  const { drawn, places, ways, columns, rows } = useMemo(() => {
    const known = new Set(nodes.map((node) => node.model));
    const shown = edges.filter((edge) => known.has(edge.input) && known.has(edge.output));
    return { drawn: shown, ...layered(root, [...known], shown) };
  }, [graph]);
  const [width, height] = [(columns - 1) * COLUMN + WIDE + 2 * PAD, (rows - 1) * ROW + HIGH + 2 * PAD];
  return html`<div class="scroll" tabindex="0" role="group" aria-label=${`Graph of ${root}`}>
    <div class="graph" style=${{ width: `${width}px`, height: `${height}px` }}>
      <svg width=${width} height=${height} aria-hidden="true">
        <defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" /></marker></defs>
        ${drawn.map((edge, at) => html`<${Line} key=${at} edge=${edge} way=${ways[at]} />`)}</svg>
      ${nodes.map((node) => {
        const { x, y } = places.get(node.model);
        return html`<button type="button" key=${node.model} class=${node.deleted ? "node gone" : "node"} aria-pressed=${node.model === chosen}
          style=${{ left: `${x * COLUMN + PAD}px`, top: `${y * ROW + PAD}px`, width: `${WIDE}px`, height: `${HIGH}px` }} onClick=${() => choose(node.model)}>
          <strong>${node.model}</strong><small>${node.recipe?.method ?? node.source}${node.fit ? ", fitted" : ""}${node.deleted ? ", deleted" : ""}</small></button>`;
      })}</div></div>`;
}

/** Build a version again, and tell whether it came out the same. @param {{name: string, version: number}} node */
async function rebuild(node) {
  const rebuilt = await send("POST", `/admin/v1/adapters/${inPath(node.name)}/versions/${node.version}:rebuild`);
  notify(rebuilt.identical
    ? `${rebuilt.model} was built again in ${fixed(rebuilt.seconds, 1)} s, and came out as the same bytes.`
    : `${rebuilt.model} was built again and came out otherwise: ${rebuilt.rebuilt_digest.slice(0, 12)}… instead of ${rebuilt.digest.slice(0, 12)}….`,
    rebuilt.identical ? "done" : "wrong");
}

/** One version of the graph: what it is, what it was made of, and the proof of that. */
function Node({ node, edges }) {
  const recipe = node.recipe;
  const parameters = Object.entries(recipe?.parameters ?? {}).filter(([, value]) => value !== null);
  const inputs = edges.filter((edge) => edge.output === node.model).map((edge) => (edge.weight === null ? `kept clear of ${edge.input}` : `${told(edge.weight)} × ${edge.input}`));
  const kept = Object.entries(node.kept?.inputs ?? {});
  return html`<div class="column" role="group" aria-label="Chosen version"><h3><a href=${linkTo("adapters", node.name)}>${node.model}</a></h3>
    <p>${recipe ? `${recipe.method}${recipe.space ? `, in the space ${recipe.space}` : ""}: ${inputs.join(", ")}` : `From ${node.source}, not merged here.`}
      ${parameters.length > 0 && html` <small>${parameters.map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", ")}</small>`}</p>
    ${node.fit && html`<${Fitted} fit=${node.fit} />`}
    ${kept.length > 0 && html`<p>It gives the same answers as ${kept.map(([name, one]) => `${name} to ${Math.round(one.answers * one.prompts)} of ${one.prompts} prompts, whose tokens have ${fixed(one.likelihood)} of their probability`).join("; ")}.</p>`}
    <p><small>rank ${node.rank}, made ${when(node.created_at)}, digest ${node.digest.slice(0, 16)}…</small></p>
    ${recipe && !node.deleted && html`<${Action} label="build it again and compare" does=${() => rebuild(node)} />`}</div>`;
}

/** @param {{name: string, number: number}} given */
export default function Lineage({ name, number }) {
  const path = `/admin/v1/adapters/${inPath(name)}/versions/${number}/lineage`;
  const graph = useLoaded((signal) => get(path, signal), [path]);
  const [chosen, setChosen] = useState("");
  if (graph.error) return html`<${Refusal} error=${graph.error} />`;
  if (!graph.value) return null;
  const { nodes, edges, root, truncated } = graph.value;
  const shown = nodes.find((node) => node.model === chosen) ?? nodes.find((node) => node.model === root) ?? nodes[0];
  return html`<div role="group" aria-label=${`Lineage of ${root}`}>
    <${Graph} graph=${graph.value} chosen=${shown.model} choose=${setChosen} />
    ${truncated && html`<p class="warning">There is more than is shown.</p>`}
    <${Node} node=${shown} edges=${edges} /> <p><${CopyCurl} path=${path} /></p></div>`;
}
