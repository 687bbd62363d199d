"""Peers that hold what they do not use, over real sockets: who stops reading, who sends half a request, who idles."""

import asyncio
import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.cli.connection_limits import FOR_PROBES, ConnectionLimits
from amalgam.cli.http_protocol import MAX_PIPELINED, BoundedHttp
from tests.api.fake_engine import FakeEngine
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, push, served, start_app, write_adapter

pytestmark = pytest.mark.alone

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}
LIMITS = ConnectionLimits(head_s=0.5, stall_s=0.6, connections=40)
LONG = ConnectionLimits(head_s=60, stall_s=60, connections=40)
SLOTS = 2
"""Of the application's engine."""
OPEN: list[socket.socket] = []
"""Peers of the test that runs."""


@asynccontextmanager
async def serve_app(
    folder: Path, limits: ConnectionLimits = LIMITS, engine: FakeEngine | None = None, **changes: Any
) -> AsyncIterator[tuple[RunningApp, str, Counter[str]]]:
    """A server with short limits, and what it has cut."""
    cut: Counter[str] = Counter()
    async with (
        start_app(folder, engine, **changes) as running_app,
        served(running_app.app, limits, lambda reason: cut.update([reason]), send_buffer_bytes=32 << 10) as url,
    ):
        try:
            yield running_app, url, cut
        finally:
            # A server waits for its connections, also where a test has failed.
            while OPEN:
                OPEN.pop().close()


@pytest.fixture
async def served_app(tmp_path: Path) -> AsyncIterator[tuple[RunningApp, str, Counter[str]]]:
    async with serve_app(tmp_path) as opened:
        yield opened


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


async def connect(url: str, *, receive_bytes: int | None = None) -> socket.socket:
    """A plain socket, which reads nothing by itself."""
    peer = socket.socket()
    if receive_bytes is not None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    OPEN.append(peer)
    peer.setblocking(False)
    await asyncio.get_running_loop().sock_connect(peer, ("127.0.0.1", port_of(url)))
    return peer


async def send(peer: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(peer, data)


async def read(peer: socket.socket, limit_s: float) -> bytes:
    """What comes until the end of the connection; b"cut" where it was reset."""
    loop, parts = asyncio.get_running_loop(), []
    async with asyncio.timeout(limit_s):
        try:
            while part := await loop.sock_recv(peer, 65536):
                parts.append(part)
        except ConnectionError:
            parts.append(b"cut")
    return b"".join(parts)


def request(path: str, body: dict[str, Any] | None = None, key: str = API_KEY) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"Host: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}\r\n\r\n"
    return f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\n{head}".encode() + content


async def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


async def stop_reading(url: str, running_app: RunningApp, count: int, names: str) -> list[socket.socket]:
    """Sockets that ask for long streams and read nothing of them."""
    peers = []
    for name in names[:count]:
        peer = await connect(url, receive_bytes=4096)
        await send(peer, request("/v1/chat/completions", CHAT | {"model": name, "stream": True}))
        peers.append(peer)
    await until(lambda: running_app.engine.active == count)
    return peers


class TestReaders:
    @asynccontextmanager
    async def opened(
        self, folder: Path, limits: ConnectionLimits, word_bytes: int, chunks: int
    ) -> AsyncIterator[tuple[RunningApp, str, Counter[str]]]:
        async with serve_app(folder, limits) as (running_app, url, cut), running_app.http(ADMIN_KEY) as admin:
            for seed, name in enumerate("abc"):
                assert (await push(admin, name, write_adapter(folder / name, seed=seed))).status_code == 201
            running_app.engine.word, running_app.engine.chunks = "x" * word_bytes, chunks
            yield running_app, url, cut

    async def test_readers_that_stop_are_cut_and_stop_no_other_adapter(self, tmp_path: Path) -> None:
        # Streams without end, as long as nobody ends them.
        async with self.opened(tmp_path, LIMITS, 64 << 10, 1 << 30) as (running_app, url, cut):
            await stop_reading(url, running_app, SLOTS, "ab")
            running_app.engine.chunks, running_app.engine.word = 3, "x"
            async with httpx.AsyncClient(base_url=url, headers=KEY, timeout=10) as http:
                answer = await http.post("/v1/chat/completions", json=CHAT | {"model": "c"})
                assert answer.status_code == 200
                await until(lambda: cut["answer"] == SLOTS)
                await until(lambda: running_app.services.inference.admission.count == 0)
                assert running_app.engine.active == 0
                assert (await http.delete("/admin/v1/adapters/a")).status_code < 300

    async def test_the_place_is_given_back_when_the_engine_is_done_and_not_when_the_reader_is(
        self, tmp_path: Path
    ) -> None:
        # The answers are longer than what sockets take, and nothing is cut for a minute.
        async with self.opened(tmp_path, LONG, 4 << 10, 200) as (running_app, url, cut):
            peers = await stop_reading(url, running_app, SLOTS, "ab")
            await until(lambda: running_app.services.inference.running == 0)
            assert running_app.engine.active == 0
            running_app.engine.chunks, running_app.engine.word = 3, "x"
            assert not cut
            assert running_app.engine.residency.held == 0
            # What is still to be sent counts, so that nobody piles it up.
            assert running_app.services.inference.admission.count == SLOTS
            async with httpx.AsyncClient(base_url=url, headers=KEY, timeout=10) as http:
                assert (await http.post("/v1/chat/completions", json=CHAT | {"model": "c"})).status_code == 200
                assert (await http.delete("/admin/v1/adapters/a")).status_code < 300
            for peer in peers:
                peer.close()
            await until(lambda: running_app.services.inference.admission.count == 0)

    async def test_a_slow_reader_gets_every_byte(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path, LONG, 4 << 10, 200) as (running_app, url, _):
            [peer] = await stop_reading(url, running_app, 1, "a")
            await until(lambda: running_app.services.inference.running == 0)
            await send(peer, request("/livez"))
            told, loop = b"", asyncio.get_running_loop()
            async with asyncio.timeout(20):
                while b"/livez" not in told and not told.endswith(b"}"):
                    told += await loop.sock_recv(peer, 1 << 20)
            streamed, _, after = told.partition(b"data: [DONE]\n\n")
            assert streamed.count(b'"content": "xxx') == 200
            assert streamed.index(b"x0 ") < streamed.index(b"x199 ")
            assert b"200 OK" in after

    async def test_a_reader_who_pauses_for_less_than_the_limit_is_not_cut(self, tmp_path: Path) -> None:
        async with self.opened(tmp_path, LIMITS, 64 << 10, 6) as (running_app, url, cut):
            [peer] = await stop_reading(url, running_app, 1, "a")
            told, loop = b"", asyncio.get_running_loop()
            async with asyncio.timeout(30):
                while b"[DONE]" not in told[-100:]:
                    await asyncio.sleep(0.02)
                    told += await loop.sock_recv(peer, 1 << 20)
            assert not cut

    async def test_an_answer_that_is_no_stream_is_cut_as_well(
        self, served_app: tuple[RunningApp, str, Counter[str]]
    ) -> None:
        _, url, cut = served_app
        peer = await connect(url, receive_bytes=4096)
        # Whatever route it is of; uvicorn is done with it long before its bytes are out.
        await send(peer, request("/openapi.json", key=ADMIN_KEY) * 8)
        await until(lambda: cut["answer"] == 1)


class TestSenders:
    @pytest.mark.parametrize(
        "start",
        [
            b"",
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-A: ",
            b"GET /livez HTTP/1.1\r\n",
            b"POST /v1/completions",
        ],
    )
    async def test_headers_that_do_not_arrive_end_the_connection_however_they_trickle(
        self, served_app: tuple[RunningApp, str, Counter[str]], start: bytes
    ) -> None:
        _, url, cut = served_app
        peer = await connect(url)
        began = time.monotonic()
        if start:
            await send(peer, start)

        async def trickle() -> None:
            # Each byte is some progress, and none of it gains time.
            while start:
                await asyncio.sleep(0.1)
                await send(peer, b"a")

        trickling = asyncio.create_task(trickle())
        answer = await read(peer, 5)
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)
        assert time.monotonic() - began < 3
        assert answer.startswith(b"HTTP/1.1 408") or answer in (b"", b"cut")
        assert cut["head"] == 1

    async def test_the_next_request_of_a_connection_has_no_more_time_than_the_first(
        self, served_app: tuple[RunningApp, str, Counter[str]]
    ) -> None:
        _, url, cut = served_app
        peer = await connect(url)
        await send(peer, request("/livez"))
        assert b"200 OK" in await asyncio.get_running_loop().sock_recv(peer, 4096)
        await send(peer, b"GET /livez HTTP/1.1\r\nX-A:")
        await read(peer, 5)
        assert cut["head"] == 1

    @pytest.mark.parametrize("key", [API_KEY, "wrong"])
    @pytest.mark.parametrize("path", ["/v1/completions", "/livez"])
    async def test_a_body_that_does_not_arrive_ends_the_connection(
        self, served_app: tuple[RunningApp, str, Counter[str]], path: str, key: str
    ) -> None:
        running_app, url, cut = served_app
        peer = await connect(url)
        await send(peer, request(path, {"model": "tiny", "prompt": "x" * 200_000}, key)[:-100_000])

        async def trickle() -> None:
            while True:
                await asyncio.sleep(0.05)
                await send(peer, b"x")

        trickling = asyncio.create_task(trickle())
        answer = await read(peer, 5)
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)
        assert answer.startswith(b"HTTP/1.1 4")
        assert cut["body"] == 1
        await until(lambda: running_app.services.inference.admission.count == 0)

    async def test_a_slow_but_steady_body_arrives(self, served_app: tuple[RunningApp, str, Counter[str]]) -> None:
        _, url, cut = served_app
        peer = await connect(url)
        content = request("/v1/completions", {"model": "tiny", "prompt": "x" * 40_000, "max_tokens": 1})
        for start in range(0, len(content), 4000):
            await send(peer, content[start : start + 4000])
            await asyncio.sleep(0.15)
        assert b"200 OK" in await asyncio.get_running_loop().sock_recv(peer, 4096)
        assert not cut

    async def test_a_connection_does_not_pile_up_requests(
        self, served_app: tuple[RunningApp, str, Counter[str]]
    ) -> None:
        _, url, cut = served_app
        peer = await connect(url)
        await send(peer, request("/livez") * 20)
        answers = b""
        async with asyncio.timeout(5):
            while answers.count(b"200 OK") < 20:
                answers += await asyncio.get_running_loop().sock_recv(peer, 65536)
        assert not cut
        with contextlib.suppress(ConnectionError):
            await send(peer, request("/livez") * 1000)
        await until(lambda: cut["head"] == 1)

    async def test_what_comes_with_too_many_requests_is_not_even_read(
        self, served_app: tuple[RunningApp, str, Counter[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, url, cut = served_app
        begun: list[bytes] = []
        plain = BoundedHttp.on_message_begin

        def noted(self: BoundedHttp) -> None:
            begun.append(b"")
            plain(self)

        monkeypatch.setattr(BoundedHttp, "on_message_begin", noted)
        peer = await connect(url)
        with contextlib.suppress(ConnectionError):
            await send(peer, request("/livez", key="ak_of_nobody") * 2000)
        await until(lambda: cut["head"] == 1)
        assert len(begun) <= 2 * MAX_PIPELINED, "a stranger had the event loop read all of them in one go"

    async def test_a_request_that_takes_long_is_not_taken_for_one_that_does_not_arrive(self, tmp_path: Path) -> None:
        async with serve_app(tmp_path, engine=FakeEngine(chunk_pause_s=1.5)) as (_, url, cut):
            peer = await connect(url)
            # The beginning of the next one comes with it.
            await send(peer, request("/v1/chat/completions", CHAT | {"model": "tiny"}) + b"GET /li")
            await asyncio.sleep(1.2)
            await send(peer, request("/livez")[7:])
            answer = b""
            async with asyncio.timeout(5):
                while answer.count(b"200 OK") < 2:
                    answer += await asyncio.get_running_loop().sock_recv(peer, 4096)
            assert not cut


class TestCrowds:
    async def test_half_open_requests_without_a_key_silence_nobody(self, tmp_path: Path) -> None:
        async with serve_app(tmp_path, LONG) as (_, url, cut):
            peers = []
            for _ in range(5 * LONG.connections):
                peers.append(await connect(url))
                await send(peers[-1], b"GET /livez HTTP/1.1\r\nX-A: ")
            async with httpx.AsyncClient(base_url=url, headers=KEY, timeout=5) as http:
                for path in ("/livez", "/readyz", "/v1/models"):
                    assert (await http.get(path)).status_code == 200
            assert cut["idle"] >= 4 * LONG.connections

    async def test_idle_connections_make_room_for_those_that_ask(self, tmp_path: Path) -> None:
        async with serve_app(tmp_path, LONG) as (_, url, cut):
            idle = []
            for _ in range(3 * LONG.connections):
                idle.append(await connect(url))
                await send(idle[-1], request("/livez"))
                assert b"200 OK" in await asyncio.get_running_loop().sock_recv(idle[-1], 4096)
            assert cut["idle"] == 2 * LONG.connections
            # The oldest went, and the newest is still there.
            await send(idle[-1], request("/livez"))
            assert b"200 OK" in await asyncio.get_running_loop().sock_recv(idle[-1], 4096)

    async def test_where_all_are_busy_probes_are_answered_and_others_are_told(self, tmp_path: Path) -> None:
        async with serve_app(tmp_path, LONG, FakeEngine(chunk_pause_s=0.05, chunks=200)) as (running_app, url, cut):
            busy = []
            for _ in range(LONG.connections):
                busy.append(await connect(url))
                await send(busy[-1], request("/v1/chat/completions", CHAT | {"model": "tiny", "stream": True}))
            await until(lambda: running_app.services.inference.admission.count == LONG.connections)
            for path, status in (("/livez", 200), ("/readyz", 200), ("/livez?x", 200), ("/v1/models", 503)):
                async with httpx.AsyncClient(base_url=url, headers=KEY, timeout=5) as http:
                    answer = await http.get(path)
                    assert answer.status_code == status, path
            assert answer.json()["error"]["code"] == "too_many_connections"
            assert answer.headers["retry-after"]
            # Not even a crowd that wants nothing but probes gets more than that.
            for _ in range(2 * FOR_PROBES):
                await connect(url)
            assert cut["busy"] > 2 * FOR_PROBES
            while OPEN:
                OPEN.pop().close()
            await until(lambda: running_app.services.inference.admission.count == 0)
            async with httpx.AsyncClient(base_url=url, headers=KEY, timeout=5) as http:
                assert (await http.get("/v1/models")).status_code == 200

    async def test_an_upgrade_to_another_protocol_stays_within_bounds(
        self, served_app: tuple[RunningApp, str, Counter[str]]
    ) -> None:
        _, url, _ = served_app
        peer = await connect(url)
        head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        await send(peer, head + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
        assert not (await asyncio.get_running_loop().sock_recv(peer, 4096)).startswith(b"HTTP/1.1 101")
