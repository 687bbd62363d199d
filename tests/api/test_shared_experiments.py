"""Two servers on one database, SQLite's file or PostgreSQL: one experiment, whichever of them a client asks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, push, start_app, write_adapter

CHAT: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
EXPERIMENT = "/admin/v1/aliases/chat/experiment"
Pair = tuple[RunningApp, RunningApp]


@pytest.fixture
async def pair(tmp_path: Path, database_url: str) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                start_app(tmp_path / name, database_url=database_url, store=tmp_path / "store")
            )
            for name in ("one", "two")
        ]
        admin = await stack.enter_async_context(servers[0].http(ADMIN_KEY))
        for seed in (1, 2):
            assert (await push(admin, "sql", write_adapter(tmp_path / f"sql{seed}", seed=seed))).status_code == 201
        targets = {"targets": [{"model": "sql@1"}, {"model": "sql@2"}]}
        assert (await admin.put("/admin/v1/aliases/chat", json=targets)).status_code == 201
        asked = {"metric": "thumb", "promote": True, "errors": {"most_above": 0.02}}
        assert (await admin.put(EXPERIMENT, json=asked)).status_code == 200
        await servers[1].services.catalog.refresh()
        yield servers[0], servers[1]


async def patient(session: httpx.AsyncClient, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    """Sent again where the database is too slow on a busy machine, as Retry-After asks for."""
    async with asyncio.timeout(120):
        while (answer := await session.post(path, json=body, headers=headers)).status_code == 503:
            await asyncio.sleep(float(answer.headers["retry-after"]))
    return answer


async def ask(session: httpx.AsyncClient, request_id: str) -> str:
    answer = await patient(session, "/v1/chat/completions", CHAT, **{"x-request-id": request_id})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-amalgam-adapter"]


async def say(session: httpx.AsyncClient, request_id: str, value: float) -> httpx.Response:
    return await patient(session, "/v1/feedback", {"id": request_id, "name": "thumb", "value": value})


async def test_an_answer_of_one_is_judged_at_the_other_and_both_end_it_once(pair: Pair) -> None:
    one, two = pair
    async with one.http(API_KEY) as first, two.http(API_KEY) as second, two.http(ADMIN_KEY) as admin:
        for number in range(60):
            session = (first, second)[number % 2]
            served = await ask(session, f"req-{number}")
            await (one, two)[number % 2].services.answers.flush()
            told = await say((second, first)[number % 2], f"req-{number}", float(served == "sql@2"))
            assert told.status_code == 200, told.text
        await asyncio.gather(one.services.experiments.look(), two.services.experiments.look())
        ended = (await admin.get(EXPERIMENT)).json()
        assert (ended["verdict"], ended["winner"]) == ("better", "sql@2")
        history = (await admin.get("/admin/v1/aliases/chat/history")).json()["data"]
        assert [change["action"] for change in history] == ["experiment", "set"]
        for server, session in ((one, first), (two, second)):
            await server.services.catalog.refresh()
            assert {await ask(session, f"after-{number}") for number in range(5)} == {"sql@2"}


async def test_requests_of_both_are_added_up(pair: Pair) -> None:
    one, two = pair
    async with one.http(API_KEY) as first, two.http(API_KEY) as second, two.http(ADMIN_KEY) as admin:
        for number in range(10):
            await ask((first, second)[number % 2], f"req-{number}")
        for server in pair:
            await server.services.experiment_counts.flush()
        found = (await admin.get(EXPERIMENT)).json()
        assert found["state"] == "running"
        assert sum(target["requests"] for target in found["targets"]) == 10
