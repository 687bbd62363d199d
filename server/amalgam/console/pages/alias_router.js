// What chooses by content: what its fit came to, how it decides about a prompt, and the form that changes it.

import { useState } from "../vendor/hooks.js";
import { get, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Field, fixed, Refusal, Table, useLoaded } from "../js/parts.js";
import { allowed } from "../js/state.js";
import RouterForm from "./router_form.js";

/** Why a target was chosen. */
const REASONS = {
  score: "its score is the highest, reaches the threshold, and is the margin above the next",
  blend: "the two highest scores are close, and make a blend of both",
  below_threshold: "no score reaches the threshold",
  within_margin: "the two highest scores are closer than the margin",
  no_text: "nothing was said that can be compared",
};

function Found({ found }) {
  const best = found.scores[0]?.candidate;
  return html`<div role="status"><p>It goes to <strong>${found.model}</strong>: ${REASONS[found.reason] ?? found.reason}. <small>Threshold ${fixed(found.threshold, 3)}, margin ${fixed(found.margin, 3)}.</small></p>
    <${Table} caption="Scores" head=${["candidate", "score", ""]} empty="No score may be shown to this key." rows=${found.scores.map((one) => [
      one.candidate === best ? html`<strong>${one.candidate}</strong>` : one.candidate, html`<span class="number">${fixed(one.score, 3)}</span>`,
      html`<meter aria-label=${`score of ${one.candidate}`} min="0" max="1" low=${found.threshold} optimum="1" value=${Math.max(0, one.score)}></meter>`])} />
    ${found.nearest.length > 0 && html`<${Table} caption="Examples most like it" head=${["most like it", "candidate", "likeness"]}
      rows=${found.nearest.map((one) => [one.text.slice(0, 300), one.candidate, fixed(one.likeness, 2)])} />`}</div>`;
}

/** @param {{path: string}} given */
function Explain({ path }) {
  const [prompt, setPrompt] = useState("");
  const [found, setFound] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(null);
  if (!allowed.value?.changes) return null;
  async function explain(event) {
    event.preventDefault();
    setError(null);
    try {
      setFound(await send("POST", `${path}:explain`, { prompt }));
    } catch (problem) {
      setFound(null);
      setError(problem);
    }
  }
  return html`<form onSubmit=${explain}><${Field} label="How would it decide about this prompt?"><textarea class="wide" rows="2" value=${prompt} onInput=${(event) => setPrompt(event.target.value)}></textarea><//>
      <p class="row"><button disabled=${!prompt.trim()}>Explain</button> <${CopyCurl} method="POST" path=${`${path}:explain`} body=${{ prompt }} /></p></form>
    <${Refusal} error=${error} />${found && html`<${Found} found=${found} />`}`;
}

/** Opened when somebody wants to change it: its examples may be many. */
function Change({ alias, path, saved }) {
  const [open, setOpen] = useState(false);
  const kept = useLoaded((signal) => (open ? get(`${path}/examples`, signal) : Promise.resolve(null)), [path, alias.revision, open]);
  if (!allowed.value?.changes) return null;
  return html`<details open=${open} onToggle=${(event) => setOpen(event.target.open)}><summary>Change the router</summary><${Refusal} error=${kept.error} />
    ${open && kept.value && html`<${RouterForm} key=${alias.revision} name=${alias.name} path=${path} revision=${alias.revision} router=${alias.router} examples=${kept.value.examples} saved=${saved} />`}</details>`;
}

/** @param {{alias: any, path: string, saved: () => Promise<any>}} given */
export default function AliasRouter({ alias, path, saved }) {
  const { router } = alias;
  return html`<p>A router chooses by what a request says, by what it was fitted with.${router.blend ? " Two close scores give a blend of both." : ""} <small>Threshold ${fixed(router.threshold, 3)}, margin ${fixed(router.margin, 3)}.</small></p>
    <dl class="figures"><div class="figure"><dt>examples recognised when left out</dt><dd>${fixed(100 * router.recognised, 0)} %</dd></div>
      <div class="figure"><dt>prompts of no task kept out</dt><dd>${fixed(100 * router.kept_out, 0)} %</dd></div></dl>
    <${Table} caption="Candidates" head=${["candidate", "examples"]} rows=${[...router.candidates.map((name, at) => [name, router.examples[at] ?? "–"]), [`${router.otherwise}, otherwise`, ""]]} />
    <${Explain} path=${path} /><${Change} alias=${alias} path=${path} saved=${saved} />`;
}
