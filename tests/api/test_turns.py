"""More adapters than a batch holds, over a real socket: who waits, who does not, what a client that leaves undoes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.fake_engine import FakeEngine
from tests.support.keys import make_key
from tests.support.running_app import ADMIN_KEY, RunningApp, push, served, start_app, write_adapter

KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
SLOTS = 2
"""Of the application's engine."""


@asynccontextmanager
async def serve_app(folder: Path, **changes: Any) -> AsyncIterator[tuple[RunningApp, httpx.AsyncClient]]:
    """Two adapters whose streams go on, and a third."""
    async with (
        start_app(folder, FakeEngine(), **changes) as running_app,
        served(running_app.app) as url,
        httpx.AsyncClient(base_url=url, headers=KEY, timeout=10) as http,
        AsyncExitStack() as streams,
    ):
        for seed, name in enumerate("abc"):
            assert (await push(http, name, write_adapter(folder / name, seed=seed))).status_code == 201
        running_app.engine.calls.clear()
        running_app.engine.chunk_pause_s, running_app.engine.chunks = 0.02, 10_000
        # Kept: a stream that nobody reads any more is closed.
        lines: list[AsyncIterator[str]] = []
        for name in "ab"[:SLOTS]:
            body = CHAT | {"model": name, "stream": True}
            answer = await streams.enter_async_context(http.stream("POST", "/v1/chat/completions", json=body))
            lines.append(answer.aiter_lines())
            await anext(lines[-1])
        running_app.engine.chunks = 3
        yield running_app, http


@pytest.fixture
async def served_app(tmp_path: Path) -> AsyncIterator[tuple[RunningApp, httpx.AsyncClient]]:
    async with serve_app(tmp_path) as opened:
        yield opened


async def until_waiting(http: httpx.AsyncClient, count: int) -> None:
    """Return once so many requests wait for their turn, as operators see it."""
    line = f"amalgam_adapter_turn_waiting_requests {count:.1f}"
    async with asyncio.timeout(5):
        while line not in (await http.get("/metrics")).text.splitlines():
            await asyncio.sleep(0.005)


async def test_operators_see_what_runs_and_what_waits_by_adapter(
    served_app: tuple[RunningApp, httpx.AsyncClient],
) -> None:
    running_app, http = served_app
    third = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT | {"model": "c"}))
    await until_waiting(http, 1)
    queue = (await http.get("/admin/v1/engine")).json()["queue"]
    assert [(line["model"], line["running"], line["waiting"]) for line in queue] == [
        ("c@1", 0, 1), ("a@1", 1, 0), ("b@1", 1, 0),
    ]  # fmt: skip
    assert 0 < queue[0]["longest_wait_s"] < 10
    async with running_app.http(await make_key(running_app, "reader", "a")) as reader:
        assert [line["model"] for line in (await reader.get("/admin/v1/engine")).json()["queue"]] == ["a@1"]
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)


async def test_a_third_adapter_waits_and_neither_the_base_model_nor_its_tokens_do(
    served_app: tuple[RunningApp, httpx.AsyncClient],
) -> None:
    running_app, http = served_app
    third = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT | {"model": "c"}))
    await until_waiting(http, 1)
    assert (await http.post("/v1/chat/completions", json=CHAT | {"model": "tiny"})).status_code == 200
    assert (await http.post("/v1/chat/completions", json=CHAT | {"model": "a"})).status_code == 200
    assert (await http.post("/tokenize", json={"model": "c", "prompt": "hi"})).status_code == 200
    page = (await http.get("/metrics")).text
    assert "amalgam_adapter_turn_waiting_requests 1.0" in page
    assert [body["model"] for endpoint, body in running_app.engine.calls if body["model"] == "c@1"] == ["c@1"]
    third.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await third


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
async def test_the_turn_comes_when_a_stream_ends(tmp_path: Path, path: str) -> None:
    bodies = {"/v1/completions": {"prompt": "hi"}, "/v1/messages": CHAT | {"max_tokens": 3}}
    async with serve_app(tmp_path) as (running_app, http):
        third = asyncio.create_task(http.post(path, json=bodies.get(path, CHAT) | {"model": "c"}))
        await until_waiting(http, 1)
        assert not third.done()
        running_app.engine.stream_failure = RuntimeError("core")
        assert (await third).status_code == 200
        await until_waiting(http, 0)


async def test_a_client_that_leaves_while_it_waits_is_forgotten_at_once(
    served_app: tuple[RunningApp, httpx.AsyncClient],
) -> None:
    running_app, http = served_app
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/v1/chat/completions", json=CHAT | {"model": "c"}, timeout=0.1)
    await until_waiting(http, 0)
    assert "c@1" not in {body["model"] for _, body in running_app.engine.calls}
    counted = 'amalgam_requests_total{endpoint="chat_completions",adapter="c@1",code="499"} 1.0'
    async with asyncio.timeout(2):
        while counted not in (await http.get("/metrics")).text:
            await asyncio.sleep(0.01)


async def test_a_new_version_is_probed_in_turn(
    served_app: tuple[RunningApp, httpx.AsyncClient], tmp_path: Path
) -> None:
    running_app, http = served_app
    made = asyncio.create_task(push(http, "d", write_adapter(tmp_path / "d", seed=9)))
    await until_waiting(http, 1)
    assert "d@1" not in running_app.engine.probed
    running_app.engine.stream_failure = RuntimeError("core")
    assert (await made).status_code == 201


async def test_the_wait_ends_with_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    async with serve_app(tmp_path, fair_queue_wait_s=0.05) as (_, http):
        answer = await http.post("/v1/chat/completions", json=CHAT | {"model": "c"})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "adapter_no_turn"
    assert int(answer.headers["retry-after"]) >= 1


async def test_switched_off_the_engine_gets_every_request_at_once(tmp_path: Path) -> None:
    async with serve_app(tmp_path, fair_queue=False) as (_, http):
        assert (await http.post("/v1/chat/completions", json=CHAT | {"model": "c"})).status_code == 200
