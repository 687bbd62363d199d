// The only caller of fetch. Paths are below the server's root, whatever prefix a proxy serves it under.

import { key } from "./state.js";

const ROOT = new URL("../../", import.meta.url);

/** What the server refused: its stable code, its sentence, and the id under which its log knows the request. */
export class ApiError extends Error {
  /**
   * @param {number} status HTTP status; 0 where no answer came
   * @param {string} code
   * @param {string} message
   * @param {string} requestId
   */
  constructor(status, code, message, requestId) {
    super(message);
    this.status = status;
    this.code = code;
    this.requestId = requestId;
  }
}

/** The address of a path, for examples to copy. @param {string} path */
export function address(path) {
  return new URL(path.replace(/^\//, ""), ROOT).href;
}

/** @param {string} part @returns {string} the part as it stands in a path */
export const inPath = (part) => encodeURIComponent(part);

/**
 * Ask, and return the response if it is a success.
 * @param {string} method
 * @param {string} path
 * @param {{body?: any, form?: FormData, signal?: AbortSignal, headers?: Record<string, string>}} [options]
 * @returns {Promise<Response>}
 */
export async function ask(method, path, { body, form, signal, headers } = {}) {
  const sent = new Headers(headers);
  if (key.value) sent.set("Authorization", `Bearer ${key.value}`);
  if (body !== undefined) sent.set("Content-Type", "application/json");
  let response;
  try {
    response = await fetch(address(path), {
      method,
      headers: sent,
      body: form ?? (body === undefined ? undefined : JSON.stringify(body)),
      signal,
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "no_answer", "The server does not answer. Look whether it is running.", "");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** @param {Response} response */
async function refusal(response) {
  const text = await response.text();
  let error;
  try {
    error = JSON.parse(text).error;
  } catch {
    error = null;
  }
  const message = error?.message ?? (text.slice(0, 300) || `The server answered ${response.status}.`);
  const code = error?.code ?? error?.type ?? String(response.status);
  return new ApiError(response.status, code, message, response.headers.get("x-request-id") ?? "");
}

/** The JSON of an answer. @param {string} path @param {AbortSignal} [signal] */
export async function get(path, signal) {
  return (await ask("GET", path, { signal })).json();
}

/** @param {string} method @param {string} path @param {any} [body] @param {AbortSignal} [signal] */
export async function send(method, path, body, signal) {
  const response = await ask(method, path, { body, signal });
  return response.status === 204 ? null : response.json();
}

/** Save what a route answers as a file. @param {string} path @param {string} name */
export async function download(path, name) {
  const blob = await (await ask("GET", path)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

/** The lines of a streamed answer, as they come. @param {Response} response @returns {AsyncGenerator<string>} */
async function* lines(response) {
  if (response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const found = (rest + value).split("\n");
    rest = found.pop() ?? "";
    yield* found;
  }
}

/** @param {string} line what it says behind `data:`; empty where it says nothing */
const dataOf = (line) => (line.startsWith("data:") ? line.slice(5).trim() : "");

/**
 * Server-sent events with their kinds.
 * @param {string} path
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<{kind: string, data: any}>}
 */
export async function* events(path, signal) {
  let kind = "";
  for await (const line of lines(await ask("GET", path, { signal }))) {
    if (line.startsWith("event:")) kind = line.slice(6).trim();
    const data = dataOf(line);
    if (data) yield { kind, data: JSON.parse(data) };
  }
}

/**
 * The events of a streamed answer, as objects.
 * @param {string} path
 * @param {any} body
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>}
 */
export async function* stream(path, body, signal) {
  const response = await ask("POST", path, { body, signal });
  for await (const line of lines(response)) {
    const data = dataOf(line);
    if (data === "[DONE]") return;
    if (!data) continue;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(response.status, String(event.error.code ?? event.error.type), event.error.message, "");
    yield event;
  }
}
