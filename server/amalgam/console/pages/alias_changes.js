// What an alias meant, newest first, each of which can be brought back; and who did what to it.

import { get, inPath } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Refusal, Table, useLoaded, when } from "../js/parts.js";
import { meaning } from "../js/meaning.js";

/** The end of an experiment is recorded a moment after the alias has changed. */
const EVERY_MS = 5000;

/** How a revision came about. */
const ACTIONS = { set: "set", rollback: "rolled back", delete: "deleted", experiment: "changed by its experiment" };
const VERBS = {
  "alias.set": "set the alias", "alias.rollback": "rolled back", "alias.delete": "deleted the alias",
  "experiment.start": "began an experiment", "experiment.stop": "stopped the experiment", "experiment.end": "ended the experiment by what it saw",
};

/** @param {any} change */
const how = (change) => (change.restores === null ? ACTIONS[change.action] : `${ACTIONS[change.action]} to ${change.restores}`);

/** Changes of an experiment are the server's own. @param {any} entry */
function who(entry) {
  if (entry.verb === "experiment.end") return "the server, by itself";
  return entry.key_id ? html`key <code>${entry.key_id}</code> of ${entry.tenant}` : "a server without keys";
}

/** @param {{changes: any[], rollback: (revision: number) => Promise<any>, current: number}} given */
export function History({ changes, rollback, current }) {
  return html`<h2>History</h2>
    <${Table} caption="History" head=${["revision", "meant", "how", "when", ""]} rows=${changes.map((change) => [
      change.revision, html`<div class="roomy">${change.targets?.length ? meaning(change) : "nothing"}</div>`, how(change), when(change.created_at),
      change.revision !== current && change.targets?.length ? html`<${Action} label="bring back" does=${() => rollback(change.revision)} />` : ""])} />`;
}

/** @param {{name: string, depends: any[]}} given */
export function Audit({ name, depends }) {
  const path = `/admin/v1/audit?kind=alias&object=${inPath(name)}&limit=20`;
  const found = useLoaded((signal) => get(path, signal), [path, ...depends], EVERY_MS);
  return html`<h2>Who did what</h2><${Refusal} error=${found.error} />
    ${found.value && html`<${Table} caption="Who did what" head=${["when", "who", "what", "request or experiment"]} empty="Nothing that this key may know of."
      rows=${found.value.data.map((entry) => [when(entry.at), who(entry), VERBS[entry.verb] ?? entry.verb, html`<code>${entry.request_id}</code>`])} />`}
    <p><${CopyCurl} path=${path} /></p>`;
}
