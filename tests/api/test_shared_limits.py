"""Two servers on one database, SQLite's file or PostgreSQL: one limit, one budget, one ledger."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.fake_engine import FakeEngine
from tests.support.keys import make_key
from tests.support.running_app import ADMIN_KEY, RunningApp, start_app

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
Pair = tuple[RunningApp, RunningApp]


@pytest.fixture
async def pair(tmp_path: Path, database_url: str) -> AsyncIterator[Pair]:
    """Every prompt has ten tokens, and every answer as many as it may have."""
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                start_app(
                    tmp_path / name,
                    FakeEngine(prompt_tokens=10, answer_tokens=None),
                    database_url=database_url,
                    context_tokens=4096,
                )
            )
            for name in ("one", "two")
        ]
        yield servers[0], servers[1]


async def key_of_both(pair: Pair, **limits: int) -> str:
    key = await make_key(pair[0], limits=limits)
    await pair[1].services.keys.refresh()
    return key


async def flood(pair: Pair, key: str, count: int, **changes: Any) -> list[httpx.Response]:
    """So many requests at once, at both in turn."""
    async with pair[0].http(key) as one, pair[1].http(key) as two:
        asked = ((one, two)[n % 2].post("/v1/chat/completions", json=CHAT | changes) for n in range(count))
        return await asyncio.gather(*asked)


def used(answers: list[httpx.Response]) -> int:
    return sum(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200)


async def test_five_at_once_at_two_servers_spend_no_more_than_a_hundred_tokens(pair: Pair) -> None:
    key = await key_of_both(pair, tokens_per_minute=100)
    answers = await flood(pair, key, 5)
    assert {answer.status_code for answer in answers} == {200, 429}
    assert used(answers) == 90


async def test_a_rate_of_requests_is_one_for_both(pair: Pair) -> None:
    key = await key_of_both(pair, requests_per_minute=7)
    answers = await flood(pair, key, 30)
    assert sum(answer.status_code == 200 for answer in answers) == 7


async def test_requests_at_a_time_are_counted_together(pair: Pair) -> None:
    for server in pair:
        server.engine.chunk_pause_s = 1.0
    key = await key_of_both(pair, concurrent_requests=3)
    answers = await flood(pair, key, 12)
    assert sum(answer.status_code == 200 for answer in answers) == 3


async def test_what_one_server_does_not_use_the_other_gets(pair: Pair) -> None:
    key = await key_of_both(pair, tokens_per_day=1000)
    async with pair[0].http(key) as one, pair[1].http(key) as two:
        assert (await one.post("/v1/chat/completions", json=CHAT | {"max_tokens": 90})).status_code == 200
        async with asyncio.timeout(30):
            while (await two.post("/v1/chat/completions", json=CHAT | {"max_tokens": 890})).status_code != 200:
                await asyncio.sleep(0.2)
        refused = await one.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1})
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "insufficient_quota"


async def test_the_ledger_is_of_both(pair: Pair) -> None:
    key = await key_of_both(pair)
    answers = await flood(pair, key, 20)
    await pair[1].services.usage.flush()
    async with pair[0].http(ADMIN_KEY) as admin:
        report = (await admin.get("/admin/v1/usage", params={"by": "tenant"})).json()["data"]
    [line] = report
    assert (line["tenant"], line["requests"]) == ("acme", 20)
    assert line["prompt_tokens"] + line["completion_tokens"] == used(answers)
