// A folder dropped on the page is checked first, with every finding shown, and becomes a version if it is sound.

import { useRef, useState } from "../vendor/hooks.js";
import { ask } from "../js/api.js";
import { html } from "../js/html.js";
import { Action, Field, Refusal, size } from "../js/parts.js";
import { notify } from "../js/state.js";

/** The files below a dropped entry, with their places in it. @returns {Promise<{file: File, path: string}[]>} */
async function filesOf(entry, above = "") {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: above + entry.name }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    for (const one of some) found.push(...(await filesOf(one, `${above}${entry.name}/`)));
  }
  return found;
}

/** @param {DataTransfer} given */
async function dropped(given) {
  const loose = [...given.files];
  const entries = [...given.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return chosen(loose);
  const lists = await Promise.all(entries.map((entry) => filesOf(entry)));
  return lists.flat();
}

const chosen = (list) => [...list].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

function form(name, files, isDefault) {
  const sent = new FormData();
  sent.append("name", name);
  if (isDefault !== undefined) sent.append("set_default", String(isDefault));
  for (const { file, path } of files) sent.append("files", file, path);
  return sent;
}

function Findings({ report }) {
  if (!report) return null;
  return html`<div role="status"><p>${report.valid ? "Sound" : "Not taken"}: rank ${report.rank}, ${report.module_count} modules, ${size(report.size_bytes)}.</p>
    <ul class="findings">${report.findings.map((finding, at) => html`<li key=${at} class=${finding.severity}>
      <code>${finding.code}</code> ${finding.message}${finding.module && html` <small>${finding.module}</small>`}</li>`)}</ul></div>`;
}

export default function Upload({ done }) {
  const [files, setFiles] = useState([]);
  const [name, setName] = useState("");
  const [report, setReport] = useState(null);
  const [error, setError] = useState(null);
  const [over, setOver] = useState(false);
  const input = useRef(null);

  async function take(found) {
    setFiles(found);
    setReport(null);
    setError(null);
    const suggested = name || (found[0]?.path.includes("/") ? found[0].path.split("/")[0].replace(/[^\w.-]/g, "-") : "");
    setName(suggested);
    if (!found.length) return;
    try {
      setReport(await (await ask("POST", "/admin/v1/adapters:validate", { form: form(suggested || "unnamed", found) })).json());
    } catch (problem) {
      setError(problem);
    }
  }
  async function register() {
    setError(null);
    try {
      const made = await (await ask("POST", "/admin/v1/adapters", { form: form(name, files, true) })).json();
      notify(`${made.model ?? name} answers now`);
      setFiles([]);
      setReport(null);
      setName("");
      done();
    } catch (problem) {
      setError(problem);
    }
  }
  const events = {
    onDragOver: (event) => {
      event.preventDefault();
      setOver(true);
    },
    onDragLeave: () => setOver(false),
    onDrop: (event) => {
      event.preventDefault();
      setOver(false);
      dropped(event.dataTransfer).then(take, setError);
    },
  };
  return html`<section class=${over ? "drop over" : "drop"} aria-label="Upload an adapter" ...${events}>
    <p>Drop an adapter's folder here, or <button type="button" class="quiet" onClick=${() => input.current.click()}>choose its files</button>
      <input ref=${input} class="unseen" type="file" multiple tabindex="-1" aria-label="files of the adapter" onChange=${(event) => take(chosen(event.target.files))} /></p>
    ${files.length > 0 && html`<div class="row">
      <${Field} label="Name"><input value=${name} maxlength="128" onInput=${(event) => setName(event.target.value)} /><//>
      <${Action} label="Register" does=${register} disabled=${!name || (report !== null && !report.valid)} />
      <span>${files.length} files, ${size(files.reduce((sum, { file }) => sum + file.size, 0))}</span></div>`}
    <${Findings} report=${report} /><${Refusal} error=${error} /></section>`;
}
