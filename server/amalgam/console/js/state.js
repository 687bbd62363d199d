// What all pages share, as signals: the key, what it may do, where the reader is, and what they have to be told.

import { signal } from "../vendor/signals.js";

const KEY = "amalgam.key";
const THEME = "amalgam.theme";

/** The key of this tab; it is kept nowhere else. */
export const key = signal(sessionStorage.getItem(KEY) ?? "");
/** What the key may do; null until the server was asked. @type {{value: null | {asks: boolean, reads: boolean, changes: boolean, administers: boolean}}} */
export const allowed = signal(null);
/** What the server says of the key. @type {{value: null | {name: string, role: string}}} */
export const holder = signal(null);
/** Light or dark; empty: as the system has it. */
export const theme = signal(localStorage.getItem(THEME) ?? "");
/** @type {{value: {id: number, text: string, kind: "done" | "wrong"}[]}} */
export const notices = signal([]);
/** The page and what stands behind it in the address: #/adapters/sql is ["adapters", "sql"]. */
export const place = signal(parts());

/** @returns {string[]} */
function parts() {
  const path = location.hash.replace(/^#\/?/, "").split("?")[0];
  return path.split("/").filter(Boolean).map(decoded);
}

/** @param {string} part */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** What stands behind the question mark of the place. */
export function query() {
  return new URLSearchParams(location.hash.split("?")[1] ?? "");
}

/** @param {...string} to */
export function linkTo(...to) {
  return `#/${to.map(encodeURIComponent).join("/")}`;
}

/** Begin to follow the address. */
export function followAddress() {
  addEventListener("hashchange", () => {
    place.value = parts();
    window.scrollTo(0, 0);
  });
}

/** @param {string} value */
export function setKey(value) {
  key.value = value;
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** @param {string} value */
export function setTheme(value) {
  theme.value = value;
  if (value) localStorage.setItem(THEME, value);
  else localStorage.removeItem(THEME);
  document.documentElement.dataset.theme = value;
}

let next = 0;

/** Tell the reader something; it goes by itself. @param {string} text @param {"done" | "wrong"} [kind] */
export function notify(text, kind = "done") {
  const id = next++;
  notices.value = [...notices.value.slice(-3), { id, text, kind }];
  setTimeout(() => dismiss(id), kind === "wrong" ? 15000 : 5000);
}

/** @param {number} id */
export function dismiss(id) {
  notices.value = notices.value.filter((notice) => notice.id !== id);
}
