"""What a merge keeps of its inputs, measured on the engine that serves, beside the requests of clients.

Each input answers its prompts greedily, one call a prompt. The merge reads prompt and answer in one more call, whose
prompt log-probabilities say at every token what it would have written itself; see `amalgam.domain.kept`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from amalgam.domain.evaluation import EvaluationItem
from amalgam.domain.kept import AnswerRead, InputKept, input_kept
from amalgam.engine.protocol import Endpoint
from amalgam.errors.evaluations import AnswerUnreadable
from amalgam.services.spare_capacity import SpareCapacity

CLIENT: Final = "evaluations"
"""It takes turns with the keys, as one of them, and shares what it has in the prefix cache with evaluations."""

Ask = Callable[[Endpoint, dict[str, Any]], Awaitable[Mapping[str, Any]]]
"""It asks the engine, and gives the answer's JSON object."""
Hold = Callable[[], AbstractAsyncContextManager[str]]
"""It keeps a model in the engine for one call, and gives the name that it is asked by."""
_Given = TypeVar("_Given")
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """What an input answered."""

    before: tuple[int, ...]
    """They are the tokens of the question."""
    tokens: tuple[int, ...]
    """They are the tokens of the answer, with the one that ends it."""
    nats: float
    """It is the log-probability of the answer for the input itself."""


class SkillProbes:
    """Asks inputs, and has merges read their answers.

    Args:
        ask: the engine.
        spare: says when a call may begin.
        base_name: of the base model, which breaks texts into tokens for all.
        concurrency: calls at a time.
    """

    def __init__(self, ask: Ask, spare: SpareCapacity, base_name: str, concurrency: int) -> None:
        self._ask = ask
        self._spare = spare
        self._base_name = base_name
        self._concurrency = concurrency

    async def kept(
        self, merge: Hold, inputs: Mapping[str, Hold], prompts: Mapping[str, Sequence[EvaluationItem]], max_tokens: int
    ) -> dict[str, InputKept]:
        """What ``merge`` keeps of every input that has prompts.

        Args:
            merge: the merge.
            inputs: by the names that ``prompts`` has.
            prompts: of each input at least one.
            max_tokens: longest answer.

        Raises:
            AnswerUnreadable: the engine told less than it was asked for. Besides, whatever the engine refuses.
        """
        found = {}
        for name, items in prompts.items():
            own = await self.answers(inputs[name], items, max_tokens)
            found[name] = input_kept(await self.read(merge, own))
        return found

    async def answers(self, model: Hold, items: Sequence[EvaluationItem], max_tokens: int) -> list[OwnAnswer]:
        """The greedy answers of ``model``. Raises as `kept`."""

        async def one(item: EvaluationItem) -> OwnAnswer:
            question = {"messages": [dict(m) for m in item.messages]} if item.messages else {"prompt": item.prompt}
            before = await self._tokens(question)
            body = {
                "prompt": before, "max_tokens": max_tokens, "temperature": 0, "logprobs": 0, "return_token_ids": True,
            }  # fmt: skip
            return own_answer(await self._call(model, body), before)

        return await self._each(one, items)

    async def read(self, model: Hold, answers: Sequence[OwnAnswer]) -> list[AnswerRead]:
        """How ``model`` reads the answers of another. Raises as `kept`."""

        async def one(answer: OwnAnswer) -> AnswerRead:
            prompt = [*answer.before, *answer.tokens]
            body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
            return answer_read(await self._call(model, body), answer)

        return await self._each(one, answers)

    async def _each(self, work: Callable[[_Given], Awaitable[_Found]], rows: Sequence[_Given]) -> list[_Found]:
        """What ``work`` makes of every row, a few at a time; the first failure ends it all, and is raised as it is."""
        room = asyncio.Semaphore(self._concurrency)

        async def bounded(row: _Given) -> _Found:
            async with room:
                return await work(row)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(bounded(row)) for row in rows]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _call(self, model: Hold, body: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._spare.wait()
        async with model() as name:
            return await self._ask("completions", {"model": name, **body})

    async def _tokens(self, question: Mapping[str, Any]) -> list[int]:
        reply = await self._ask("tokenize", {"model": self._base_name, **question})
        try:
            return [int(token) for token in reply["tokens"]]
        except (KeyError, TypeError, ValueError):
            raise AnswerUnreadable("tokens") from None


def own_answer(reply: Mapping[str, Any], before: Sequence[int]) -> OwnAnswer:
    """The answer that a completion holds.

    Raises:
        AnswerUnreadable: it lacks tokens or their log-probabilities.
    """
    try:
        choice = reply["choices"][0]
        tokens = tuple(int(token) for token in choice["token_ids"])
        logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
    except (KeyError, IndexError, TypeError, ValueError):
        raise AnswerUnreadable("tokens of the answer") from None
    if not tokens or len(logprobs) != len(tokens):
        raise AnswerUnreadable("log-probability for each token of the answer")
    return OwnAnswer(tuple(before), tokens, sum(logprobs))


def answer_read(reply: Mapping[str, Any], answer: OwnAnswer) -> AnswerRead:
    """How the last tokens of a prompt, which are those of ``answer``, were read.

    A token is the reader's own choice where none that was told is likelier; of several alike, each is.

    Raises:
        AnswerUnreadable: the engine told other tokens, or none.
    """
    try:
        told = reply["choices"][0]["prompt_logprobs"][-len(answer.tokens) :]
        pairs = [
            (float(at[str(token)]["logprob"]), max(float(one["logprob"]) for one in at.values()))
            for at, token in zip(told, answer.tokens, strict=True)
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise AnswerUnreadable("log-probabilities of the prompt") from None
    own_choice = [own >= best for own, best in pairs]
    alike = own_choice.index(False) if False in own_choice else len(own_choice)
    return AnswerRead(len(pairs), sum(own_choice), alike, answer.nats, sum(own for own, _ in pairs))
