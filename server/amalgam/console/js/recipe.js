// A merge as the lab holds it, and as the text that a request's model or a merge takes: both ways.

/**
 * @typedef {{model: string, weight: number, locked: boolean}} Input
 * @typedef {{method: string, inputs: Input[], parameters: Record<string, string>}} Lab
 */

const PLAIN = "task_arithmetic";
const NAME = /^[A-Za-z0-9][\w.-]*(?:@\d+)?$/;

/** A number without a tail of zeros. @param {number} value */
export const short = (value) => String(Number(value.toFixed(4)));

/** The text of a merge; empty where nothing is chosen. @param {Lab} lab @returns {string} */
export function written({ method, inputs, parameters }) {
  const used = inputs.filter((input) => input.weight !== 0 || method !== PLAIN);
  if (!used.length) return "";
  const set = Object.entries(parameters).filter(([, value]) => value !== "");
  const term = ({ model, weight }) => (weight === 1 ? model : `${short(weight)}*${model}`);
  if (method === PLAIN && !set.length) {
    return used.map((input, at) => {
      if (at === 0) return term(input);
      return input.weight < 0 ? ` - ${term({ ...input, weight: -input.weight })}` : ` + ${term(input)}`;
    }).join("");
  }
  const settings = set.map(([name, value]) => `${name}=${value}`).join(", ");
  return `${method}(${used.map(term).join(", ")}${settings && `; ${settings}`})`;
}

/**
 * The merge that a text means; null where it is none of the forms that sliders can show.
 * @param {string} text
 * @returns {Lab | null}
 */
export function read(text) {
  const call = /^\s*([a-z_]+)\s*\(([^()]*)\)\s*$/.exec(text);
  const [terms, settings = ""] = call ? call[2].split(";") : [text];
  const parts = call ? terms.split(",") : terms.split(/\s+(?=[+-]\s)|\s*(?=\+)/);
  const inputs = parts.filter((part) => part.trim()).map(input);
  if (!inputs.length || inputs.includes(null)) return null;
  const pairs = settings.split(",").map((pair) => pair.trim()).filter(Boolean).map((pair) => pair.split("=").map((side) => side.trim()));
  if (pairs.some((pair) => pair.length !== 2 || !pair[1])) return null;
  return { method: call ? call[1] : PLAIN, inputs: /** @type {Input[]} */ (inputs), parameters: Object.fromEntries(pairs) };
}

/** @param {string} part @returns {Input | null} */
function input(part) {
  const match = /^\s*([+-]?)\s*(?:(-?\d+(?:\.\d+)?|-?\.\d+)\s*\*\s*)?(\S+)\s*$/.exec(part);
  if (!match || !NAME.test(match[3])) return null;
  const weight = Number(match[2] ?? 1) * (match[1] === "-" ? -1 : 1);
  return { model: match[3], weight, locked: false };
}

/** Weights of a sum of 1 over those that are not locked. @param {Input[]} inputs @returns {Input[]} */
export function normalised(inputs) {
  const locked = inputs.filter((one) => one.locked).reduce((sum, one) => sum + one.weight, 0);
  const free = inputs.filter((one) => !one.locked).reduce((sum, one) => sum + one.weight, 0);
  if (Math.abs(free) < 1e-9) return inputs;
  return inputs.map((one) => (one.locked ? one : { ...one, weight: rounded((one.weight * (1 - locked)) / free) }));
}

/** Other weights by chance, of those that are not locked. @param {Input[]} inputs @param {() => number} chance @returns {Input[]} */
export const diced = (inputs, chance) =>
  inputs.map((one) => (one.locked ? one : { ...one, weight: rounded(Math.round((0.2 + chance()) * 20) / 20) }));

/** @param {number} value */
const rounded = (value) => Math.round(value * 1000) / 1000;
