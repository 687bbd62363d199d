"""Who reads nothing of its stream, on the real engine: what it holds comes back, and in the end it is cut off."""

import json
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import openai

from tests.e2e.conftest import API_KEY, RunningServer

LIMIT_S = 120.0
CUT = 'amalgam_connections_cut_total{reason="answer"}'


def ask(server: RunningServer, **fields: object) -> socket.socket:
    """A peer with a small buffer that has asked for a stream of the adapter's, and reads nothing of it."""
    body = json.dumps({"model": "sql", "prompt": "Count:", "stream": True, "ignore_eos": True} | fields).encode()
    address = urlsplit(server.url)
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.settimeout(LIMIT_S)
    peer.connect((address.hostname, address.port))
    head = f"Host: localhost\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\n"
    peer.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    # It has begun: a byte is there, and stays there.
    assert peer.recv(1, socket.MSG_PEEK)
    return peer


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def nothing_is_held(server: RunningServer, admin: httpx.Client) -> bool:
    """Neither a place in the engine's memory, nor one of the batch."""
    residents = admin.get("/admin/v1/engine").json()["residents"]
    running = server.metric('amalgam_requests_running{endpoint="completions"}')
    return running == 0 and all(resident["held"] == 0 for resident in residents)


def test_an_answer_that_nobody_takes_gives_its_turn_back_and_is_there_whole(
    server: RunningServer, admin: httpx.Client
) -> None:
    with ask(server, max_tokens=48, logprobs=20) as peer:
        until(lambda: all(r["held"] == 0 for r in admin.get("/admin/v1/engine").json()["residents"]))
        told = b""
        while b"data: [DONE]" not in told:
            part = peer.recv(1 << 16)
            assert part
            told += part
    assert told.count(b'"finish_reason":"length"') == 1


def test_a_reader_that_stops_is_cut_off_though_its_stream_is_of_text(
    server: RunningServer, admin: httpx.Client, client: openai.OpenAI
) -> None:
    """A megabyte: more than is kept for one peer on its way, and less than the kernel would keep by itself."""
    before = server.metric(CUT)
    with ask(server, max_tokens=96, n=8, logprobs=20) as peer:
        # Meanwhile others are answered, of the same adapter too.
        for model in ("sql", "json"):
            assert client.completions.create(model=model, prompt="a", max_tokens=1).choices
        until(lambda: server.metric(CUT) == before + 1)
        until(lambda: nothing_is_held(server, admin))
        told = b""
        try:
            while part := peer.recv(1 << 16):
                told += part
        except ConnectionResetError:
            told += b"reset"
        assert b"[DONE]" not in told
