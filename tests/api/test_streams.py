"""Over a real socket: streams, clients that leave, engines that fail, and headers without end."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from amalgam.cli.http_protocol import MAX_UNREAD_BYTES
from tests.api.fake_engine import FakeEngine
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, served, start_app, write_adapter

CHAT = {"model": "sql", "messages": [{"role": "user", "content": "hi"}]}
KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(scope="module")
async def served_app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningApp, str]]:
    folder = tmp_path_factory.mktemp("streams")
    async with start_app(folder, FakeEngine()) as running_app, served(running_app.app) as url:
        async with running_app.http(ADMIN_KEY) as http:
            assert (await push(http, "sql", write_adapter(folder / "sql"))).status_code == 201
        yield running_app, url


@pytest.fixture(autouse=True)
async def nothing_is_held(served_app: tuple[RunningApp, str]) -> AsyncIterator[None]:
    running_app, _ = served_app
    yield
    running_app.engine.chunk_pause_s, running_app.engine.chunks = 0.0, 3
    running_app.engine.stream_failure = running_app.engine.stream_error = None
    running_app.engine.current = "ready"
    async with asyncio.timeout(2):
        while running_app.engine.residency.held or running_app.services.inference.running:
            await asyncio.sleep(0.005)


async def test_a_stream_is_held_to_its_last_byte(served_app: tuple[RunningApp, str]) -> None:
    running_app, url = served_app
    running_app.engine.chunk_pause_s = 0.01
    async with (
        httpx.AsyncClient(base_url=url, headers=KEY) as http,
        http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer,
    ):
        assert answer.headers["x-amalgam-adapter"] == "sql@1"
        lines: list[str] = []
        async for line in answer.aiter_lines():
            if line and not lines:
                assert running_app.engine.residency.held == 1
            lines += [line] if line else []
    assert lines[-1] == "data: [DONE]"
    assert {json.loads(line[6:])["model"] for line in lines[:-1]} == {"sql@1"}


async def test_a_client_that_leaves_a_stream_ends_its_work(served_app: tuple[RunningApp, str]) -> None:
    running_app, url = served_app
    running_app.engine.chunk_pause_s, running_app.engine.chunks = 0.02, 10_000
    ended = running_app.engine.streams_ended
    async with (
        httpx.AsyncClient(base_url=url, headers=KEY) as http,
        http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer,
    ):
        await anext(answer.aiter_lines())
        assert running_app.engine.residency.held == 1
    async with asyncio.timeout(1):
        while running_app.engine.streams_ended == ended:
            await asyncio.sleep(0.005)


async def test_a_client_that_leaves_before_the_answer_is_counted_out(served_app: tuple[RunningApp, str]) -> None:
    running_app, url = served_app
    running_app.engine.chunk_pause_s = 0.3
    async with httpx.AsyncClient(base_url=url, headers=KEY) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/v1/chat/completions", json=CHAT, timeout=0.1)
    assert running_app.services.inference.running == 1


async def test_a_stream_that_breaks_ends_and_the_next_request_is_answered(served_app: tuple[RunningApp, str]) -> None:
    running_app, url = served_app
    running_app.engine.stream_failure = RuntimeError("secret of the core")
    async with httpx.AsyncClient(base_url=url, headers=KEY) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


def vllm_error(code: int, message: str, param: str | None = None) -> str:
    error = {"message": message, "type": "BadRequestError", "param": param, "code": code}
    return f"data: {json.dumps({'error': error})}\n\n"


ANTHROPIC = (
    'event: error\ndata: {"type": "error", "error": {"type": "internal_error", "message": "boom /a/b/c.py"}}\n\n'
)


@pytest.mark.parametrize(
    ("event", "status", "code", "message"),
    [
        (vllm_error(400, "bad regex at /opt/x/y.cc:3", "regex"), 400, "invalid_request", "bad regex at …"),
        (vllm_error(422, "too long"), 400, "invalid_request", "too long"),
        (vllm_error(500, "secret of the core"), 500, "internal_error", None),
        ('data: {"error": 5}\n\n', 500, "internal_error", None),
        ('data: {"error":\n\n', 500, "internal_error", None),
        (ANTHROPIC, 500, "internal_error", None),
    ],
)
async def test_an_error_that_comes_first_is_the_answer_and_a_later_one_an_event(
    served_app: tuple[RunningApp, str], event: str, status: int, code: str, message: str | None
) -> None:
    running_app, url = served_app
    async with httpx.AsyncClient(base_url=url, headers=KEY) as http:
        running_app.engine.stream_error = (0, event)
        answer = await http.post("/v1/chat/completions", json=CHAT | {"stream": True})
        error = assert_error(answer, status, code)
        assert message is None or error["message"] == message
        assert "secret" not in answer.text
        running_app.engine.stream_error = (2, event)
        answer = await http.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert answer.status_code == 200
        events = [piece for piece in answer.text.split("\n\n") if piece]
        assert len(events) == 4
        assert events[-1] == "data: [DONE]"
        told = json.loads(events[2].partition("data: ")[2])["error"]
        assert message is None or told["message"] == message
        assert "secret" not in answer.text
        assert "/a/b" not in answer.text
        if event is not ANTHROPIC:
            assert told.keys() == {"message", "type", "param", "code", "request_id"}
            assert (told["code"], told["request_id"]) == (code, answer.headers["x-request-id"])


async def test_an_engine_that_dies_under_a_stream_says_come_again(served_app: tuple[RunningApp, str]) -> None:
    running_app, url = served_app
    running_app.engine.stream_error = (1, vllm_error(500, "EngineCore encountered an issue."))
    running_app.engine.chunk_pause_s = 0.05
    async with (
        httpx.AsyncClient(base_url=url, headers=KEY) as http,
        http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        running_app.engine.current = "dead"
        rest = [line async for line in lines if line]
    assert json.loads(rest[0].removeprefix("data: "))["error"]["code"] == "engine_not_ready"


async def test_an_engine_that_is_not_ready_says_when_to_come_again(served_app: tuple[RunningApp, str]) -> None:
    running_app, url = served_app
    running_app.engine.current = "restarting"
    async with httpx.AsyncClient(base_url=url, headers=KEY) as http:
        for body in (CHAT, CHAT | {"stream": True}, CHAT | {"model": "tiny"}):
            answer = await http.post("/v1/chat/completions", json=body)
            assert_error(answer, 503, "engine_not_ready")
            assert answer.headers["retry-after"] == "1"
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/livez")).status_code == 200
        assert (await http.get("/v1/models")).status_code == 200


async def test_a_deleted_adapter_finishes_its_streams_and_takes_no_more(
    served_app: tuple[RunningApp, str], tmp_path: Path
) -> None:
    running_app, url = served_app
    running_app.engine.chunk_pause_s, running_app.engine.chunks = 0.05, 60
    async with httpx.AsyncClient(base_url=url, headers=KEY) as http:
        assert (await push(http, "leaving", write_adapter(tmp_path / "a", seed=9))).status_code == 201
        body = CHAT | {"model": "leaving", "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            assert (await http.delete("/admin/v1/adapters/leaving")).json() == {"deleted": ["leaving@1"]}
            assert_error(await http.post("/v1/chat/completions", json=body), 404, "model_not_found")
            assert "leaving@1" not in running_app.engine.freed
            assert [line async for line in lines if line][-1] == "data: [DONE]"
    async with asyncio.timeout(20):
        while "leaving@1" not in running_app.engine.freed:
            await asyncio.sleep(0.005)


async def flood(url: str, head: bytes, piece: bytes, limit: int) -> tuple[bytes, int]:
    """Send ``piece`` after ``head`` until the server ends it; its answer, and the bytes it took."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    sent = 0
    try:
        writer.write(head)
        while sent < limit and not reader.at_eof():
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 2), sent
    except ConnectionError:
        return b"", sent
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"a" * 65536),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", b"X-A: b\r\n" * 8192),
        (b"GET /", b"a" * 65536),
        (b"POST /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 65536),
        (b"POST /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * 65536),
    ],
)  # fmt: skip
async def test_headers_without_end_end_the_connection(
    served_app: tuple[RunningApp, str], head: bytes, piece: bytes
) -> None:
    _, url = served_app
    answer, sent = await flood(url, head, piece, 64 << 20)
    assert sent < 16 << 20, "the server read on"
    assert answer[:12] in (b"", b"HTTP/1.1 431", b"HTTP/1.1 400", b"HTTP/1.1 405")
    async with httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/livez")).status_code == 200


async def test_large_bodies_and_many_requests_on_one_connection_are_no_headers(
    served_app: tuple[RunningApp, str],
) -> None:
    _, url = served_app
    body = json.dumps(CHAT | {"user": "u"} | {"messages": [{"role": "user", "content": "x" * (3 * MAX_UNREAD_BYTES)}]})
    async with httpx.AsyncClient(base_url=url, headers=KEY) as http:
        for _ in range(5):
            answer = await http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 200
            answer = await http.get("/v1/models", headers={"X-A": "a" * 60_000})
            assert answer.status_code == 200
