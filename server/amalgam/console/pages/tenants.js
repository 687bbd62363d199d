// Whoever is served, counted and limited as one: all tenants, and one of them with its keys.

import { useState } from "../vendor/hooks.js";
import { get, send } from "../js/api.js";
import { html } from "../js/html.js";
import { told } from "../js/limits.js";
import { Action, CopyCurl, Field, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { allowed, linkTo } from "../js/state.js";
import Tenant from "./tenant.js";

const PAGE = 100;

function Create() {
  const [id, setId] = useState("");
  const [name, setName] = useState("");
  async function create() {
    await send("POST", "/admin/v1/tenants", { id, name });
    location.hash = linkTo("tenants", id);
  }
  return html`<div class="row" role="group" aria-label="New tenant">
    <${Field} label="Id, never given to another"><input value=${id} maxlength="64" onInput=${(event) => setId(event.target.value.trim())} /><//>
    <${Field} label="Name, for people"><input value=${name} maxlength="256" onInput=${(event) => setName(event.target.value)} /><//>
    <${Action} label="Create" needs="administers" disabled=${!id} does=${create} /></div>`;
}

function List() {
  const [cursors, setCursors] = useState([""]);
  const cursor = cursors[cursors.length - 1];
  const path = `/admin/v1/tenants?limit=${PAGE}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`;
  const list = useLoaded((signal) => get(path, signal), [path]);
  const next = list.value?.next_cursor;
  return html`<h1>Tenants</h1>
    <p>A tenant is whoever is served, counted and limited as one: a customer, a team. Its keys are on its page.</p>
    ${allowed.value?.administers && html`<${Create} />`}<${Refusal} error=${list.error} />
    ${list.value && html`<${Table} caption="Tenants" head=${["id", "name", "state", "weight", "limits", "stored bytes", "made"]} rows=${list.value.data.map((one) => [
      html`<a href=${linkTo("tenants", one.id)}>${one.id}</a>`, one.name, one.state, one.weight, told(one.limits), (one.stored.adapters + one.stored.files).toLocaleString(), when(one.created_at)])} />`}
    <p class="row">${(cursors.length > 1 || next) && html`
      <button type="button" disabled=${cursors.length < 2} onClick=${() => setCursors(cursors.slice(0, -1))}>Before</button>
      <button type="button" disabled=${!next} onClick=${() => setCursors([...cursors, next])}>Next</button>`}
      <${CopyCurl} path=${path} /></p>`;
}

export default function Tenants({ rest }) {
  return rest.length ? html`<${Tenant} key=${rest[0]} id=${rest[0]} />` : html`<${List} />`;
}
