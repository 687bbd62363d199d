// Limits of tenants and keys: how they are told, typed in, and what of those by the day and the month is left.

import { html } from "./html.js";
import { Field } from "./parts.js";

/** @typedef {Record<string, number | null>} Limits */

/** Names of the API, and of people. */
export const LIMITS = {
  requests_per_minute: "requests a minute",
  tokens_per_minute: "tokens a minute",
  concurrent_requests: "requests at once",
  tokens_per_day: "tokens a day",
  tokens_per_month: "tokens a month",
  blends_per_minute: "new blends a minute",
  stored_bytes: "stored bytes",
};

/** In words. @param {Limits} limits */
export function told(limits) {
  const set = Object.entries(LIMITS).filter(([name]) => limits[name]);
  return set.map(([name, words]) => `${Number(limits[name]).toLocaleString()} ${words}`).join(", ") || "none";
}

/**
 * A number for each limit; empty: none.
 * @param {{limits: Limits, change: (limits: Limits) => void, without?: string[]}} given
 */
export function LimitFields({ limits, change, without = [] }) {
  const set = (name) => (event) => change({ ...limits, [name]: event.target.value === "" ? null : Number(event.target.value) });
  return html`<div class="row">${Object.entries(LIMITS).filter(([name]) => !without.includes(name)).map(([name, words]) => html`
    <${Field} key=${name} label=${words}><input type="number" min="1" step="1" placeholder="no limit" value=${limits[name] ?? ""} onInput=${set(name)} /><//>`)}</div>`;
}

/** The beginning of a day and a month, in UTC, as budgets are counted: Unix seconds. @param {Date} now */
export function periods(now) {
  const [year, month] = [now.getUTCFullYear(), now.getUTCMonth()];
  return { tokens_per_day: Date.UTC(year, month, now.getUTCDate()) / 1000, tokens_per_month: Date.UTC(year, month, 1) / 1000 };
}

/**
 * What of a budget was used, as a bar and in words.
 * @param {{limit: number | null, used: number, words: string}} given
 */
export function Left({ limit, used, words }) {
  if (!limit) return html`<span>${used.toLocaleString()} <small>${words}, no limit</small></span>`;
  return html`<label>${Math.max(0, limit - used).toLocaleString()} <small>of ${limit.toLocaleString()} ${words} left</small>
    <meter min="0" max=${limit} high=${limit * 0.9} value=${Math.min(used, limit)}></meter></label>`;
}
