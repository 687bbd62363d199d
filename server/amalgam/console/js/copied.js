// The request behind a view, for a terminal and for Python.

import { address } from "./api.js";

const CHAT = "/v1/chat/completions";
/** What the `openai` client takes by name; the rest goes into the body as it is. */
const NAMED = new Set(["temperature", "max_tokens", "top_p", "stream", "stop", "seed", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format"]);

/** The same request for a terminal. @param {string} method @param {string} path @param {any} [body] */
export function asCurl(method, path, body) {
  const parts = ["curl", method === "GET" ? "" : `-X ${method}`, quoted(address(path))];
  parts.push(`-H "Authorization: Bearer $AMALGAM_KEY"`);
  if (body !== undefined) parts.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
  return parts.filter(Boolean).join(" ");
}

/** @param {string} text */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** The same request for Python: a chat by the `openai` client, the rest by `httpx`. @param {string} method @param {string} path @param {any} [body] */
export function asPython(method, path, body) {
  return method === "POST" && path === CHAT ? chatInPython(body) : [
    "import os",
    "",
    "import httpx",
    "",
    `answer = httpx.request(${text(method)}, ${text(address(path))}, timeout=600,`,
    `    headers={"Authorization": f"Bearer {os.environ['AMALGAM_KEY']}"}${body === undefined ? "" : `,\n    json=${python(body)}`})`,
    "answer.raise_for_status()",
    "print(answer.text)",
  ].join("\n");
}

/** @param {any} body */
function chatInPython({ model, messages, ...rest }) {
  const named = Object.entries(rest).filter(([name]) => NAMED.has(name)).map(([name, value]) => `, ${name}=${python(value)}`);
  const others = Object.entries(rest).filter(([name]) => !NAMED.has(name));
  const extra = others.length ? `,\n    extra_body=${python(Object.fromEntries(others))}` : "";
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${text(address("/v1"))}, api_key=os.environ["AMALGAM_KEY"])`,
    "answer = client.chat.completions.create(",
    `    model=${text(model)}, messages=${python(messages)}${named.join("")}${extra}`,
    ")",
    rest.stream
      ? 'for chunk in answer:\n    print(chunk.choices[0].delta.content or "", end="")'
      : "print(answer.choices[0].message.content)",
  ].join("\n");
}

/** A text of JSON is one of Python. @param {any} value */
const text = (value) => JSON.stringify(value);

/** @param {any} value @returns {string} */
function python(value) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value !== "object") return text(value);
  return `{${Object.entries(value).filter(([, inner]) => inner !== undefined).map(([name, inner]) => `${text(name)}: ${python(inner)}`).join(", ")}}`;
}
