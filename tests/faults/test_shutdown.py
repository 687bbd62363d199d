"""SIGTERM under load, at a real server process with a fake engine.

| fault | what happens | test |
|---|---|---|
| F41 | SIGTERM with 20 streams | `test_a_server_that_stops_says_so_first_and_lets_streams_finish` |
| F42 | a stream longer than the drain limit | `test_what_is_longer_than_the_limit_is_cut_and_told_why` |
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.running_app import API_KEY, assert_error

pytestmark = pytest.mark.slow

VICTIM = Path(__file__).with_name("stopping_victim.py")
MESSAGES: Any = [{"role": "user", "content": "x"}]
DIALECTS: dict[str, Any] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 1000},
    "/v1/completions": {"prompt": "x", "max_tokens": 1000},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 1000},
    "/v1/responses": {"input": "x", "max_output_tokens": 1000},
}


@dataclass
class Stopping:
    """A running server that is to be stopped."""

    process: "subprocess.Popen[str]"
    url: str
    http: httpx.AsyncClient

    def terminate(self) -> float:
        self.process.send_signal(signal.SIGTERM)
        return time.monotonic()

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, 60)


@asynccontextmanager
async def server(folder: Path, grace_s: float, drain_s: float) -> AsyncIterator[Stopping]:
    command = [sys.executable, str(VICTIM), str(folder), str(grace_s), str(drain_s)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
    process = await asyncio.to_thread(
        lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    )
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{(await asyncio.to_thread(process.stdout.readline)).strip()}"
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits) as http:
            async with asyncio.timeout(60):
                while True:
                    try:
                        if (await http.get("/readyz")).status_code == 200:
                            break
                    except httpx.TransportError:
                        assert process.poll() is None
                    await asyncio.sleep(0.05)
            yield Stopping(process, url, http)
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        if process.stdout is not None:
            process.stdout.close()


async def stream(http: httpx.AsyncClient, path: str, begun: asyncio.Semaphore, **body: Any) -> tuple[int, str]:
    """The status, and all that was said."""
    said = ""
    async with http.stream("POST", path, json={"model": "tiny", "stream": True, **body}) as answer:
        async for piece in answer.aiter_text():
            if not said:
                begun.release()
            said += piece
    return answer.status_code, said


async def until_begun(begun: asyncio.Semaphore, count: int) -> None:
    async with asyncio.timeout(60):
        for _ in range(count):
            await begun.acquire()


async def test_a_server_that_stops_says_so_first_and_lets_streams_finish(tmp_path: Path) -> None:
    grace_s = 2.0
    async with server(tmp_path, grace_s, 30) as stopping:
        begun = asyncio.Semaphore(0)
        path = "/v1/chat/completions"
        streams = [
            asyncio.create_task(stream(stopping.http, path, begun, messages=MESSAGES, max_tokens=40)) for _ in range(20)
        ]
        await until_begun(begun, 20)
        told_at = stopping.terminate()
        async with httpx.AsyncClient(base_url=stopping.url, headers=stopping.http.headers) as fresh:
            async with asyncio.timeout(1.5):
                while (ready := await fresh.get("/readyz")).status_code != 503:
                    await asyncio.sleep(0.02)
            assert ready.json() == {"status": "stopping"}
            assert (await fresh.get("/livez")).status_code == 200
            for refused in (
                await fresh.post(path, json={"model": "tiny", "messages": MESSAGES}),
                await fresh.get("/v1/models"),
                await fresh.get("/admin/v1/adapters"),
            ):
                assert_error(refused, 503, "server_stopping")
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.headers["connection"] == "close"
            async with asyncio.timeout(grace_s + 10):
                while True:
                    try:
                        await fresh.get("/readyz")
                    except httpx.TransportError:
                        break
                    await asyncio.sleep(0.05)
            assert time.monotonic() - told_at >= grace_s - 0.1, "the listener stays open for the grace"
        for status, said in await asyncio.gather(*streams):
            assert status == 200
            assert said.count('"content": "word') == 40
            assert said.endswith("data: [DONE]\n\n")
        assert await stopping.ended() == 0
        assert time.monotonic() - told_at < 25, "it ends with the last stream, not with the limit"


async def test_what_is_longer_than_the_limit_is_cut_and_told_why(tmp_path: Path) -> None:
    async with server(tmp_path, 0.2, 3) as stopping:
        begun = asyncio.Semaphore(0)
        streams = {
            path: asyncio.create_task(stream(stopping.http, path, begun, **body)) for path, body in DIALECTS.items()
        }
        await until_begun(begun, len(streams))
        told_at = stopping.terminate()
        told: dict[str, str] = {}
        for path, running in streams.items():
            status, said = await running
            assert status == 200
            told[path] = said.removesuffix("\n\n").rpartition("\n\n")[2]
        assert 2.5 < time.monotonic() - told_at < 15
        for path in ("/v1/chat/completions", "/v1/completions"):
            error = json.loads(told[path].removeprefix("data: "))["error"]
            assert error.keys() == {"message", "type", "param", "code", "request_id"}
            assert error["code"] == "server_stopping"
        for path in ("/v1/messages", "/v1/responses"):
            event, _, data = told[path].partition("\n")
            assert event == "event: error"
            assert json.loads(data.removeprefix("data: "))["type"] == "error"
        assert json.loads(told["/v1/messages"].partition("\ndata: ")[2])["error"]["message"]
        assert json.loads(told["/v1/responses"].partition("\ndata: ")[2])["code"] == "server_stopping"
        assert await stopping.ended() == 0
        assert time.monotonic() - told_at < 25


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_the_dialect_is_the_endpoint_s(path: str) -> None:
    from amalgam.api.transport.draining import cut_event
    from amalgam.errors.shutdown import ServerStopping

    assert cut_event(path, ServerStopping(), None).startswith(b"event: error\ndata: {")
