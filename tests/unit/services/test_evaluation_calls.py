"""What is read out of the engine's answers, and when a call may begin."""

from typing import Any

import pytest

from amalgam.errors.evaluations import AnswerUnreadable
from amalgam.services.evaluation_calls import mean_logprob, score
from amalgam.services.spare_capacity import SpareCapacity


def reply(*told: dict[str, Any] | None) -> dict[str, Any]:
    return {"choices": [{"prompt_logprobs": list(told)}]}


def test_the_last_tokens_of_the_prompt_are_weighed() -> None:
    told = (None, {"5": {"logprob": -9.0}}, {"7": {"logprob": -1.0}, "8": {"logprob": -0.1}}, {"7": {"logprob": -2.0}})
    assert mean_logprob(reply(*told), [7, 7]) == -1.5
    assert mean_logprob(reply(*told), [5, 7, 7]) == -4.0


@pytest.mark.parametrize(
    "answer",
    [{}, {"choices": []}, {"choices": [{"prompt_logprobs": None}]}, reply(None), reply({"5": {"logprob": -1.0}}),
     reply({"7": {"logprob": None}}), reply({"7": None})],
)  # fmt: skip
def test_an_answer_without_them_is_an_error_and_no_number(answer: dict[str, Any]) -> None:
    with pytest.raises(AnswerUnreadable):
        mean_logprob(answer, [7])


def test_only_what_applies_is_scored() -> None:
    wanted = {"exact_match": "4", "regex": None, "json_valid": "", "json_equal": None}
    assert score("4", wanted) == {"exact_match": 1.0, "json_valid": 1.0}


@pytest.mark.parametrize(("running", "looks"), [([0.0], 1), ([2.0, 2.0, 1.0], 3), ([9.0] * 50, 4)])
async def test_a_call_waits_for_room_but_not_for_ever(running: list[float], looks: int) -> None:
    seen = []
    ticks = iter(range(100))

    def look() -> float:
        seen.append(1)
        return running[len(seen) - 1]

    # Each look at the clock is a second later, and patience is three.
    await SpareCapacity(look, 1, 3.5, clock=lambda: float(next(ticks))).wait()
    assert len(seen) == looks
