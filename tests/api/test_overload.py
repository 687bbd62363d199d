"""More requests than the engine takes, over real sockets: who is let in, who waits, who is refused, and how soon."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest

from tests.api.fake_engine import FakeEngine
from tests.support.running_app import (
    ADMIN_KEY,
    API_KEY,
    RunningApp,
    assert_error,
    push,
    served,
    start_app,
    write_adapter,
)

pytestmark = pytest.mark.alone

OTHER_KEY = "ak_other_client-secret-0816"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
BATCH = 8


def key(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@asynccontextmanager
async def serve_app(
    folder: Path, engine: FakeEngine, **changes: Any
) -> AsyncIterator[tuple[RunningApp, httpx.AsyncClient, httpx.AsyncClient]]:
    """Two keys, a client for each."""
    engine.sequences = BATCH
    limits = httpx.Limits(max_connections=500, max_keepalive_connections=500)
    async with (
        start_app(folder, engine, api_keys=f"{API_KEY},{OTHER_KEY}", **changes) as running_app,
        served(running_app.app) as url,
        httpx.AsyncClient(base_url=url, headers=key(API_KEY), timeout=30, limits=limits) as heavy,
        httpx.AsyncClient(base_url=url, headers=key(OTHER_KEY), timeout=30, limits=limits) as light,
    ):
        yield running_app, heavy, light


async def ask(http: httpx.AsyncClient, **changes: Any) -> tuple[httpx.Response, float]:
    """One request and its seconds."""
    began = time.perf_counter()
    answer = await http.post("/v1/chat/completions", json=CHAT | changes)
    return answer, time.perf_counter() - began


def flood(http: httpx.AsyncClient, count: int, **changes: Any) -> list["asyncio.Task[tuple[httpx.Response, float]]"]:
    return [asyncio.create_task(ask(http, **changes)) for _ in range(count)]


async def in_progress(running_app: RunningApp, count: int) -> None:
    async with asyncio.timeout(10):
        while running_app.services.inference.admission.count < count:
            await asyncio.sleep(0.01)


async def waiting(running_app: RunningApp) -> int:
    """Requests that wait for a place in the batch."""
    async with running_app.http(ADMIN_KEY) as admin:
        page = (await admin.get("/metrics")).text
    [line] = [line for line in page.splitlines() if line.startswith("amalgam_adapter_turn_waiting_requests ")]
    return int(float(line.split()[1]))


async def nothing_left(running_app: RunningApp) -> None:
    """Every count is zero again."""
    async with asyncio.timeout(10):
        while running_app.services.inference.admission.count:
            await asyncio.sleep(0.01)
    assert await waiting(running_app) == 0
    assert running_app.engine.residency.held == 0
    assert running_app.services.inference.running == 0


async def test_ten_times_over_capacity_most_are_refused_at_once_and_the_rest_is_answered(tmp_path: Path) -> None:
    async with serve_app(tmp_path, FakeEngine(chunk_pause_s=0.5)) as (running_app, heavy, _):
        await ask(heavy)
        answers = await asyncio.gather(*flood(heavy, 10 * 2 * BATCH))
        codes = [answer.status_code for answer, _ in answers]
        # Four full batches in total, of which one key may have half.
        assert codes.count(200) >= 2 * BATCH
        assert codes.count(429) >= 5 * BATCH
        assert set(codes) == {200, 429}
        # Seven places for one key, so all of them would last 12 s; who is let in waits for two rounds more at the most.
        assert max(seconds for answer, seconds in answers if answer.status_code == 200) < 8
        assert running_app.engine.most <= BATCH
        await nothing_left(running_app)


async def test_a_refusal_is_quick_and_says_honestly_when_to_come_back(tmp_path: Path) -> None:
    async with serve_app(tmp_path, FakeEngine(chunk_pause_s=600)) as (running_app, heavy, _):
        held = flood(heavy, 2 * BATCH)
        await in_progress(running_app, 2 * BATCH)
        seconds: list[float] = []
        began_cpu_s = time.process_time()
        for _ in range(100):
            answer, took_s = await ask(heavy)
            seconds.append(took_s)
            error = assert_error(answer, 429, "too_many_requests")
            assert error["type"] == "rate_limit_error"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            # Client libraries repeat a 429 by themselves, and may.
            assert "x-should-retry" not in answer.headers
        seconds.sort()
        # Of the processor, client and server together, which other work on the machine does not change.
        assert (time.process_time() - began_cpu_s) / 100 < 0.05
        # The clock's, with room for a busy machine.
        assert seconds[50] < 0.25
        assert seconds[98] < 1.0
        page = (await heavy.get("/metrics")).text
        assert 'amalgam_requests_refused_total{reason="key_share"} 100.0' in page
        assert f"amalgam_requests_admitted_bound {4 * BATCH}" in page
        assert f"amalgam_requests_admitted {2 * BATCH}" in page
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await nothing_left(running_app)


async def test_no_refusal_waits_for_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette runs a handler of errors that is no coroutine in one of forty threads, which others may hold."""
    async with serve_app(tmp_path, FakeEngine(chunk_pause_s=600), max_requests=1) as (running_app, heavy, light):
        held = flood(heavy, 1)
        await in_progress(running_app, 1)
        in_threads: list[str] = []
        plain = anyio.to_thread.run_sync

        async def noted(function: Any, *arguments: Any, **options: Any) -> Any:
            in_threads.append(str(function))
            return await plain(function, *arguments, **options)

        monkeypatch.setattr(anyio.to_thread, "run_sync", noted)
        admin = key(ADMIN_KEY)
        found = [
            await light.post("/v1/chat/completions", json=CHAT),
            await light.get("/v1/models/nobody"),
            await light.get("/nowhere"),
            await light.get("/v1/chat/completions"),
            await light.get("/v1/models", headers=key("ak_of_nobody")),
            await light.get("/v1/models?limit=x"),
            await light.post("/admin/v1/merges", json={}, headers=admin),
        ]
        assert [answer.status_code for answer in found] == [503, 404, 404, 405, 401, 400, 400]
        assert not in_threads
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


async def test_a_full_server_is_a_503_for_every_key(tmp_path: Path) -> None:
    async with serve_app(tmp_path, FakeEngine(chunk_pause_s=1.0), max_requests=6) as (running_app, heavy, light):
        held = flood(heavy, 3) + flood(light, 3)
        await in_progress(running_app, 6)
        async with httpx.AsyncClient(base_url=heavy.base_url, headers=key(ADMIN_KEY)) as third:
            answer, _ = await ask(third)
        assert_error(answer, 503, "server_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert_error((await ask(heavy))[0], 429, "too_many_requests")
        # Nothing but inference is refused.
        assert (await light.get("/v1/models")).status_code == 200
        await asyncio.gather(*held)


async def test_a_refused_request_is_answered_before_its_body_is_there(tmp_path: Path) -> None:
    async with serve_app(tmp_path, FakeEngine(chunk_pause_s=2.0), max_requests_per_key=1) as (running_app, heavy, _):
        held = flood(heavy, 1)
        await in_progress(running_app, 1)
        reader, writer = await asyncio.open_connection(heavy.base_url.host, heavy.base_url.port)
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {API_KEY}\r\nContent-Length: 100000\r\n\r\n"
        )
        writer.write(head.encode())
        answer = await asyncio.wait_for(reader.readline(), 1)
        assert b" 429 " in answer
        writer.close()
        await asyncio.gather(*held)


@pytest.mark.parametrize("model", ["tiny", "a"])
async def test_a_light_key_does_not_wait_behind_a_heavy_one(tmp_path: Path, model: str) -> None:
    """Also for the base model, and where both ask for the same adapter."""
    async with serve_app(tmp_path, FakeEngine(), max_requests=400, max_requests_per_key=200) as (
        running_app,
        heavy,
        light,
    ):
        async with running_app.http(ADMIN_KEY) as admin:
            assert (await push(admin, "a", write_adapter(tmp_path / "a"))).status_code == 201
        running_app.engine.chunk_pause_s = 0.2
        _, alone_s = await ask(light, model=model)
        held = flood(heavy, 150, model=model)
        await in_progress(running_app, 150)
        waits = [(await ask(light, model=model))[1] for _ in range(3)]
        assert not all(task.done() for task in held)
        # 150 requests in rounds of seven last 4.2 s; the light key has a place that is kept for others.
        assert max(waits) < 5 * alone_s + 0.5
        running_app.engine.chunk_pause_s = 0.0
        answers = await asyncio.gather(*held)
        assert {answer.status_code for answer, _ in answers} == {200}
        assert running_app.engine.most <= BATCH
        await nothing_left(running_app)


async def test_one_key_alone_has_the_whole_batch_where_no_other_is_configured(tmp_path: Path) -> None:
    engine = FakeEngine(chunk_pause_s=0.2, sequences=BATCH)
    async with (
        start_app(tmp_path, engine, admin_key=None, api_keys="") as running_app,
        served(running_app.app) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as http,
    ):
        answers = await asyncio.gather(*flood(http, 4 * BATCH))
        assert {answer.status_code for answer, _ in answers} == {200}
        assert engine.most == BATCH
        await nothing_left(running_app)


async def test_many_choices_of_many_prompts_count_as_what_they_are_in_the_batch(tmp_path: Path) -> None:
    async with serve_app(tmp_path, FakeEngine(chunk_pause_s=0.3)) as (running_app, heavy, light):
        body = {"model": "tiny", "prompt": ["a", "b"], "n": 2, "max_tokens": 2}
        tasks = [asyncio.create_task(http.post("/v1/completions", json=body)) for http in (light, heavy, heavy, heavy)]
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
        # Four sequences each, and eight places.
        assert running_app.engine.most == 2
        await nothing_left(running_app)


async def test_a_client_that_leaves_while_it_waits_gives_everything_back(tmp_path: Path) -> None:
    async with serve_app(tmp_path, FakeEngine(chunk_pause_s=0.5)) as (running_app, heavy, _):
        held = flood(heavy, 2 * BATCH)
        await in_progress(running_app, 2 * BATCH)
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await nothing_left(running_app)


class TestDeadline:
    async def test_a_deadline_that_passes_in_the_queue_ends_the_wait(self, tmp_path: Path) -> None:
        async with serve_app(tmp_path, FakeEngine(chunk_pause_s=1.5)) as (running_app, heavy, _):
            held = flood(heavy, BATCH)
            await in_progress(running_app, BATCH)
            began = time.perf_counter()
            answer = await heavy.post("/v1/chat/completions", json=CHAT, headers={"x-request-timeout-ms": "200"})
            assert time.perf_counter() - began < 1.2
            assert_error(answer, 503, "deadline_not_met")
            assert int(answer.headers["retry-after"]) >= 1
            await asyncio.gather(*held)
            await nothing_left(running_app)

    async def test_a_deadline_shorter_than_the_expected_wait_is_refused_at_once(self, tmp_path: Path) -> None:
        async with serve_app(tmp_path, FakeEngine(chunk_pause_s=0.3)) as (running_app, heavy, _):
            held = flood(heavy, 2 * BATCH - 1)
            # The rate is known once the first have ended, and some still wait then.
            await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
            running_app.engine.chunk_pause_s = 5.0
            assert await waiting(running_app)
            began = time.perf_counter()
            answer = await heavy.post("/v1/chat/completions", json=CHAT, headers={"x-request-timeout-ms": "20"})
            assert_error(answer, 503, "deadline_not_met")
            assert time.perf_counter() - began < 0.25
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)
            await nothing_left(running_app)

    async def test_a_whole_answer_that_is_not_there_in_time_ends_its_work(self, tmp_path: Path) -> None:
        async with serve_app(tmp_path, FakeEngine(chunk_pause_s=0.4)) as (running_app, heavy, _):
            answer = await heavy.post("/v1/chat/completions", json=CHAT, headers={"x-request-timeout-ms": "100"})
            assert_error(answer, 503, "deadline_not_met")
            page = (await heavy.get("/metrics")).text
            assert 'amalgam_requests_refused_total{reason="deadline"} 1.0' in page
            await nothing_left(running_app)

    async def test_a_stream_that_has_begun_is_not_cut(self, tmp_path: Path) -> None:
        async with serve_app(tmp_path, FakeEngine(chunk_pause_s=0.1, chunks=4)) as (_, heavy, _):
            body = CHAT | {"stream": True}
            answer = await heavy.post("/v1/chat/completions", json=body, headers={"x-request-timeout-ms": "150"})
            assert answer.status_code == 200
            assert answer.text.endswith("data: [DONE]\n\n")

    async def test_a_deadline_that_is_long_enough_changes_nothing(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={"x-request-timeout-ms": "86400000"})
        assert answer.status_code == 200

    @pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e3", "abc", "", "86400001", "9" * 50, "²"])
    async def test_anything_but_whole_milliseconds_up_to_a_day_is_refused(
        self, client: httpx.AsyncClient, value: str
    ) -> None:
        headers = {b"x-request-timeout-ms": value.encode("latin-1")}
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
        error = assert_error(answer, 400, "invalid_value")
        assert error["param"] == "x-request-timeout-ms"
