// An experiment in words: how it stands, what decided, what came of it, and what to do next.

import { fixed } from "./parts.js";

/**
 * @typedef {[number, number]} Pair
 * @typedef {{model: string, role: string, outcomes: number, mean: number | null, interval: Pair, difference: Pair | null,
 *   more_errors: Pair | null, more_slow: Pair | null, requests: number, errors: number, slow: number}} Target
 * @typedef {{id: string, alias: string, state: string, metric: string | null, higher_is_better: boolean, minimum_effect: number,
 *   risk: number, most_outcomes: number | null, promote: boolean, assignment: string, errors: {most_above: number} | null,
 *   latency: {most_above: number, slow_ms: number} | null, targets: Target[], verdict: string | null, winner: string | null,
 *   removed: string[], changed_alias: boolean, created_at: string, ended_at: string | null}} Experiment
 */

/** At most one digit behind the point. @param {number} share */
const hundredths = (share) => String(Number((100 * share).toFixed(1)));

/** @param {number} share */
export const percent = (share) => `${hundredths(share)} %`;

/** A difference of two shares. @param {number} share */
export const apart = (share) => `${hundredths(share)} percentage points`;

/** @param {Pair} pair */
export const between = ([low, high]) => `${fixed(low, 3)} to ${fixed(high, 3)}`;

/** @param {Pair} pair */
export const points = ([low, high]) => `${hundredths(low)} to ${hundredths(high)} percentage points`;

/** @param {Experiment} one */
export const controlOf = (one) => one.targets.find((target) => target.role === "control");

/** @param {Experiment} one */
export const candidatesOf = (one) => one.targets.filter((target) => target.role === "candidate");

/** Feedback that counts, of targets; that of shadows is none. @param {Experiment} one */
export const outcomesOf = (one) => one.targets.filter((target) => target.role !== "shadow").reduce((sum, target) => sum + target.outcomes, 0);

/** In a few words, for a list. @param {Experiment} one */
export function brief(one) {
  const removed = one.removed.join(", ");
  switch (one.verdict) {
    case null: return one.metric ? `running, ${outcomesOf(one).toLocaleString()} outcomes` : `running, ${requestsOf(one).toLocaleString()} requests`;
    case "better": return `${one.winner} is better${one.changed_alias ? ", promoted" : ""}`;
    case "worse": return `${one.winner} stays: the others are worse`;
    case "not_better": return `${one.winner} stays: the others are not better`;
    case "undecided": return `undecided after ${outcomesOf(one).toLocaleString()} outcomes`;
    case "guard_errors": return `${removed} taken out for errors`;
    case "guard_latency": return `${removed} taken out for slow answers`;
    case "stopped": return "stopped before it was decided";
    default: return "ended: the alias was changed";
  }
}

/** @param {Experiment} one */
const requestsOf = (one) => one.targets.reduce((sum, target) => sum + target.requests, 0);

/** How a list and the page show it: what ended badly, what ended well, what ended without a word. @param {Experiment} one */
export function mood(one) {
  if (one.verdict === null) return "running";
  if (one.verdict.startsWith("guard_")) return "error";
  return ["stopped", "replaced", "undecided"].includes(one.verdict) ? "warning" : "good";
}

/** @param {Experiment} one @param {Target} target @param {Pair} pair */
const less = (one, target, pair) => `${target.model} less ${controlOf(one)?.model}: ${between(pair)}`;

/** What decided, or what will, with the interval it was decided by. @param {Experiment} one @returns {string} */
export function decision(one) {
  const candidates = candidatesOf(one);
  const differences = candidates.filter((target) => target.difference && target.outcomes).map((target) => less(one, target, /** @type {Pair} */ (target.difference))).join("; ");
  const told = differences && ` ${differences}.`;
  switch (one.verdict) {
    case null: return waitsFor(one);
    case "better": return `The feedback “${one.metric}” decided: the whole interval of the difference is on the better side of 0.${told}`;
    case "worse": return `The feedback “${one.metric}” decided: the whole interval of each difference is on the worse side of 0.${told}`;
    case "not_better": return `The feedback “${one.metric}” decided: no candidate is better by ${one.minimum_effect}, the least that matters.${told}`;
    case "undecided": return `It might have ${one.most_outcomes?.toLocaleString()} outcomes; by then no interval had decided.${told}`;
    case "guard_errors": return guarded(one, "errors", (target) => target.more_errors, one.errors?.most_above ?? 0);
    case "guard_latency": return guarded(one, `answers above ${one.latency?.slow_ms} ms`, (target) => target.more_slow, one.latency?.most_above ?? 0);
    case "stopped": return "Somebody stopped it; nothing was decided.";
    default: return "Somebody changed the alias, so that there was nothing left to compare; nothing was decided.";
  }
}

/** @param {Experiment} one @param {string} what @param {(target: Target) => Pair | null} of @param {number} most */
function guarded(one, what, of, most) {
  const removed = candidatesOf(one).filter((target) => one.removed.includes(target.model));
  const shares = removed.map((target) => {
    const pair = of(target);
    return `${target.model} has ${pair ? points(pair) : "too much"} more than ${controlOf(one)?.model}`;
  });
  return `The guard on ${what} decided: ${shares.join("; ")}, at a risk of ${percent(one.risk)}. ${apart(most)} more are allowed.`;
}

/** @param {Experiment} one */
function waitsFor(one) {
  const rules = [];
  if (one.metric && candidatesOf(one).length) {
    const side = one.higher_is_better ? "above" : "below";
    rules.push(`It ends when the interval of a candidate's difference in “${one.metric}” lies ${side} 0, or when none can be better by ${one.minimum_effect}.`);
    if (one.most_outcomes) rules.push(`After ${one.most_outcomes.toLocaleString()} outcomes it ends undecided.`);
  }
  if (one.errors) rules.push(`A candidate is taken out when its share of errors is surely more than ${apart(one.errors.most_above)} above the control's.`);
  if (one.latency) rules.push(`A candidate is taken out when its share of answers above ${one.latency.slow_ms} ms is surely more than ${apart(one.latency.most_above)} above the control's.`);
  return rules.join(" ") || "Shadows get copies and are counted; nothing ends it but you.";
}

/** What the alias means for it. @param {Experiment} one @returns {string} */
export function effect(one) {
  if (one.verdict === null) return one.promote ? "The alias will mean the winner alone." : "The alias stays as it is, whatever comes out; only a guard changes it.";
  if (!one.changed_alias) return "The alias stayed as it was.";
  if (one.removed.length) return `The alias was changed by itself: without ${one.removed.join(", ")}.`;
  return one.verdict === "better" ? `Promoted: the alias means ${one.winner} alone.` : `The candidates were taken out: the alias means ${one.winner} alone.`;
}

/** What whoever looks might do now. @param {Experiment} one @returns {string} */
export function nextStep(one) {
  switch (one.verdict) {
    case null:
      if (one.metric && !outcomesOf(one)) return `No feedback has come yet. Clients send it to /v1/feedback, with the id of the answer and the name “${one.metric}”.`;
      return "Wait, or stop it. Changing the alias ends it as well.";
    case "better": return one.changed_alias ? "Nothing. If it does not hold up, roll back." : `Let the alias mean ${one.winner} alone.`;
    case "worse":
    case "not_better": return one.changed_alias ? "Nothing, or try another candidate." : `Let the alias mean ${one.winner} alone, or try another candidate.`;
    case "undecided": return "Begin again with more outcomes, with a larger effect that matters, or with larger shares for the candidates.";
    case "guard_errors": return `Look at what ${one.removed.join(", ")} was asked in the server's log, mend it, and try it as a new version.`;
    case "guard_latency": return `Look whether ${one.removed.join(", ")} is of a larger rank or was loaded anew too often, or allow more.`;
    default: return "Begin another one when there is something to compare.";
  }
}
