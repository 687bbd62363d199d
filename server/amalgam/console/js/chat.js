// One streamed chat: its text as it grows, its tokens, and how fast they came.

import { stream } from "./api.js";

/**
 * @typedef {{text: string, logprob: number | null, others: string}} Token
 * @typedef {{tokens: Token[], served: string, firstMs: number | null, perSecond: number | null, ended: boolean, tools: string}} Answer
 */

/** @type {Answer} */
export const NOTHING = { tokens: [], served: "", firstMs: null, perSecond: null, ended: false, tools: "" };

/**
 * Ask, and give every state of the answer until it has ended.
 * @param {any} body as for /v1/chat/completions
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Answer>}
 */
export async function* chat(body, signal) {
  const began = performance.now();
  let answer = NOTHING;
  let first = 0;
  for await (const chunk of stream("/v1/chat/completions", { ...body, stream: true }, signal)) {
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const tokens = tokensOf(choice);
    const called = (choice.delta?.tool_calls ?? []).map((call) => `${call.function?.name ?? ""}${call.function?.arguments ?? ""}`).join("");
    if (!tokens.length && !called && choice.finish_reason === null) {
      answer = { ...answer, served: chunk.model };
      continue;
    }
    const now = performance.now();
    if (!first) first = now;
    const all = answer.tokens.concat(tokens);
    const perSecond = all.length > 1 && now > first ? ((all.length - 1) * 1000) / (now - first) : null;
    answer = { tokens: all, served: chunk.model, firstMs: first - began, perSecond, ended: false, tools: answer.tools + called };
    yield answer;
  }
  yield { ...answer, ended: true };
}

/** @returns {Token[]} */
function tokensOf(choice) {
  const listed = choice.logprobs?.content;
  if (listed?.length)
    return listed.map((one) => ({
      text: one.token,
      logprob: one.logprob,
      others: (one.top_logprobs ?? []).map((other) => `${JSON.stringify(other.token)} ${other.logprob.toFixed(2)}`).join("\n"),
    }));
  const text = choice.delta?.content || choice.delta?.reasoning || "";
  return text ? [{ text, logprob: null, others: "" }] : [];
}

/** @param {Answer} answer */
export const textOf = (answer) => answer.tokens.map((token) => token.text).join("");

/**
 * A chat with at most one system prompt.
 * @param {string} system @param {string} user
 */
export const messagesOf = (system, user) =>
  (system.trim() ? [{ role: "system", content: system }] : []).concat([{ role: "user", content: user }]);
