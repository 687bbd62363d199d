// A new key: what it is for, what it may ask for, how much, and for how long.

import { useState } from "../vendor/hooks.js";
import { get, send } from "../js/api.js";
import { html } from "../js/html.js";
import { LimitFields } from "../js/limits.js";
import { Action, CopyCurl, Field, Refusal, useLoaded } from "../js/parts.js";

const DAY_S = 86400;
const ROLES = {
  client: "asks",
  publisher: "asks, and publishes what its names cover",
  reader: "reads the admin plane, within its names",
  metrics: "reads the metrics",
  admin: "may do everything",
};
const BLENDS = {
  any: "any of names in scope",
  own: "those that it describes itself",
  none: "none",
};
/** These two have everything in scope. */
const UNBOUNDED = new Set(["admin", "metrics"]);

/** Names and patterns, one after another. */
function Scopes({ models, change, names }) {
  const [wanted, setWanted] = useState("");
  function add(event) {
    event.preventDefault();
    const found = wanted.trim();
    if (found && !models.includes(found)) change([...models.filter((one) => one !== "*"), found]);
    setWanted("");
  }
  return html`<fieldset><legend>May ask for</legend>
    <p class="row">${models.map((one) => html`<span class="chip" key=${one}><code>${one}</code>
      ${one === "*" ? " everything" : html`<button type="button" class="quiet" aria-label=${`take ${one} away`} onClick=${() => {
        const rest = models.filter((other) => other !== one);
        change(rest.length ? rest : ["*"]);
      }}>×</button>`}</span>`)}</p>
    <form class="row" onSubmit=${add}><${Field} label="Only this name or pattern" hint="sql; acme.*; sql@3: that version alone; base: the base model">
        <input list="names" value=${wanted} maxlength="160" pattern="[A-Za-z0-9._*?\\-]{1,128}(@[0-9*?]{1,9})?" onInput=${(event) => setWanted(event.target.value)} /><//>
      <button disabled=${!wanted.trim()}>Add</button></form>
    <datalist id="names"><option value="base"></option>${names.map((name) => html`<option key=${name} value=${name}></option>`)}</datalist></fieldset>`;
}

export default function NewKey({ tenant, made }) {
  const [form, setForm] = useState({ name: "", role: "client", models: ["*"], blends: "any", days: "" });
  const [limits, setLimits] = useState(/** @type {Record<string, number | null>} */ ({}));
  const adapters = useLoaded((signal) => get("/admin/v1/adapters?limit=500", signal), []);
  const aliases = useLoaded((signal) => get("/admin/v1/aliases?limit=500", signal), []);
  const names = [...(aliases.value?.data ?? []), ...(adapters.value?.data ?? [])].map((one) => one.name);
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.value });
  const scopes = UNBOUNDED.has(form.role) ? {} : { models: form.models, blends: form.blends };
  const expires = form.days === "" ? {} : { expires_in_s: Number(form.days) * DAY_S };
  const body = { tenant, role: form.role, name: form.name, ...scopes, limits, ...expires };
  async function create() {
    made(await send("POST", "/admin/v1/keys", body));
    setForm({ ...form, name: "" });
  }
  const select = (name, label, choices) => html`<${Field} label=${label}><select value=${form[name]} onChange=${set(name)}>
    ${Object.entries(choices).map(([value, words]) => html`<option key=${value} value=${value}>${value}: ${words}</option>`)}</select><//>`;
  return html`<details><summary>New key</summary>
    <div class="row"><${Field} label="Key's name, for people"><input value=${form.name} maxlength="256" placeholder="production" onInput=${set("name")} /><//>
      ${select("role", "Role", ROLES)}
      <${Field} label="Days until it expires"><input type="number" min="0.01" max="36500" step="any" placeholder="never" value=${form.days} onInput=${set("days")} /><//></div>
    ${UNBOUNDED.has(form.role) ? html`<p class="warning">This role has everything in scope.</p>` : html`
      <${Scopes} models=${form.models} change=${(models) => setForm({ ...form, models })} names=${names} />
      <div class="row">${select("blends", "Blends", BLENDS)}</div>`}
    <${Refusal} error=${adapters.error ?? aliases.error} />
    <${LimitFields} limits=${limits} change=${setLimits} without=${["stored_bytes"]} />
    <p class="row"><${Action} label="Create the key" needs="administers" does=${create} /> <${CopyCurl} method="POST" path="/admin/v1/keys" body=${body} /></p></details>`;
}
