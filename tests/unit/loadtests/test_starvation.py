"""What counts in the load of one cold adapter among hot ones."""

import asyncio

import httpx
import pytest

from loadtests.starvation import Seen, ask, figures
from loadtests.turns_model import CASES, line, run


async def test_a_request_that_never_begins_counts_with_what_it_has_waited() -> None:
    seen = Seen()

    async def never(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(10)
        raise AssertionError

    async with httpx.AsyncClient(transport=httpx.MockTransport(never), base_url="http://x") as http:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(http, "cold", 4, seen), 0.05)
    assert seen.unanswered == {"cold": 1}
    assert 0.04 < seen.first_s["cold"][0] < 5


async def test_an_answer_counts_once_and_its_tokens_each() -> None:
    seen = Seen()
    text = 'data: {"choices": []}\n\n' * 3 + "data: [DONE]\n\n"
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=text))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        await ask(http, "hot", 3, seen)
    assert (len(seen.first_s["hot"]), seen.tokens, seen.unanswered) == (1, 3, {})


def test_the_figures_of_a_phase() -> None:
    seen = Seen(first_s={"h1": [1.0], "h2": [1.0], "h3": [2.0], "cold": [8.0, 8.0]}, unanswered={"cold": 1})
    seen.tokens, seen.lasted_s = 50, 10.0
    assert figures(seen, "cold") == {
        "ratio": 8.0 / 1.5,
        "cold_p99_s": 8.0,
        "hot_p99_s": 1.0,
        "tokens_per_s": 5.0,
        "cold_answered": 1,
    }


async def test_in_the_model_turns_end_what_starves_in_vllms_order() -> None:
    case = CASES[-2]
    assert case.name.startswith("4 hot ones")
    plain, turns = [line(await run(case, 60.0, fair=fair)) for fair in (False, True)]
    assert plain[3] > 10
    assert turns[3] < 2
    assert turns[0] > 0.9 * plain[0]
