// What was used, by whom and of what, over time.

import { useMemo, useState } from "../vendor/hooks.js";
import { download, get, inPath } from "../js/api.js";
import { Chart } from "../js/chart.js";
import { html } from "../js/html.js";
import { Action, CopyCurl, Field, Refusal, Table, useLoaded } from "../js/parts.js";
import { linkTo, query } from "../js/state.js";

const EVERY_MS = 10_000;
const HOUR_S = 3600;
const MOST_SERIES = 10;
const SPANS = {
  hour: { words: "the last hour, by minutes", seconds: HOUR_S, width: "1m", width_s: 60 },
  day: { words: "the last day, by hours", seconds: 24 * HOUR_S, width: "1h", width_s: HOUR_S },
  week: { words: "the last week, by hours", seconds: 7 * 24 * HOUR_S, width: "1h", width_s: HOUR_S },
  month: { words: "the last 30 days, by days", seconds: 30 * 24 * HOUR_S, width: "1d", width_s: 24 * HOUR_S },
};
const GROUPS = { model: "model", version: "exact version", tenant: "tenant", key: "key", alias: "alias", endpoint: "endpoint" };
const COUNTS = {
  tokens: { words: "tokens, asked and answered", of: (line) => line.prompt_tokens + line.completion_tokens },
  completion_tokens: { words: "tokens answered", of: (line) => line.completion_tokens },
  prompt_tokens: { words: "tokens asked", of: (line) => line.prompt_tokens },
  cached_tokens: { words: "of these, found in the cache", of: (line) => line.cached_tokens },
  requests: { words: "requests", of: (line) => line.requests },
  blend_builds: { words: "blends built", of: (line) => line.blend_builds },
};
const NAMELESS = "(none)";

/** Sums by group, largest first. @returns {[string, any][]} */
function totals(lines, by) {
  const found = new Map();
  for (const line of lines) {
    const name = line[by] || NAMELESS;
    const row = found.get(name) ?? found.set(name, { requests: 0, prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0, blend_builds: 0 }).get(name);
    for (const count of Object.keys(row)) row[count] += line[count];
  }
  return [...found];
}

/** When each bucket of a report begins, those without any use too: Unix milliseconds. */
function bucketsOf(report, width_s) {
  const [first, end] = [report.start_time, report.end_time].map((moment) => Math.floor(Date.parse(moment) / 1000 / width_s));
  return Array.from({ length: end - first + 1 }, (_, at) => (first + at) * width_s * 1000);
}

/** A bar for each bucket of time, of one piece a group; small groups are one piece. */
function chartOf(report, { by, count, span }, groups) {
  const { of, words } = COUNTS[count];
  const named = groups.slice(0, MOST_SERIES).map(([name]) => name);
  const times = bucketsOf(report, SPANS[span].width_s);
  const at = new Map(times.map((time, index) => [time, index]));
  const rows = new Map([...named, ...(groups.length > MOST_SERIES ? ["others"] : [])].map((name) => [name, new Array(times.length).fill(0)]));
  for (const line of report.data) {
    const row = rows.get(line[by] || NAMELESS) ?? rows.get("others");
    if (row) row[at.get(Date.parse(line.start_time)) ?? 0] += of(line);
  }
  const shown = (time) => new Date(time).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
  return {
    grid: { left: 70, right: 20, top: 40, bottom: 30 },
    legend: {},
    tooltip: { trigger: "axis" },
    xAxis: { type: "category", data: times.map(shown) },
    yAxis: { type: "value", name: words, nameLocation: "middle", nameGap: 52, minInterval: 1 },
    series: [...rows].map(([name, data]) => ({ name, type: "bar", stack: "all", data, barMaxWidth: 48 })),
  };
}

export default function Usage() {
  const [form, setForm] = useState({ span: "day", by: "model", count: "tokens", tenant: query().get("tenant") ?? "" });
  const { span, by, count, tenant } = form;
  const { seconds, width } = SPANS[span];
  const path = (start, more = "") => `/admin/v1/usage?by=${by}&bucket_width=${width}&start_time=${start}${tenant ? `&tenants=${inPath(tenant)}` : ""}${more}`;
  const since = () => Math.floor(Date.now() / 1000) - seconds;
  const report = useLoaded((signal) => get(path(since()), signal), [span, by, tenant], EVERY_MS);
  const tenants = useLoaded((signal) => get("/admin/v1/tenants?limit=100", signal), []);
  const groups = useMemo(() => {
    const found = report.value ? totals(report.value.data, by) : [];
    return found.sort((one, other) => COUNTS[count].of(other[1]) - COUNTS[count].of(one[1]));
  }, [report.value, by, count]);
  const option = useMemo(() => report.value && chartOf(report.value, form, groups), [groups]);
  const select = (name, label, choices) => html`<${Field} label=${label}><select value=${form[name]} onChange=${(event) => setForm({ ...form, [name]: event.target.value })}>
    ${Object.entries(choices).map(([value, choice]) => html`<option key=${value} value=${value}>${choice.words ?? choice}</option>`)}</select><//>`;
  const of = (name) => (by === "tenant" && name !== NAMELESS ? html`<a href=${linkTo("tenants", name)}>${name}</a>` : name);
  return html`<h1>Usage</h1>
    <div class="row">${select("span", "Of", SPANS)}${select("by", "By", GROUPS)}${select("count", "Counted", COUNTS)}
      ${select("tenant", "Tenant", { "": "all", ...Object.fromEntries((tenants.value?.data ?? []).map((one) => [one.id, one.id])) })}</div>
    <${Refusal} error=${report.error ?? tenants.error} />
    ${groups.length > 0 && html`<${Chart} option=${option} label=${`${COUNTS[count].words}, ${SPANS[span].words}, by ${GROUPS[by]}; the table below has the sums`} />`}
    ${report.value && html`<${Table} caption="Usage" head=${[GROUPS[by], "requests", "tokens asked", "of these cached", "tokens answered", "blends built"]}
      rows=${groups.map(([name, row]) => [of(name), row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.blend_builds])}
      empty="Nothing was used in this time." />`}
    <p class="row"><${Action} label="Download as CSV" needs="reads" does=${() => download(path(since(), "&format=csv"), "usage.csv")} />
      <${CopyCurl} path=${path(since())} /></p>`;
}
