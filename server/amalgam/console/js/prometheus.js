// Prometheus' text format, as far as an overview needs it.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/**
 * The samples of a page, by name.
 * @param {string} text
 * @returns {Map<string, {labels: Record<string, string>, value: number}[]>}
 */
export function samples(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (match) {
      const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map((pair) => [pair[1], pair[2]]));
      const list = found.get(match[1]) ?? [];
      list.push({ labels, value: Number(match[3]) });
      found.set(match[1], list);
    }
  }
  return found;
}

/** Sum over all labels; 0 where there is no such metric. @param {ReturnType<typeof samples>} page @param {string} name */
export const total = (page, name) => (page.get(name) ?? []).reduce((sum, { value }) => sum + value, 0);

/**
 * What grew between two looks, by second.
 * @param {{at: number, page: ReturnType<typeof samples>}} before
 * @param {{at: number, page: ReturnType<typeof samples>}} now
 * @param {string} name
 */
export function rate(before, now, name) {
  return Math.max(0, total(now.page, name) - total(before.page, name)) / Math.max(0.001, (now.at - before.at) / 1000);
}

/** The mean of a histogram's observations between two looks; null where there were none. */
export function meanBetween(before, now, name) {
  const count = total(now.page, `${name}_count`) - total(before.page, `${name}_count`);
  return count > 0 ? (total(now.page, `${name}_sum`) - total(before.page, `${name}_sum`)) / count : null;
}
