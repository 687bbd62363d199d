// Examples of a router as people type them: one a line.

/** A line break within an example is written \n, and a backslash \\. @param {string[]} texts */
export const lined = (texts) => texts.map((text) => text.replaceAll("\\", "\\\\").replaceAll("\r", "\\r").replaceAll("\n", "\\n")).join("\n");

const MEANT = { n: "\n", r: "\r", "\\": "\\" };

/** @param {string} text @returns {string[]} */
export const unlined = (text) =>
  text.split("\n").filter((line) => line.trim()).map((line) => line.replace(/\\([nr\\])/g, (_, letter) => MEANT[letter]));
