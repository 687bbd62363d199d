// A streamed answer as a page shows it, asked again whenever what it depends on has rested for a moment.

import { useEffect, useMemo, useState } from "../vendor/hooks.js";
import { chat, NOTHING } from "./chat.js";
import { differing } from "./difference.js";
import { html } from "./html.js";
import { Refusal } from "./parts.js";

/**
 * The answer to a body; a newer body ends the older request.
 * @param {any} body null: nothing is asked
 * @param {number} restMs how long a body must stay the same before it is asked
 * @param {number} [round] grows when the same body is to be asked again
 */
export function useAnswer(body, restMs, round = 0) {
  const [answer, setAnswer] = useState(NOTHING);
  const [error, setError] = useState(null);
  const sent = body === null ? "" : JSON.stringify(body);
  useEffect(() => {
    setError(null);
    if (!sent) {
      setAnswer(NOTHING);
      return undefined;
    }
    const abort = new AbortController();
    const timer = setTimeout(async () => {
      try {
        for await (const state of chat(JSON.parse(sent), abort.signal)) if (!abort.signal.aborted) setAnswer(state);
      } catch (problem) {
        if (!abort.signal.aborted) {
          setAnswer(NOTHING);
          setError(problem);
        }
      }
    }, restMs);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [sent, restMs, round]);
  return { answer, error };
}

/** Below it a token was less likely than not. */
const HALF = Math.log(0.5);

/** What is said of a token on hover. @param {import("./chat.js").Token} token */
const said = (token) => (token.logprob === null ? undefined : `${(100 * Math.exp(token.logprob)).toFixed(1)} %, log-probability ${token.logprob.toFixed(3)}\n${token.others}`);

/**
 * Tokens; those that another answer does not have in the same order are marked.
 * @param {{answer: import("./chat.js").Answer, error: any, beside?: import("./chat.js").Answer | null}} given
 */
export function Answer({ answer, error, beside = null }) {
  const differs = useMemo(
    () => (beside?.tokens.length ? differing(answer.tokens.map((token) => token.text), beside.tokens.map((token) => token.text)) : new Set()),
    [answer.tokens, beside?.tokens],
  );
  const names = (token, at) => [differs.has(at) && "differs", token.logprob !== null && token.logprob < HALF && "unsure"].filter(Boolean).join(" ");
  return html`<div class="answer" aria-busy=${!answer.ended && answer.tokens.length > 0}>
    <p class="text" tabindex="0">${answer.tokens.map((token, at) => html`<span key=${at} class=${names(token, at)} title=${said(token)}>${token.text}</span>`)}${answer.tools && html`<code>${answer.tools}</code>`}</p>
    <${Refusal} error=${error} />
    <p class="times">${answer.firstMs === null ? "" : html`<span class="first">${Math.round(answer.firstMs)} ms</span> to the first token`}
      ${answer.perSecond === null ? "" : `, ${answer.perSecond.toFixed(1)} tokens/s`}${answer.served ? `, ${answer.served}` : ""}${differs.size > 0 && answer.ended ? `, ${differs.size} tokens otherwise` : ""}</p></div>`;
}
