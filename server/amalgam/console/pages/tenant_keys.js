// The keys of a tenant: made, put a successor beside, ended. A secret is shown once, where it was made.

import { useState } from "../vendor/hooks.js";
import { get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Left, told } from "../js/limits.js";
import { Action, Copy, CopyCurl, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { allowed, notify } from "../js/state.js";
import NewKey from "./new_key.js";

const OVERLAP_S = 86400;

/** The secret, until the reader has put it elsewhere. */
function Issued({ issued, close }) {
  return html`<section class="issued" role="alert" aria-label="New key"><h3>The key ${issued.name || issued.prefix}</h3>
    <p>This is the one time that it is shown: the server keeps only its SHA-256. Copy it to where it is used.</p>
    <pre tabindex="0">${issued.key}</pre>
    <p class="row"><${Copy} label="copy the key" text=${() => issued.key} /> <button type="button" onClick=${close}>I have it</button></p></section>`;
}

/** In words: what is left of the tokens of today and of this month. */
function Budgets({ shown, used }) {
  const set = [["tokens_per_day", "tokens today"], ["tokens_per_month", "tokens this month"]].filter(([limit]) => shown.limits[limit]);
  return set.map(([limit, words]) => html`<${Left} key=${limit} limit=${shown.limits[limit]} used=${used?.[limit]?.get(shown.id) ?? 0} words=${words} />`);
}

function Row({ shown, rotate, suspend, revoke }) {
  if (shown.state === "revoked" || !allowed.value?.administers) return "";
  const active = shown.state === "active";
  return html`<div class="row">${active && html`<${Action} label="rotate" needs="administers" does=${rotate}
      sure=${`Put a successor beside ${shown.prefix}? Both open for a day, then the old one ends.`} />`}
    <${Action} label=${active ? "suspend" : "make active"} needs="administers" does=${suspend} />
    <${Action} label="revoke" needs="administers" kind="danger" does=${revoke} sure=${`End ${shown.prefix} at once?`} /></div>`;
}

export default function Keys({ tenant, used }) {
  const [cursors, setCursors] = useState([""]);
  const cursor = cursors[cursors.length - 1];
  const path = `/admin/v1/keys?tenant=${inPath(tenant)}&limit=100${cursor ? `&cursor=${inPath(cursor)}` : ""}`;
  const list = useLoaded((signal) => get(path, signal), [path]);
  const [issued, setIssued] = useState(/** @type {any} */ (null));
  async function rotate(id) {
    const { new: successor } = await send("POST", `/admin/v1/keys/${id}:rotate`, { overlap_s: OVERLAP_S });
    setIssued(successor);
    await list.again();
  }
  async function suspend(shown) {
    const state = shown.state === "active" ? "suspended" : "active";
    await send("PATCH", `/admin/v1/keys/${shown.id}`, { state });
    notify(`${shown.prefix} is ${state}`);
    await list.again();
  }
  async function revoke(shown) {
    await send("POST", `/admin/v1/keys/${shown.id}:revoke`);
    notify(`${shown.prefix} opens nothing any more`);
    await list.again();
  }
  async function made(key) {
    setIssued(key);
    await list.again();
  }
  const next = list.value?.next_cursor;
  const rows = (list.value?.data ?? []).map((shown) => [
    html`<code>${shown.prefix}…</code> ${shown.name}`, html`<span class="word">${shown.role}</span>`, shown.models.join(", "), shown.blends,
    html`<div>${told(shown.limits)}</div><${Budgets} shown=${shown} used=${used} />`,
    html`<span class="word">${shown.state}</span>${shown.successor && html` <small>followed by ak_${shown.successor}</small>`}`,
    shown.expires_at ? when(shown.expires_at) : "never", shown.last_used_at ? when(shown.last_used_at) : "not yet",
    html`<${Row} shown=${shown} rotate=${() => rotate(shown.id)} suspend=${() => suspend(shown)} revoke=${() => revoke(shown)} />`]);
  return html`<h2>Keys</h2>
    ${issued && html`<${Issued} issued=${issued} close=${() => setIssued(null)} />`}
    ${allowed.value?.administers && html`<${NewKey} tenant=${tenant} made=${made} />`}
    <${Refusal} error=${list.error} />
    ${list.value && html`<${Table} caption="Keys" head=${["key", "role", "may ask for", "blends", "limits", "state", "expires", "last used", ""]} rows=${rows}
      empty="It has no key yet." />`}
    <p class="row">${(cursors.length > 1 || next) && html`
      <button type="button" disabled=${cursors.length < 2} onClick=${() => setCursors(cursors.slice(0, -1))}>Before</button>
      <button type="button" disabled=${!next} onClick=${() => setCursors([...cursors, next])}>Next</button>`} <${CopyCurl} path=${path} /></p>`;
}
