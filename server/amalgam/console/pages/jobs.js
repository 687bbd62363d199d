// What was asked to be built: merges, exports and the rest, as they go on.

import { get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { linkTo } from "../js/state.js";

const EVERY_MS = 1000;
const ENDED = new Set(["published", "done", "failed", "cancelled"]);

function Progress({ job }) {
  const { modules_done: done, modules_total: all } = job.progress ?? {};
  if (ENDED.has(job.state) || !all) return job.state;
  return html`<label>${job.state} <progress value=${done} max=${all}></progress></label>`;
}

function Result({ job }) {
  if (job.error) return html`<span class="refusal">${job.error.message} <code>${job.error.code}</code></span>`;
  if (!job.version) return "";
  return html`<a href=${linkTo("adapters", job.name)}>${job.version}</a>`;
}

export default function Jobs() {
  const jobs = useLoaded((signal) => get("/admin/v1/jobs?limit=100", signal), [], EVERY_MS);
  async function cancel(id) {
    await send("POST", `/admin/v1/jobs/${inPath(id)}:cancel`);
    await jobs.again();
  }
  return html`<h1>Jobs</h1><${Refusal} error=${jobs.error} />
    ${jobs.value && html`<${Table} caption="Jobs" head=${["kind", "makes", "state", "result", "began", ""]} rows=${jobs.value.data.map((job) => [
      job.kind, job.name, html`<${Progress} job=${job} />`, html`<${Result} job=${job} />`, when(job.created_at),
      ENDED.has(job.state) ? "" : html`<${Action} label="cancel" does=${() => cancel(job.id)} />`])} />`}
    <p><${CopyCurl} path="/admin/v1/jobs" /></p>`;
}
