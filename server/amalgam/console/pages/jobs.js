// What was asked to be built: merges, exports and the rest, as they go on; and the batches of whoever looks.

import { get, inPath, send } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { allowed, linkTo } from "../js/state.js";
import Job, { ENDED, Progress, Result } from "./job.js";

const EVERY_MS = 1000;
const BATCHES_MS = 5000;
const SHOWN = 5;

/** The newest batches of the key, where it may have any. */
function Batches() {
  const list = useLoaded((signal) => get(`/v1/batches?limit=${SHOWN}`, signal), [], BATCHES_MS);
  const counted = ({ completed, failed, total }) => `${completed} of ${total}${failed ? `, ${failed} refused` : ""}`;
  return html`<h2>Batches</h2><${Refusal} error=${list.error} />
    ${list.value && html`<${Table} caption="Batches" head=${["batch", "endpoint", "state", "answered", "sent"]} empty="There is no batch yet."
      rows=${list.value.data.map((batch) => [html`<a href=${linkTo("batches")}><code>${batch.id}</code></a>`, batch.endpoint, batch.status,
        counted(batch.request_counts), when(new Date(batch.created_at * 1000).toISOString())])} />`}
    <p><a href=${linkTo("batches")}>All batches of this key, and new ones</a></p>`;
}

function List() {
  const jobs = useLoaded((signal) => get("/admin/v1/jobs?limit=100", signal), [], EVERY_MS);
  async function cancel(id) {
    await send("POST", `/admin/v1/jobs/${inPath(id)}:cancel`);
    await jobs.again();
  }
  return html`<h1>Jobs</h1><${Refusal} error=${jobs.error} />
    ${jobs.value && html`<${Table} caption="Jobs" head=${["kind", "makes", "state", "result", "began", ""]} rows=${jobs.value.data.map((job) => [
      html`<a href=${linkTo("jobs", job.id)}>${job.kind}</a>`, job.name, html`<${Progress} job=${job} />`, html`<${Result} job=${job} />`, when(job.created_at),
      ENDED.has(job.state) ? "" : html`<${Action} label="cancel" does=${() => cancel(job.id)} />`])} />`}
    <p><${CopyCurl} path="/admin/v1/jobs" /></p>
    ${allowed.value?.asks && html`<${Batches} />`}`;
}

export default function Jobs({ rest }) {
  return rest.length ? html`<${Job} key=${rest[0]} id=${rest[0]} />` : html`<${List} />`;
}
