// The key that was typed: what it is, what it may ask for, and what of its limits is left.

import { get } from "../js/api.js";
import { html } from "../js/html.js";
import { Left, LIMITS } from "../js/limits.js";
import { CopyCurl, Refusal, Table, useLoaded, when } from "../js/parts.js";

const EVERY_MS = 3000;
const ROLES = {
  client: "asks models",
  publisher: "asks models, and publishes what its names cover",
  reader: "reads, and changes nothing",
  admin: "may do everything",
};

/** When there is more again. */
function again(limit) {
  if (limit.ends_at) return `begins anew ${when(limit.ends_at)}`;
  if (limit.full_in_s === null) return "as requests end";
  return limit.full_in_s ? `all of it in ${Math.ceil(limit.full_in_s)} s` : "all of it now";
}

export default function OwnKey() {
  const me = useLoaded((signal) => get("/v1/me", signal), [], EVERY_MS);
  const shown = me.value;
  if (!shown) return html`<h1>This key</h1><${Refusal} error=${me.error} />`;
  return html`<h1>This key</h1><${Refusal} error=${me.error} />
    <dl class="figures">
      <div class="figure"><dt>role</dt><dd>${shown.role} <small>${ROLES[shown.role]}</small></dd></div>
      <div class="figure"><dt>tenant</dt><dd>${shown.tenant}</dd></div>
      ${shown.name && html`<div class="figure"><dt>name</dt><dd>${shown.name}</dd></div>`}
      <div class="figure"><dt>expires</dt><dd>${shown.expires_at ? when(shown.expires_at) : "never"}</dd></div></dl>
    <p>It may ask for ${shown.models.map((one, at) => html`${at ? ", " : ""}<code key=${one}>${one}</code>`)}${shown.models.includes("*") ? ": everything" : ""};
      blends: ${shown.blends}.${shown.id && html` Records name it <code>${shown.id}</code>.`}</p>
    <h2>What is left</h2>
    <${Table} caption="Limits" head=${["whose limit", "left", ""]} empty="No limit applies to this key."
      rows=${shown.limits.map((limit) => [limit.whose,
        html`<${Left} limit=${limit.limit} used=${limit.limit - limit.left} words=${LIMITS[limit.measure]} />`, again(limit)])} />
    <p><${CopyCurl} path="/v1/me" /></p>`;
}
