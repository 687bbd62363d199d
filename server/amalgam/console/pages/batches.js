// Files of requests that are answered while there is capacity to spare: sent, followed, fetched.

import { useState } from "../vendor/hooks.js";
import { ask, download, get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Field, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { notify } from "../js/state.js";

const EVERY_MS = 2000;
const ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"];
const UNDER_WAY = new Set(["validating", "in_progress", "finalizing"]);
const LINE = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "…", "messages": [{"role": "user", "content": "…"}]}}';

function Create({ done }) {
  const [file, setFile] = useState(/** @type {File | null} */ (null));
  const [endpoint, setEndpoint] = useState(ENDPOINTS[0]);
  async function create() {
    if (!file) return;
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", file, file.name);
    const stored = await (await ask("POST", "/v1/files", { form })).json();
    const made = await send("POST", "/v1/batches", { input_file_id: stored.id, endpoint, completion_window: "24h" });
    notify(`${made.id} is ${made.status}`);
    done();
  }
  return html`<details><summary>New batch</summary>
    <p>One request a line, all of one endpoint; a line may ask an adapter, an alias or a blend:</p><pre tabindex="0">${LINE}</pre>
    <div class="row"><${Field} label="File of requests"><input type="file" accept=".jsonl,.txt,.json" onChange=${(event) => setFile(event.target.files[0] ?? null)} /><//>
      <${Field} label="Endpoint"><select value=${endpoint} onChange=${(event) => setEndpoint(event.target.value)}>${ENDPOINTS.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select><//>
      <${Action} label="Send the batch" needs="asks" disabled=${!file} does=${create} /></div></details>`;
}

/** How far it is, or why it failed as a whole. */
function State({ batch }) {
  const { total, completed, failed } = batch.request_counts;
  return html`<span class="word">${batch.status}</span>
    ${UNDER_WAY.has(batch.status) && total > 0 && html` <progress aria-label="answered" value=${completed + failed} max=${total}></progress>`}
    ${(batch.errors?.data ?? []).slice(0, 3).map((error, at) => html`<div class="refusal" key=${at}>${error.message} <code>${error.code}</code></div>`)}`;
}

export default function Batches() {
  const [afters, setAfters] = useState([""]);
  const after = afters[afters.length - 1];
  const path = `/v1/batches?limit=50${after ? `&after=${inPath(after)}` : ""}`;
  const list = useLoaded((signal) => get(path, signal), [path], EVERY_MS);
  const fetched = (id, name) => download(`/v1/files/${inPath(id)}/content`, name);
  async function cancel(id) {
    await send("POST", `/v1/batches/${inPath(id)}/cancel`);
    await list.again();
  }
  const rows = (list.value?.data ?? []).map((batch) => [
    html`<code>${batch.id}</code>`, batch.endpoint, html`<${State} batch=${batch} />`,
    `${batch.request_counts.completed} of ${batch.request_counts.total}${batch.request_counts.failed ? `, ${batch.request_counts.failed} refused` : ""}`,
    when(new Date(batch.created_at * 1000).toISOString()),
    html`<div class="row">${batch.output_file_id && html`<${Action} label="answers" needs="asks" does=${() => fetched(batch.output_file_id, `${batch.id}-answers.jsonl`)} />`}
      ${batch.error_file_id && html`<${Action} label="refusals" needs="asks" does=${() => fetched(batch.error_file_id, `${batch.id}-refusals.jsonl`)} />`}
      ${UNDER_WAY.has(batch.status) && html`<${Action} label="cancel" needs="asks" does=${() => cancel(batch.id)} />`}</div>`]);
  return html`<h1>Batches</h1><p>Requests that nobody waits for: they are answered whenever clients leave capacity, within a day.</p>
    <${Create} done=${list.again} /><${Refusal} error=${list.error} />
    ${list.value && html`<${Table} caption="Batches" head=${["batch", "endpoint", "state", "answered", "sent", ""]} rows=${rows} empty="There is no batch yet." />`}
    <p class="row">${(afters.length > 1 || list.value?.has_more) && html`
      <button type="button" disabled=${afters.length < 2} onClick=${() => setAfters(afters.slice(0, -1))}>Before</button>
      <button type="button" disabled=${!list.value?.has_more} onClick=${() => setAfters([...afters, list.value.last_id])}>Next</button>`} <${CopyCurl} path=${path} /></p>`;
}
