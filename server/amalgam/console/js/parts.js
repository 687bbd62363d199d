// What pages are made of: headings, tables, buttons that say how they fared, and what is copied.

import { useEffect, useRef, useState } from "../vendor/hooks.js";
import { ApiError } from "./api.js";
import { asCurl, asPython } from "./copied.js";
import { html } from "./html.js";
import { allowed, notify } from "./state.js";

/** What went wrong, with its code and the request's id. */
export function Refusal({ error }) {
  if (!error) return null;
  const code = error instanceof ApiError ? error.code : "";
  const id = error instanceof ApiError ? error.requestId : "";
  return html`<p class="refusal" role="alert">${error.message} ${code && html`<code>${code}</code>`}
    ${id && html`<small> request ${id}</small>`}</p>`;
}

/** Tell of an error that no place on the page is for. @param {unknown} error */
export function tell(error) {
  if (error instanceof DOMException && error.name === "AbortError") return;
  notify(error instanceof Error ? error.message : String(error), "wrong");
}

/**
 * A button that waits for what it started; shown to keys that may do it alone.
 * @param {{label: string, does: () => Promise<any>, needs?: "asks" | "reads" | "changes" | "administers", kind?: string, sure?: string, disabled?: boolean}} given
 */
export function Action({ label, does, needs = "changes", kind = "", sure = "", disabled = false }) {
  const [busy, setBusy] = useState(false);
  if (needs !== "reads" && !allowed.value?.[needs]) return null;
  async function click() {
    if (sure && !confirm(sure)) return;
    setBusy(true);
    try {
      await does();
    } catch (error) {
      tell(error);
    } finally {
      setBusy(false);
    }
  }
  return html`<button type="button" class=${kind} disabled=${busy || disabled} aria-busy=${busy} onClick=${click}>${label}</button>`;
}

/**
 * What a form does, whose refusal is to stay beside it until it is sent again.
 * @param {() => Promise<any>} does
 */
export function useSending(does) {
  const [wrong, setWrong] = useState(null);
  async function send() {
    setWrong(null);
    await does().catch(setWrong);
  }
  return { wrong, send };
}

/** Copies a text, and says so. */
export function Copy({ label, text }) {
  async function click() {
    try {
      await navigator.clipboard.writeText(text());
      notify(`${label}: copied`);
    } catch {
      notify("The browser lets nobody write to the clipboard here.", "wrong");
    }
  }
  return html`<button type="button" class="quiet" onClick=${click}>${label}</button>`;
}

/** The request behind a view, for a terminal and for Python. */
export const CopyCurl = ({ method = "GET", path, body }) =>
  html`<span class="copies"><${Copy} label="copy as curl" text=${() => asCurl(method, path, body)} /><${Copy} label="as Python" text=${() => asPython(method, path, body)} /></span>`;

/** Rows below headings. */
export function Table({ caption, head, rows, empty = "Nothing yet." }) {
  if (!rows.length) return html`<p class="empty">${empty}</p>`;
  return html`<div class="scroll" tabindex="0" role="group" aria-label=${caption}><table>
    <caption class="unseen">${caption}</caption>
    <thead><tr>${head.map((name) => html`<th scope="col" key=${name}>${name}</th>`)}</tr></thead>
    <tbody>${rows.map((cells, at) => html`<tr key=${at}>${cells.map(
      (cell, column) => html`<td key=${column} class=${typeof cell === "number" ? "number" : ""}>${cell}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}

/** A labelled control. */
export const Field = ({ label, children, hint = "" }) =>
  html`<label class="field"><span>${label}</span>${children}${hint && html`<small>${hint}</small>`}</label>`;

/**
 * What a function gave, asked again every so often while the page is shown.
 * @param {(signal: AbortSignal) => Promise<any>} load
 * @param {any[]} depends asked anew when one of these changes
 * @param {number} [everyMs] 0: once
 */
export function useLoaded(load, depends, everyMs = 0) {
  const [value, setValue] = useState(null);
  const [error, setError] = useState(null);
  const again = useRef(() => {});
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    async function run() {
      clearTimeout(timer);
      try {
        const found = await load(abort.signal);
        if (abort.signal.aborted) return;
        setValue(found);
        setError(null);
      } catch (problem) {
        if (abort.signal.aborted) return;
        setError(problem);
      }
      if (everyMs) timer = setTimeout(run, everyMs);
    }
    again.current = run;
    run();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, depends);
  return { value, error, again: () => again.current() };
}

/** @param {number} bytes */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (bytes >= 1000 && at < units.length - 1) {
    bytes /= 1000;
    at++;
  }
  return `${bytes < 10 && at ? bytes.toFixed(1) : Math.round(bytes)} ${units[at]}`;
}

/** @param {string} moment */
export const when = (moment) => new Date(moment).toLocaleString();

/** @param {number | null | undefined} value @param {number} [digits] */
export const fixed = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
