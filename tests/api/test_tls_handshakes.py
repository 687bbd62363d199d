"""Peers that begin a handshake and go silent, over real sockets, on either event loop."""

import asyncio
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from amalgam.cli.connection_limits import FOR_PROBES
from amalgam.cli.http_server import http_server
from amalgam.settings import Settings
from tests.certificates import write_certificate

HEAD_S = 1.0
CONNECTIONS = 30
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


async def say_scheme(request: Request) -> Response:
    return PlainTextResponse(request.url.scheme)


class ServedApp:
    """What `serve` starts, in a thread of its own with a loop of the kind that is tested."""

    def __init__(self, loop: str, folder: Path) -> None:
        self.certificate, key = write_certificate(folder)
        self.cut: Counter[str] = Counter()
        app = Starlette(routes=[Route("/", say_scheme)])
        metrics = SimpleNamespace(connection_cut=lambda reason: self.cut.update([reason]))
        merges = SimpleNamespace(feed=SimpleNamespace(close=lambda: None))
        app.state.amalgam = SimpleNamespace(metrics=metrics, merges=merges)
        app.state.shutdown = SimpleNamespace(begin=lambda: None)
        self._server = http_server(
            app,
            Settings(
                ssl_certfile=self.certificate,
                ssl_keyfile=key,
                head_timeout_s=HEAD_S,
                max_connections=CONNECTIONS,
                shutdown_grace_s=0,
            ),
        )
        self.connections = self._server.config.http.bounds.connections  # type: ignore[union-attr]
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._loop = LOOPS[loop]()
        self._thread = threading.Thread(target=self._run, args=(listener,))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def _run(self, listener: socket.socket) -> None:
        # Signals are for the thread that runs the tests.
        self._loop.run_until_complete(self._server._serve([listener]))
        self._loop.close()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    def peer(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def get(self, trust: ssl.SSLContext | None = None) -> str:
        context = trust or ssl.create_default_context(cafile=str(self.certificate))
        return httpx.get(f"https://127.0.0.1:{self.port}/", verify=context, timeout=10).text


@pytest.fixture(params=LOOPS)
def served_app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServedApp]:
    opened = ServedApp(request.param, tmp_path)
    yield opened
    opened.stop()


def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    ends_at = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


def first_flight(certificate: Path) -> bytes:
    """What a client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cafile=str(certificate)).wrap_bio(
        incoming, outgoing, server_hostname="127.0.0.1"
    )
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("said", [0, 1, 100, 10_000], ids=["nothing", "a byte", "a part", "a whole first flight"])
def test_half_a_handshake_ends_in_time_however_it_trickles(served_app: ServedApp, said: int) -> None:
    hello = first_flight(served_app.certificate)
    with served_app.peer() as peer:
        began = time.monotonic()
        peer.sendall(hello[:said])
        # Each byte is some progress, and none of it gains time.
        for byte in hello[said : said + 8] if said else b"":
            time.sleep(HEAD_S / 10)
            peer.sendall(bytes([byte]))
        rest = b"."
        while rest:
            try:
                rest = peer.recv(4096)
            except ConnectionError:
                break
        assert time.monotonic() - began < 3 * HEAD_S
    until(lambda: len(served_app.connections) == 0)
    assert served_app.cut["handshake"] == 1
    assert served_app.get() == "https"


def test_many_of_them_hold_no_more_than_their_places_and_silence_nobody(served_app: ServedApp) -> None:
    hello = first_flight(served_app.certificate)
    peers = []
    try:
        for number in range(5 * CONNECTIONS):
            peers.append(served_app.peer())
            peers[-1].sendall(hello[: number % 3 * 100])
            assert len(served_app.connections) <= CONNECTIONS + FOR_PROBES
        assert served_app.get() == "https"
        assert served_app.cut["idle"] >= 4 * CONNECTIONS - FOR_PROBES
    finally:
        for peer in peers:
            peer.close()
    until(lambda: len(served_app.connections) == 0)


@pytest.mark.parametrize(
    "nonsense",
    [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"a" * 5000, b"\0" * 64],
    ids=["plain HTTP", "a wrong length", "zeros"],
)
def test_what_is_no_handshake_ends_at_once(served_app: ServedApp, nonsense: bytes) -> None:
    with served_app.peer() as peer:
        peer.sendall(nonsense)
        began = time.monotonic()
        until(lambda: len(served_app.connections) == 0)
        assert time.monotonic() - began < HEAD_S
    assert served_app.get() == "https"


def test_a_request_that_comes_with_the_end_of_the_handshake_is_answered(served_app: ServedApp) -> None:
    """Both in one piece, so that it is there before anybody is told of the connection."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cafile=str(served_app.certificate)).wrap_bio(
        incoming, outgoing, server_hostname="127.0.0.1"
    )
    with served_app.peer() as peer:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                peer.sendall(outgoing.read())
                incoming.write(peer.recv(65536))
        client.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        peer.sendall(outgoing.read())
        answer = b""
        while b"https" not in answer:
            try:
                answer += client.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(peer.recv(65536))
        assert answer.startswith(b"HTTP/1.1 200")


def test_after_the_handshake_a_peer_is_watched_like_any_other(served_app: ServedApp) -> None:
    context = ssl.create_default_context(cafile=str(served_app.certificate))
    with served_app.peer() as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nX-A: ")
        assert b"408" in peer.recv(4096)
    until(lambda: len(served_app.connections) == 0)
    assert served_app.cut["head"] == 1
