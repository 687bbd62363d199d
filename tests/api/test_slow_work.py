"""Slow fetches hold up no upload, no load and no probe; slow uploads hold up no load and no probe."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amalgam.services.work_threads import FETCHES, UPLOADS
from amalgam.store.sources import Sources
from tests.support.running_app import ADMIN_KEY, push, start_app, write_adapter

MANY = 40
"""More than any pool of threads has."""
CHAT: dict[str, Any] = {"model": "a", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Shut; opened at the end, so that no thread outlives the test."""
    event = threading.Event()
    yield event
    event.set()


class Stuck:
    """Work that hangs on a thread until the gate opens."""

    def __init__(self, gate: threading.Event) -> None:
        self._gate = gate
        self._begun = threading.Semaphore(0)

    def __call__(self, *_: Any, **__: Any) -> None:
        self._begun.release()
        self._gate.wait(60)

    async def until(self, threads: int) -> None:
        """Return when so many hang."""
        for _ in range(threads):
            assert await asyncio.to_thread(self._begun.acquire, timeout=20)


async def test_fetches_that_hang_hold_up_nothing_else(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Stuck(gate)
    monkeypatch.setattr(Sources, "fetch", hanging)
    async with start_app(tmp_path) as running_app, running_app.http(ADMIN_KEY) as http:
        write_adapter(running_app.sources / "far")
        body = {"name": "far", "source": (running_app.sources / "far").as_uri()}
        stuck = [asyncio.create_task(http.post("/admin/v1/adapters", json=body)) for _ in range(MANY)]
        await hanging.until(FETCHES)
        async with asyncio.timeout(20):
            assert (await push(http, "a", write_adapter(tmp_path / "a"))).status_code == 201
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
            assert (await http.get("/metrics")).status_code == 200
            assert (await http.get("/readyz")).status_code == 200
        for task in stuck:
            task.cancel()
        gate.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*stuck, return_exceptions=True)


async def test_uploads_that_hang_hold_up_no_load_and_no_probe(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_app(tmp_path) as running_app, running_app.http(ADMIN_KEY) as http:
        assert (await push(http, "a", write_adapter(tmp_path / "a"))).status_code == 201
        hanging = Stuck(gate)
        monkeypatch.setattr("amalgam.services.adapters.read_peft_folder", hanging)
        stuck = [asyncio.create_task(push(http, "b", tmp_path / "a")) for _ in range(MANY)]
        await hanging.until(UPLOADS)
        async with asyncio.timeout(20):
            assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200
            assert (await http.get("/metrics")).status_code == 200
            await asyncio.to_thread(lambda: None)
        for task in stuck:
            task.cancel()
        gate.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*stuck, return_exceptions=True)
