// The experiment of an alias: how it stands, the intervals that end it, what decided, what came of it, and what is next.

import { useEffect } from "../vendor/hooks.js";
import { get, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, fixed, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { notify } from "../js/state.js";
import { apart, between, brief, candidatesOf, controlOf, decision, effect, mood, nextStep, percent, points } from "../js/verdict.js";
import NewExperiment from "./new_experiment.js";

const EVERY_MS = 2000;
const WIDE = 200;
const HIGH = 18;
/** An axis is no narrower than this on each side of 0, so that noise does not fill it. */
const LEAST = 0.05;

/** What an axis has to show: every interval, 0, and what matters; between -1 and 1. */
function reach(pairs, mark) {
  const far = Math.max(LEAST, Math.abs(mark) * 1.5, ...pairs.flat().map(Math.abs));
  return Math.min(1, far * 1.05);
}

/** An interval on an axis around 0, with a dashed line at what matters. @param {{pair: number[], far: number, mark: number}} given */
function Bar({ pair: [low, high], far, mark }) {
  const x = (value) => ((Math.max(-far, Math.min(far, value)) + far) / (2 * far)) * WIDE;
  return html`<svg class="interval" width=${WIDE} height=${HIGH} aria-hidden="true">
    <line class="axis" x1="0" x2=${WIDE} y1=${HIGH / 2} y2=${HIGH / 2} />
    <line class="zero" x1=${x(0)} x2=${x(0)} y1="0" y2=${HIGH} />
    ${mark !== 0 && html`<line class="mark" x1=${x(mark)} x2=${x(mark)} y1="0" y2=${HIGH} />`}
    <rect x=${x(low)} y=${HIGH / 2 - 4} width=${Math.max(2, x(high) - x(low))} height="8" rx="2" /></svg>`;
}

/** The intervals of one kind, which end the experiment: of every candidate less the control. */
function Differences({ caption, targets, of, mark, words, about, line }) {
  const shown = targets.filter((target) => of(target));
  if (!shown.length) return null;
  const far = reach(shown.map(of), mark);
  return html`<h3>${caption}</h3><p><small>${about} Drawn from ${fixed(-far, 2)} to ${fixed(far, 2)}; the solid line is 0, the dashed one ${line}.</small></p>
    <${Table} caption=${caption} head=${["candidate", "the difference lies between", "drawn"]}
      rows=${shown.map((target) => [target.model, html`<span class="word">${words(of(target))}</span>`, html`<${Bar} pair=${of(target)} far=${far} mark=${mark} />`])} />`;
}

/** What was seen of every target. */
function Targets({ one }) {
  const slow = one.latency ? [`above ${one.latency.slow_ms} ms`] : [];
  return html`<${Table} caption="Targets of the experiment" head=${["target", "role", "outcomes", one.metric ?? "feedback", "the mean lies between", "requests", "errors", ...slow]}
    rows=${one.targets.map((target) => [target.model, target.role, target.outcomes, fixed(target.mean, 3), target.outcomes ? between(target.interval) : "–",
      target.requests, target.errors, ...(one.latency ? [target.slow] : [])])} />`;
}

function Intervals({ one }) {
  const [candidates, control] = [candidatesOf(one), controlOf(one)?.model];
  const risk = `It lies there with ${percent(1 - one.risk)} certainty at all times together, however often one looks.`;
  const judged = candidates.filter((target) => target.outcomes);
  const asked = candidates.filter((target) => target.requests);
  const sign = one.higher_is_better ? 1 : -1;
  return html`${one.metric && html`<${Differences} caption=${`Difference in ${one.metric}`} targets=${judged} line="the least that matters" of=${(target) => target.difference} mark=${sign * one.minimum_effect} words=${between}
      about=${`The mean of each candidate less that of ${control}. ${risk} ${one.minimum_effect} is what matters.`} />`}
    ${one.errors && html`<${Differences} caption="Guard on errors" targets=${asked} line="what is allowed" of=${(target) => target.more_errors} mark=${one.errors.most_above} words=${points}
      about=${`The share of requests that were not answered, less that of ${control}. ${apart(one.errors.most_above)} more are allowed.`} />`}
    ${one.latency && html`<${Differences} caption="Guard on slow answers" targets=${asked} line="what is allowed" of=${(target) => target.more_slow} mark=${one.latency.most_above} words=${points}
      about=${`The share of requests above ${one.latency.slow_ms} ms, less that of ${control}. ${apart(one.latency.most_above)} more are allowed.`} />`}`;
}

/** What whoever may change it can do with the verdict. */
function Ways({ one, alias, path, renew }) {
  const only = async () => {
    await send("PUT", path, { targets: [{ model: one.winner }], revision: alias.revision });
    notify(`${one.alias} means ${one.winner} alone`);
    await renew();
  };
  const stop = async () => {
    await send("DELETE", `${path}/experiment`);
    notify("The experiment is stopped; the alias stays as it is");
    await renew();
  };
  return html`<p class="row">
    ${one.state === "running" && html`<${Action} label="Stop the experiment" sure="Stop it? What it has seen stays to be read, and the alias stays as it is." does=${stop} />`}
    ${one.winner && !one.changed_alias && html`<${Action} label=${`Let it mean ${one.winner} alone`} does=${only} />`}
    <${CopyCurl} path=${`${path}/experiment`} /></p>`;
}

function Verdict({ one }) {
  return html`<div class="verdict" role="group" aria-label="Verdict"><p><strong class=${mood(one)}>${brief(one)}</strong></p>
    <dl><dt>What ${one.verdict ? "decided" : "decides"}</dt><dd>${decision(one)}</dd>
      <dt>What ${one.verdict ? "happened" : "will happen"}</dt><dd>${effect(one)} <small>Begun ${when(one.created_at)}${one.ended_at ? `, ended ${when(one.ended_at)}` : ""}; see who did what below.</small></dd>
      <dt>Next</dt><dd>${nextStep(one)}</dd></dl></div>`;
}

/** @param {{alias: any, path: string, renew: () => Promise<any>}} given */
export default function AliasExperiment({ alias, path, renew }) {
  const found = useLoaded((signal) => get(`${path}/experiment`, signal), [path, alias.revision, alias.experiment], alias.experiment ? EVERY_MS : 0);
  const one = found.error ? null : found.value;
  const again = () => Promise.all([found.again(), renew()]);
  // It ended by itself while somebody looks: the alias means something else.
  useEffect(() => {
    if (one && one.state !== "running" && one.id === alias.experiment) renew();
  }, [one?.state]);
  const isOver = !one || one.state !== "running";
  return html`<section aria-label="Experiment"><h2>Experiment</h2><${Refusal} error=${found.error?.status === 404 ? null : found.error} />
    ${found.error?.status === 404 && html`<p class="empty">None was carried yet: with two targets or more, it finds out which is better, and ends by itself.</p>`}
    ${one && html`<${Verdict} one=${one} /><${Ways} one=${one} alias=${alias} path=${path} renew=${again} /><${Targets} one=${one} /><${Intervals} one=${one} />`}
    ${isOver && html`<${NewExperiment} alias=${alias} path=${path} begun=${again} />`}</section>`;
}
