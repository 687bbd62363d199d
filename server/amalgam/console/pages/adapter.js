// One adapter: its versions, what is done with them, where one comes from, and how it is asked.

import { useState } from "../vendor/hooks.js";
import { address, download, get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Refusal, size, Table, useLoaded, when } from "../js/parts.js";
import { linkTo, notify } from "../js/state.js";
import Lineage from "./lineage.js";

function Snippet({ model }) {
  const body = { model, messages: [{ role: "user", content: "…" }], max_tokens: 64 };
  return html`<h2>How it is asked</h2>
    <p class="row"><${CopyCurl} method="POST" path="/v1/chat/completions" body=${body} /></p>
    <pre tabindex="0">${`curl ${address("/v1/chat/completions")} -H 'Content-Type: application/json' \\\n  -H "Authorization: Bearer $AMALGAM_KEY" \\\n  -d '${JSON.stringify(body)}'`}</pre>`;
}

export default function Adapter({ name }) {
  const path = `/admin/v1/adapters/${inPath(name)}`;
  const [open, setOpen] = useState(0);
  const adapter = useLoaded((signal) => get(path, signal), [path]);
  const engine = useLoaded((signal) => get("/admin/v1/engine", signal), [path]);
  const shown = adapter.value;
  if (!shown) return html`<h1>${name}</h1><${Refusal} error=${adapter.error} />`;

  /** Do one thing with one version, and look again. */
  const act = (verb, version) => async () => {
    await send("POST", `${path}:${verb}`, { version });
    notify(`${name}@${version}: ${verb} done`);
    await Promise.all([adapter.again(), engine.again()]);
  };
  async function verify() {
    const { versions } = await send("POST", `${path}:verify`);
    const bad = Object.keys(versions).filter((model) => !versions[model]);
    notify(bad.length ? `Damaged: ${bad.join(", ")}` : "The stored files are what was published.", bad.length ? "wrong" : "done");
  }
  async function makeDefault(version) {
    await send("PATCH", path, { default_version: version });
    await adapter.again();
  }
  async function remove(version) {
    await send("DELETE", `${path}/versions/${version}`);
    await adapter.again();
  }
  const residents = new Map((engine.value?.residents ?? []).map((one) => [one.model, one]));
  const rows = shown.versions.map((version) => {
    const number = version.version;
    const resident = residents.get(version.model);
    const isDefault = number === shown.default_version;
    return [
      html`${version.model} ${isDefault && html`<strong>default</strong>`}`,
      version.rank,
      size(version.size_bytes),
      version.source,
      resident ? (resident.pinned ? "pinned" : "in memory") : "",
      when(version.created_at),
      html`<div class="row">
        ${!isDefault && html`<${Action} label="make default" does=${() => makeDefault(number)} />`}
        ${resident?.pinned ? html`<${Action} label="unpin" needs="administers" does=${act("unpin", number)} />` : html`<${Action} label="pin" needs="administers" does=${act("pin", number)} />`}
        ${resident ? html`<${Action} label="unload" needs="administers" does=${act("unload", number)} />` : html`<${Action} label="load" needs="administers" does=${act("load", number)} />`}
        <${Action} label="download" needs="reads" does=${() => download(`${path}/versions/${number}/files`, `${name}-${number}.tar`)} />
        <${Action} label="lineage" needs="reads" does=${async () => setOpen(open === number ? 0 : number)} />
        ${!isDefault && html`<${Action} label="delete" kind="danger" sure=${`Delete ${version.model}?`} does=${() => remove(number)} />`}
      </div>`,
    ];
  });
  const warnings = shown.versions.flatMap((version) => version.warnings.map((text) => `${version.model}: ${text}`));
  return html`<p><a href=${linkTo("adapters")}>All adapters</a></p><h1>${shown.name}</h1>
    ${shown.description && html`<p>${shown.description}</p>`}
    <${Table} caption="Versions" head=${["version", "rank", "size", "from", "engine", "made", ""]} rows=${rows} />
    ${warnings.length > 0 && html`<ul class="findings">${warnings.map((text) => html`<li class="warning" key=${text}>${text}</li>`)}</ul>`}
    ${open > 0 && html`<h2>Lineage of version ${open}</h2><${Lineage} name=${name} number=${open} />`}
    <${Snippet} model=${shown.name} />
    <p class="row"><${Action} label="Verify the stored files" does=${verify} /> <${CopyCurl} path=${path} /> <a href=${`${linkTo("playground")}?models=${inPath(name)}`}>Open in the playground</a></p>`;
}
