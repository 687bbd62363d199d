// Item sets as people paste or upload them.

/** An item of each task; those of a sweep are named as its adapters. @param {string[]} tasks */
export const example = (tasks) => tasks.map((task) => ({ task, messages: [{ role: "user", content: "2 + 2 = ?" }], reference: "4" }));

/** Items from a text: a JSON list, or one JSON object a line. @param {string} text @returns {any[]} */
export function itemsOf(text) {
  try {
    const all = JSON.parse(text);
    return Array.isArray(all) ? all : [all];
  } catch {
    return text.split("\n").map((line, at) => ({ line, at })).filter(({ line }) => line.trim()).map(({ line, at }) => {
      try {
        return JSON.parse(line);
      } catch (problem) {
        throw new Error(`Line ${at + 1} of the items is no JSON: ${problem instanceof Error ? problem.message : problem}`);
      }
    });
  }
}
