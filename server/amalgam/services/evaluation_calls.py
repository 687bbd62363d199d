"""One item asked of one target: through the same admission and the same handlers as a client's request."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, Final

from amalgam.domain.answer_metrics import ANSWER_METRICS, KEPT, LOG_LIKELIHOOD, given
from amalgam.domain.evaluation import MAX_ANSWER, Evaluation, EvaluationItem, Measurement
from amalgam.domain.routing import Said
from amalgam.engine.protocol import Endpoint
from amalgam.errors import AmalgamError
from amalgam.errors.evaluations import AnswerUnreadable
from amalgam.routing.request_text import said_in
from amalgam.services.inference import Inference
from amalgam.services.inner_charges import InnerCharges
from amalgam.services.own_answers import OwnAnswers
from amalgam.services.spare_capacity import SpareCapacity
from amalgam.telemetry.context import note_adapter

logger = logging.getLogger(__name__)

CLIENT: Final = "evaluations"
"""Their new blends are counted together, and are not those of any key."""
_RETRY_FOR_S: Final = 300.0
"""So long is waited for an engine that restarts, for a slot, or for another new blend."""
_LONGEST_PAUSE_S: Final = 60.0

Ask = Callable[[Endpoint, dict[str, Any]], Awaitable[Mapping[str, Any]]]
"""It asks the engine, and gives the answer's JSON object."""


class EvaluationCalls:
    """Measures items.

    Args:
        inference: resolves and holds targets.
        ask: the engine.
        spare: says when a call may begin.
        base_name: of the base model, which breaks texts into tokens for all.
        own: what candidates of sweeps are to keep.
        clock: monotonic seconds.
        charges: charges calls to who asked for the evaluation.
    """

    def __init__(
        self,
        inference: Inference,
        ask: Ask,
        spare: SpareCapacity,
        base_name: str,
        own: OwnAnswers,
        clock: Callable[[], float] = time.monotonic,
        charges: InnerCharges | None = None,
    ) -> None:
        self._inference = inference
        self._ask = ask
        self._spare = spare
        self._base_name = base_name
        self._clock = clock
        self._charges = charges
        self._own = own

    async def measure(self, evaluation: Evaluation, target: int, index: int, item: EvaluationItem) -> Measurement:
        """Ask, and score. What is refused is a measurement too; where nobody served, it is the target that was refused.

        Raises:
            AmalgamError: one that a later try may not meet: the server could not be asked for ``_RETRY_FOR_S``.
        """
        deadline = self._clock() + _RETRY_FOR_S
        while True:
            await self._spare.wait()
            try:
                async with self._charged(evaluation, target, item):
                    return await self._once(evaluation, target, index, item)
            except AmalgamError as error:
                if error.retry_after_s is None:
                    return Measurement(target=target, item=index, error_code=error.code)
                if self._clock() > deadline:
                    raise
                logger.info("evaluation_waits evaluation=%s reason=%s", evaluation.id, error)
                await asyncio.sleep(min(error.retry_after_s, _LONGEST_PAUSE_S))

    def _charged(self, evaluation: Evaluation, target: int, item: EvaluationItem) -> AbstractAsyncContextManager[None]:
        if self._charges is None:
            return nullcontext()
        return self._charges.charged(evaluation, evaluation.targets[target].pinned, item)

    async def _once(self, evaluation: Evaluation, target: int, index: int, item: EvaluationItem) -> Measurement:
        wanted = {name: given(ANSWER_METRICS[name], item.reference, item.pattern) for name in evaluation.metrics}
        reference = wanted.pop(LOG_LIKELIHOOD, None)
        own = None if wanted.pop(KEPT, None) is None else await self._own.of(evaluation, index, item)
        answer: str | None = None
        values: dict[str, float] = {}
        model = evaluation.targets[target].pinned
        # A weighted alias means the same for an item whatever else is asked.
        user = f"{evaluation.items_digest}-{index}"
        async with self._inference.admit(model, user=user, said=partial(_said, item), client=CLIENT) as held:
            served = held.engine_name
            note_adapter(served)
            try:
                if any(value is not None for value in wanted.values()):
                    answer = await self._generate(served, item, evaluation.max_tokens)
                if reference is not None:
                    likelihood = await self._likelihood(served, item, reference)
                    values |= {} if likelihood is None else {LOG_LIKELIHOOD: likelihood}
                if own is not None:
                    values |= await self._own.values(evaluation, target, item.task, served, own)
            except AmalgamError as error:
                if error.retry_after_s is not None:
                    raise
                return Measurement(target=target, item=index, served=served, error_code=error.code)
        if answer is not None:
            # A pattern may take a while, and the streams of clients must not wait for it.
            values |= await asyncio.to_thread(score, answer, wanted)
            answer = answer.replace("\x00", "\ufffd")[:MAX_ANSWER]
        return Measurement(target=target, item=index, served=served, answer=answer, values=values)

    async def _generate(self, model: str, item: EvaluationItem, max_tokens: int) -> str:
        """The greedy answer."""
        body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": 0}
        if item.messages is None:
            reply = await self._ask("completions", body | {"prompt": item.prompt})
        else:
            reply = await self._ask("chat_completions", body | {"messages": [dict(m) for m in item.messages]})
        try:
            choice = reply["choices"][0]
            text = choice["text"] if item.messages is None else choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise AnswerUnreadable("text") from None
        return str(text or "")

    async def _likelihood(self, model: str, item: EvaluationItem, reference: str) -> float | None:
        """Mean log-probability of the reference's tokens after the question; None of a reference without tokens.

        The reference is broken into tokens by itself, so that the same tokens are weighed whatever the question's end
        is, and without a token that would end the answer.
        """
        question = {"messages": [dict(m) for m in item.messages]} if item.messages else {"prompt": item.prompt}
        before = await self._tokens(question)
        weighed = await self._tokens({"prompt": reference, "add_special_tokens": False})
        if not weighed:
            return None
        body = {"model": model, "prompt": [*before, *weighed], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        reply = await self._ask("completions", body)
        return mean_logprob(reply, weighed)

    async def _tokens(self, question: Mapping[str, Any]) -> list[int]:
        reply = await self._ask("tokenize", {"model": self._base_name} | dict(question))
        try:
            return [int(token) for token in reply["tokens"]]
        except (KeyError, TypeError, ValueError):
            raise AnswerUnreadable("tokens") from None


def _said(item: EvaluationItem) -> Said:
    return said_in({"prompt": item.prompt} if item.messages is None else {"messages": list(item.messages)})


def score(answer: str, wanted: Mapping[str, str | None]) -> dict[str, float]:
    """Metric -> value, of those that apply: which is where ``wanted`` has something."""
    found: dict[str, float] = {}
    for name, needed in wanted.items():
        measure = ANSWER_METRICS[name].score
        if needed is not None and measure is not None:
            found[name] = measure(answer, needed)
    return found


def mean_logprob(reply: Mapping[str, Any], weighed: Sequence[int]) -> float:
    """The mean over the prompt's last tokens, which are ``weighed``, in nats.

    Raises:
        AnswerUnreadable: vLLM told other tokens, or none.
    """
    try:
        told = reply["choices"][0]["prompt_logprobs"][-len(weighed) :]
        logprobs = [float(at[str(token)]["logprob"]) for at, token in zip(told, weighed, strict=True)]
    except (KeyError, IndexError, TypeError, ValueError):
        raise AnswerUnreadable("log-probabilities of the prompt") from None
    return sum(logprobs) / len(logprobs)
