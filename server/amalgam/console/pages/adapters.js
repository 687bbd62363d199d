// All adapters, searched by name; one of them with its versions; and the way in for new ones.

import { useState } from "../vendor/hooks.js";
import { get, inPath } from "../js/api.js";
import { html } from "../js/html.js";
import { CopyCurl, Field, Refusal, Table, useLoaded } from "../js/parts.js";
import { allowed, linkTo } from "../js/state.js";
import Adapter from "./adapter.js";
import Upload from "./upload.js";

const PAGE = 50;

function List() {
  const [search, setSearch] = useState("");
  const [cursors, setCursors] = useState([""]);
  const cursor = cursors[cursors.length - 1];
  const path = `/admin/v1/adapters?limit=${PAGE}${search ? `&search=${inPath(search)}` : ""}${cursor ? `&cursor=${inPath(cursor)}` : ""}`;
  const list = useLoaded((signal) => get(path, signal), [path]);
  const engine = useLoaded((signal) => get("/admin/v1/engine", signal), [path]);
  const residents = new Map((engine.value?.residents ?? []).map((one) => [one.model, one]));
  const rows = (list.value?.data ?? []).map((adapter) => {
    const current = adapter.versions.find((version) => version.version === adapter.default_version);
    const resident = current && residents.get(current.model);
    return [
      html`<a href=${linkTo("adapters", adapter.name)}>${adapter.name}</a>`,
      adapter.default_version ?? "–",
      adapter.versions.length,
      current?.rank ?? "–",
      current?.source ?? "–",
      resident ? (resident.pinned ? "pinned" : "in memory") : "",
      adapter.description,
    ];
  });
  return html`<h1>Adapters</h1>
    ${allowed.value?.changes && html`<${Upload} done=${list.again} />`}
    <${Field} label="Search by name"><input type="search" value=${search} maxlength="128" onInput=${(event) => {
      setSearch(event.target.value.replace(/[^\w.-]/g, ""));
      setCursors([""]);
    }} /><//>
    <${Refusal} error=${list.error} />
    ${list.value && html`<${Table} caption="Adapters" head=${["name", "default", "versions", "rank", "from", "engine", "description"]}
      rows=${rows} empty=${search ? "No adapter has such a name." : "There is no adapter yet."} />`}
    <p class="row">
      <button type="button" disabled=${cursors.length < 2} onClick=${() => setCursors(cursors.slice(0, -1))}>Before</button>
      <button type="button" disabled=${!list.value?.next_cursor} onClick=${() => setCursors([...cursors, list.value.next_cursor])}>Next</button>
      <${CopyCurl} path=${path} />
    </p>`;
}

export default function Adapters({ rest }) {
  return rest.length ? html`<${Adapter} key=${rest[0]} name=${rest[0]} />` : html`<${List} />`;
}
