// A chart, drawn by Apache ECharts, which is fetched when the first chart is shown. What a chart shows stands in a table as
// well, for whoever sees no picture; the policy lets in no styles within markup, so that hints are drawn and not written.

import { useEffect, useRef, useState } from "../vendor/hooks.js";
import { html } from "./html.js";
import { theme } from "./state.js";

const LIBRARY = new URL("../vendor/echarts.js", import.meta.url).href;

/** @returns {Promise<any>} the library, which leaves itself at the window */
async function library() {
  await import(LIBRARY);
  return /** @type {any} */ (globalThis).echarts;
}

/** A colour of the page. @param {string} name */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** The page's own colours, for what every chart has. @param {any} option */
function dressed(option) {
  const line = { lineStyle: { color: colour("line") } };
  const axis = (one) => one && { axisLine: line, splitLine: line, axisLabel: { color: colour("faint") }, nameTextStyle: { color: colour("faint") }, ...one };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  return {
    animation: !still,
    animationDuration: 200,
    textStyle: { fontFamily: "system-ui, sans-serif" },
    color: ["accent", "warm", "good", "warn", "cold", "wrong"].map(colour),
    ...option,
    tooltip: { renderMode: "richText", confine: true, backgroundColor: colour("raised"), borderColor: colour("line"), textStyle: { color: colour("text") }, ...option.tooltip },
    legend: option.legend && { textStyle: { color: colour("text") }, pageTextStyle: { color: colour("text") }, type: "scroll", top: 0, ...option.legend },
    xAxis: axis(option.xAxis),
    yAxis: axis(option.yAxis),
  };
}

/**
 * @param {{option: any, label: string, pick?: (data: any) => void}} given what ECharts is told; what the chart shows, in words;
 *   and what a click on one of its points does
 */
export function Chart({ option, label, pick = () => {} }) {
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const drawn = useRef(/** @type {any} */ (null));
  const picked = useRef(pick);
  const [ready, setReady] = useState(false);
  const [missing, setMissing] = useState(false);
  picked.current = pick;
  useEffect(() => {
    let gone = false;
    const watch = new ResizeObserver(() => drawn.current?.resize());
    library().then(
      (echarts) => {
        if (gone || !place.current) return;
        drawn.current = echarts.init(place.current, null, { renderer: "canvas" });
        drawn.current.on("click", (event) => picked.current(event.data));
        watch.observe(place.current);
        setReady(true);
      },
      () => setMissing(true),
    );
    return () => {
      gone = true;
      watch.disconnect();
      drawn.current?.dispose();
    };
  }, []);
  useEffect(() => {
    drawn.current?.setOption(dressed(option), { replaceMerge: ["series"] });
  }, [option, ready, theme.value]);
  if (missing) return html`<p class="empty">The chart could not be fetched; the table has the same numbers.</p>`;
  return html`<div class="chart" ref=${place} role="img" aria-label=${label}></div>`;
}
