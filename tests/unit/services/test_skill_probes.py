"""What is asked of the engine to see what a merge keeps, and what is read out of its answers."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from amalgam.domain.evaluation import EvaluationItem
from amalgam.domain.kept import AnswerRead
from amalgam.errors.engine import EngineRefused
from amalgam.errors.evaluations import AnswerUnreadable
from amalgam.services.skill_probes import Hold, OwnAnswer, SkillProbes, answer_read, own_answer
from amalgam.services.spare_capacity import SpareCapacity

ANSWER = OwnAnswer((1, 2), (7, 8), -0.5)


def told(*tokens: Mapping[str, float] | None) -> dict[str, Any]:
    rows = [None if one is None else {key: {"logprob": value} for key, value in one.items()} for one in tokens]
    return {"choices": [{"prompt_logprobs": rows}]}


def test_a_token_agrees_where_no_other_is_likelier() -> None:
    reply = told(None, {"2": -9.0}, {"7": -0.1}, {"8": -2.0, "9": -0.2})
    assert answer_read(reply, ANSWER) == AnswerRead(tokens=2, agreed=1, alike=1, own_nats=-0.5, nats=-2.1)
    tied = told(None, {"2": -9.0}, {"7": -0.7, "3": -0.7}, {"8": -0.1})
    assert answer_read(tied, ANSWER).is_same
    late = told(None, {"2": -9.0}, {"7": -2.0, "3": -0.1}, {"8": -0.1})
    assert (answer_read(late, ANSWER).agreed, answer_read(late, ANSWER).alike) == (1, 0)


@pytest.mark.parametrize(
    "reply",
    [{}, {"choices": []}, {"choices": [{"prompt_logprobs": None}]}, told(None), told({"8": -1.0}),
     told({"8": -1.0}, {"7": -1.0}), {"choices": [{"prompt_logprobs": [None, None]}]}],
)  # fmt: skip
def test_other_tokens_than_the_answers_are_an_error_and_no_number(reply: dict[str, Any]) -> None:
    with pytest.raises(AnswerUnreadable):
        answer_read(reply, ANSWER)


@pytest.mark.parametrize(
    "choice",
    [{}, {"token_ids": None}, {"token_ids": [], "logprobs": {"token_logprobs": []}},
     {"token_ids": [1], "logprobs": None}, {"token_ids": [1, 2], "logprobs": {"token_logprobs": [-1.0]}},
     {"token_ids": [1], "logprobs": {"token_logprobs": [None]}}],
)  # fmt: skip
def test_an_answer_without_tokens_is_an_error(choice: dict[str, Any]) -> None:
    with pytest.raises(AnswerUnreadable):
        own_answer({"choices": [choice]}, [1])


class Asked:
    """An engine that breaks a text into its letters and answers each prompt with its last letter, twice."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.held: list[str] = []

    def hold(self, name: str) -> Hold:
        @asynccontextmanager
        async def held() -> AsyncIterator[str]:
            self.held.append(name)
            yield name

        return held

    async def ask(self, endpoint: str, body: dict[str, Any]) -> Mapping[str, Any]:
        if endpoint == "tokenize":
            text = body.get("prompt") or body["messages"][-1]["content"]
            return {"tokens": [ord(letter) for letter in text]}
        self.bodies.append(body)
        last = body["prompt"][-1]
        if "prompt_logprobs" not in body:
            return {"choices": [{"token_ids": [last, last], "logprobs": {"token_logprobs": [-0.25, -0.25]}}]}
        # The merge would write a blank after an "x", and what is there after everything else.
        after = [None] + [
            {str(token): {"logprob": -3.0 if before == ord("x") else -0.25}, "32": {"logprob": -1.0}}
            for before, token in zip(body["prompt"], body["prompt"][1:], strict=False)
        ]
        return {"choices": [{"prompt_logprobs": after}]}


def probes(asked: Asked) -> SkillProbes:
    return SkillProbes(asked.ask, SpareCapacity(lambda: 0, 0, 1.0), "tiny", 2)


async def test_every_input_answers_its_own_prompts_and_the_merge_reads_them() -> None:
    asked = Asked()
    prompts = {
        "sql@1": (EvaluationItem(prompt="ab"), EvaluationItem(messages=({"role": "user", "content": "cx"},))),
        "json@1": (EvaluationItem(prompt="d"),),
    }
    inputs = {name: asked.hold(name) for name in prompts}
    kept = await probes(asked).kept(asked.hold("mix@1"), inputs, prompts, 24)
    assert asked.held == ["sql@1", "sql@1", "mix@1", "mix@1", "json@1", "mix@1"]
    own, read = asked.bodies[0], asked.bodies[2]
    assert (own["model"], own["prompt"], own["max_tokens"], own["temperature"]) == ("sql@1", [97, 98], 24, 0)
    assert (read["model"], read["prompt"]) == ("mix@1", [97, 98, 98, 98])
    assert (kept["sql@1"].agreement, kept["sql@1"].answers) == (0.5, 0.5)
    assert (kept["json@1"].agreement, kept["json@1"].likelihood) == (1.0, 1.0)


async def test_what_the_engine_refuses_is_raised_as_it_is() -> None:
    async def refuse(endpoint: str, body: dict[str, Any]) -> Mapping[str, Any]:
        raise EngineRefused(400, "too long", "prompt")

    asked = Asked()
    wanting = SkillProbes(refuse, SpareCapacity(lambda: 0, 0, 1.0), "tiny", 2)
    with pytest.raises(EngineRefused):
        await wanting.answers(asked.hold("sql@1"), [EvaluationItem(prompt="a")] * 3, 8)
