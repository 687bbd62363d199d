// The frame of all pages: who asks, where to go, and what there is to say.

import { render } from "../vendor/preact.js";
import { useEffect, useState } from "../vendor/hooks.js";
import { ApiError, get } from "./api.js";
import { html } from "./html.js";
import { Refusal } from "./parts.js";
import { allowed, dismiss, followAddress, holder, key, linkTo, notices, place, setKey, setTheme, theme } from "./state.js";

/** Pages by the first part of the address, and what a key has to be good for; each is fetched when it is first opened. */
const PAGES = {
  overview: { title: "Overview", needs: "reads", load: () => import("../pages/overview.js") },
  adapters: { title: "Adapters", needs: "reads", load: () => import("../pages/adapters.js") },
  lab: { title: "Merge lab", needs: "changes", load: () => import("../pages/lab.js") },
  playground: { title: "Playground", needs: "asks", load: () => import("../pages/playground.js") },
  aliases: { title: "Aliases", needs: "reads", load: () => import("../pages/aliases.js") },
  evaluations: { title: "Evaluations", needs: "reads", load: () => import("../pages/evaluations.js") },
  jobs: { title: "Jobs", needs: "reads", load: () => import("../pages/jobs.js") },
  batches: { title: "Batches", needs: "asks", load: () => import("../pages/batches.js") },
  tenants: { title: "Tenants", needs: "reads", load: () => import("../pages/tenants.js") },
  usage: { title: "Usage", needs: "reads", load: () => import("../pages/usage.js") },
  key: { title: "This key", needs: "", isListed: false, load: () => import("../pages/key.js") },
};

/** What keys of each role are good for. */
const ROLES = {
  client: { asks: true, reads: false, changes: false, administers: false },
  reader: { asks: false, reads: true, changes: false, administers: false },
  publisher: { asks: true, reads: true, changes: true, administers: false },
  admin: { asks: true, reads: true, changes: true, administers: true },
};

/** Ask the server whose key this is. Without one, and with one that is not known, nothing is allowed. */
async function learnRole() {
  try {
    const me = await get("/v1/me");
    holder.value = me;
    allowed.value = ROLES[me.role];
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 401 || error.code !== "invalid_api_key") throw error;
    if (key.value) throw new Error("The server does not know this key.");
  }
}

function KeyForm() {
  const [error, setError] = useState(null);
  useEffect(() => {
    learnRole().catch(setError);
  }, []);
  async function submit(event) {
    event.preventDefault();
    setError(null);
    setKey(String(new FormData(event.target).get("key")).trim());
    try {
      await learnRole();
    } catch (problem) {
      setError(problem);
    }
  }
  return html`<main class="key"><h1>Amalgam</h1>
    <form onSubmit=${submit}>
      <label class="field"><span>Key of this server</span><input name="key" type="password" autocomplete="off" autofocus /></label>
      <button type="submit">Open</button>
    </form>
    <p>The key stays in this tab, and is forgotten with it. The admin key shows everything; a client key can ask.</p>
    <${Refusal} error=${error} /></main>`;
}

function Page({ name }) {
  const [page, setPage] = useState(/** @type {null | {name: string, View: any}} */ (null));
  const [error, setError] = useState(null);
  useEffect(() => {
    let current = true;
    setError(null);
    PAGES[name].load().then(
      (module) => current && setPage({ name, View: module.default }),
      (problem) => current && setError(problem),
    );
    document.title = `${PAGES[name].title} · Amalgam`;
    return () => {
      current = false;
    };
  }, [name]);
  if (error) return html`<${Refusal} error=${error} />`;
  return page?.name === name ? html`<${page.View} rest=${place.value.slice(1)} />` : html`<p class="loading">Loading…</p>`;
}

function Shell() {
  const may = allowed.value;
  if (may === null) return html`<${KeyForm} />`;
  const first = may.reads ? "overview" : "playground";
  const wanted = place.value[0] in PAGES ? place.value[0] : first;
  const shown = Object.entries(PAGES).filter(([, { needs, isListed = true }]) => isListed && may[needs]);
  const name = wanted === "key" || may[PAGES[wanted].needs] ? wanted : first;
  const dark = theme.value === "dark" || (theme.value === "" && matchMedia("(prefers-color-scheme: dark)").matches);
  return html`<button type="button" class="skip" onClick=${() => document.getElementById("page")?.focus()}>Skip to the page</button>
    <header>
      <a class="brand" href="#/">Amalgam</a>
      <nav aria-label="Pages">${shown.map(([page, { title }]) => html`
        <a key=${page} href=${linkTo(page)} aria-current=${page === name ? "page" : undefined}>${title}</a>`)}
        <a href="docs.html">API</a></nav>
      <button type="button" class="quiet" onClick=${() => setTheme(dark ? "light" : "dark")}>${dark ? "light" : "dark"}</button>
      ${key.value && html`<a href=${linkTo("key")} aria-current=${name === "key" ? "page" : undefined}>${holder.value?.name || holder.value?.role}</a>
        <button type="button" class="quiet" onClick=${() => {
          allowed.value = null;
          setKey("");
        }}>forget key</button>`}
    </header>
    <main id="page" tabindex="-1"><${Page} name=${name} /></main>`;
}

const Notices = () => html`<div class="notices" role="status" aria-live="polite">${notices.value.map((notice) => html`
  <p key=${notice.id} class=${notice.kind}>${notice.text}
    <button type="button" class="quiet" aria-label="dismiss" onClick=${() => dismiss(notice.id)}>×</button></p>`)}</div>`;

followAddress();
setTheme(theme.value);
const root = document.getElementById("app");
if (root !== null) {
  root.textContent = "";
  render(html`<${Shell} /><${Notices} />`, root);
}
