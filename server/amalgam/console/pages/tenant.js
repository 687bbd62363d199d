// One tenant: its state, what it may use, what of that is left, and its keys.

import { useState } from "../vendor/hooks.js";
import { get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Left, LimitFields, periods, told } from "../js/limits.js";
import { Action, CopyCurl, Field, Refusal, useLoaded } from "../js/parts.js";
import { allowed, linkTo, notify } from "../js/state.js";
import Keys from "./tenant_keys.js";

const EVERY_MS = 5000;

/** Tokens of each key of a tenant since the day and the month began. @param {string} id @param {AbortSignal} signal */
async function usedBy(id, signal) {
  const entries = Object.entries(periods(new Date())).map(async ([limit, since]) => {
    const { data } = await get(`/admin/v1/usage?by=key&tenants=${inPath(id)}&start_time=${since}`, signal);
    return [limit, new Map(data.map((line) => [line.key, line.prompt_tokens + line.completion_tokens]))];
  });
  return Object.fromEntries(await Promise.all(entries));
}

/** @param {Map<string, number> | undefined} byKey */
const sum = (byKey) => [...(byKey?.values() ?? [])].reduce((all, tokens) => all + tokens, 0);

/** What an administrator changes of it. */
function Change({ tenant, changed }) {
  const [limits, setLimits] = useState(tenant.limits);
  const [weight, setWeight] = useState(tenant.weight);
  async function change(body, words) {
    await send("PATCH", `/admin/v1/tenants/${inPath(tenant.id)}`, body);
    notify(`${tenant.id} ${words}`);
    await changed();
  }
  const active = tenant.state === "active";
  return html`<details><summary>Change its limits, weight or state</summary>
    <${LimitFields} limits=${limits} change=${setLimits} />
    <div class="row"><${Field} label="weight: its share where several want more than there is">
        <input type="number" min="0.1" max="1000" step="any" value=${weight} onInput=${(event) => setWeight(Number(event.target.value))} /><//>
      <${Action} label="Save" needs="administers" disabled=${!(weight > 0)} does=${() => change({ limits, weight }, "has changed")} /></div>
    <p class="row">${active
      ? html`<${Action} label="Suspend" needs="administers" kind="danger" sure=${`Suspend ${tenant.id}? Its keys open nothing until it is active again.`} does=${() => change({ state: "suspended" }, "is suspended")} />`
      : html`<${Action} label="Make active" needs="administers" does=${() => change({ state: "active" }, "is active")} />`}
      <${Action} label="Delete" needs="administers" kind="danger" sure=${`Delete ${tenant.id}? Its keys are revoked, and its id is never given again.`} does=${async () => {
        await send("DELETE", `/admin/v1/tenants/${inPath(tenant.id)}`);
        location.hash = linkTo("tenants");
      }} /></p></details>`;
}

export default function Tenant({ id }) {
  const path = `/admin/v1/tenants/${inPath(id)}`;
  const found = useLoaded((signal) => get(path, signal), [path]);
  const used = useLoaded((signal) => usedBy(id, signal), [id], EVERY_MS);
  const tenant = found.value;
  if (!tenant) return html`<h1>${id}</h1><${Refusal} error=${found.error} />`;
  return html`<p><a href=${linkTo("tenants")}>All tenants</a></p><h1>${tenant.name || tenant.id}</h1>
    ${tenant.state !== "active" && html`<p class="refusal">This tenant is ${tenant.state}: its keys open nothing.</p>`}
    <dl class="figures">
      <div class="figure"><dt>id</dt><dd>${tenant.id}</dd></div><div class="figure"><dt>weight</dt><dd>${tenant.weight}</dd></div>
      <div class="figure"><dt>today</dt><dd><${Left} limit=${tenant.limits.tokens_per_day} used=${sum(used.value?.tokens_per_day)} words="tokens" /></dd></div>
      <div class="figure"><dt>this month</dt><dd><${Left} limit=${tenant.limits.tokens_per_month} used=${sum(used.value?.tokens_per_month)} words="tokens" /></dd></div>
      <div class="figure"><dt>stored</dt><dd><${Left} limit=${tenant.limits.stored_bytes} used=${tenant.stored.adapters + tenant.stored.files} words="bytes" /></dd></div></dl>
    <p>Limits: ${told(tenant.limits)}.
      ${tenant.model_limits.map((one) => html` On <code key=${one.pattern}>${one.pattern}</code>: ${told(one.limits)}.`)}
      ${" "}Days and months are those of UTC; limits by the minute fill up as time goes by.</p>
    ${allowed.value?.administers && html`<${Change} key=${tenant.updated_at} tenant=${tenant} changed=${found.again} />`}
    <${Refusal} error=${used.error} />
    <${Keys} tenant=${id} used=${used.value} />
    <p class="row"><a href=${`${linkTo("usage")}?tenant=${inPath(id)}`}>What it used, over time</a> <${CopyCurl} path=${path} /></p>`;
}
