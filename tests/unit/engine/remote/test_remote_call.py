"""A request to replicas that answer, die and refuse, without Ray: lists of frames stand in for them."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message

from amalgam.engine.protocol import Endpoint
from amalgam.engine.remote import remote_call
from amalgam.engine.remote.messages import ERROR, HEAD, LEFT, TAKEN, USAGE, Head, ToldUsage, piece
from amalgam.engine.remote.remote_call import ATTEMPTS, RemoteCall
from amalgam.engine.remote.told_errors import ToldError
from amalgam.engine.token_usage import usage_left_on
from amalgam.errors import AmalgamError
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady
from amalgam.telemetry.context import RequestContext, TokenCount, enter


class Died(Exception):
    """As Ray says it."""


Step = bytes | BaseException | None
"""A frame; what is raised; None: nothing comes any more."""


class Frames:
    """What one replica sends."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = iter(steps)
        self.cancelled = 0

    def __aiter__(self) -> "Frames":
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        try:
            step = next(self._steps)
        except StopIteration:
            raise StopAsyncIteration from None
        if step is None:
            await asyncio.Event().wait()
        if isinstance(step, BaseException):
            raise step
        assert step is not None
        return step

    def cancel(self) -> None:
        self.cancelled += 1


def head(*, is_stream: bool, status: int = 200) -> bytes:
    kind = "text/event-stream" if is_stream else "application/json"
    headers = (("content-type", kind), ("content-length", "999"))
    return HEAD + Head(status=status, headers=headers, is_stream=is_stream).model_dump_json().encode()


def told(error: AmalgamError) -> bytes:
    return ERROR + ToldError.of(error).model_dump_json().encode()


def part(data: bytes, completion: int) -> bytes:
    return piece(data, TokenCount(prompt=5, completion=completion))


class Client:
    """A request and what its replicas were."""

    def __init__(self, *answers: Sequence[Step], endpoint: Endpoint = "chat_completions") -> None:
        self.gone = asyncio.Event()
        self.asked: list[int] = []
        self.context = RequestContext("req-1")
        enter(self.context)
        self.replicas = [Frames(steps) for steps in answers]
        self.scope: dict[str, Any] = {"type": "http", "headers": [], "method": "POST", "path": "/"}
        self.call = RemoteCall(self._ask, endpoint, Request(self.scope, self._receive), (Died,))

    def _ask(self, attempt: int) -> Frames:
        self.asked.append(attempt)
        return self.replicas[min(attempt, len(self.replicas) - 1)]

    async def _receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_call, "PAUSE_S", 0.0)


async def pieces(response: Any) -> list[bytes]:
    assert isinstance(response, StreamingResponse)
    source: AsyncIterator[Any] = aiter(response.body_iterator)
    return [data async for data in source]


async def test_a_whole_answer_with_its_tokens_and_usage() -> None:
    usage = USAGE + ToldUsage(prompt_tokens=5, completion_tokens=2).model_dump_json().encode()
    client = Client([TAKEN, head(is_stream=False), part(b'{"a":', 1), part(b"1}", 2), usage])
    response = await client.call.answer()
    assert response is not None
    assert (response.status_code, response.body, response.headers["content-length"]) == (200, b'{"a":1}', "7")
    assert (client.context.tokens.prompt, client.context.tokens.completion) == (5, 2)
    left = usage_left_on(client.scope["state"])
    assert left is not None
    assert (left.prompt, left.completion) == (5, 2)


async def test_a_stream_piece_by_piece() -> None:
    client = Client([TAKEN, head(is_stream=True), part(b"data: 1\n\n", 1), part(b"data: 2\n\n", 2)])
    assert await pieces(await client.call.answer()) == [b"data: 1\n\n", b"data: 2\n\n"]
    assert client.context.tokens.completion == 2
    assert client.replicas[0].cancelled == 0


@pytest.mark.parametrize(
    "lost",
    [
        [Died()],
        [TAKEN, Died()],
        [TAKEN, head(is_stream=True), Died()],
        [TAKEN, told(EngineNotReady("dead"))],
        [TAKEN, head(is_stream=False), part(b"{", 7), Died()],
    ],
)
async def test_what_is_lost_before_its_first_bytes_is_asked_of_another_replica(lost: Sequence[Step]) -> None:
    client = Client(lost, [TAKEN, head(is_stream=False), part(b"{}", 2)])
    response = await client.call.answer()
    assert response is not None
    assert response.body == b"{}"
    assert client.asked == [0, 1]
    assert client.context.tokens.completion == 2, "what the lost one had done is not the client's"


async def test_where_every_replica_is_lost_the_engine_is_not_ready() -> None:
    client = Client([TAKEN, Died()], [Died()], [TAKEN, told(EngineNotReady("dead"))], [Died()])
    with pytest.raises(EngineNotReady):
        await client.call.answer()
    assert client.asked == list(range(ATTEMPTS))


async def test_what_a_replica_answers_with_is_raised_and_not_asked_again() -> None:
    client = Client([TAKEN, told(EngineLoadFailed("a@1", "too large"))])
    with pytest.raises(EngineLoadFailed):
        await client.call.answer()
    assert client.asked == [0]


@pytest.mark.parametrize(
    ("endpoint", "start"), [("chat_completions", b'data: {"error":'), ("messages", b"event: error\ndata: ")]
)
@pytest.mark.parametrize("end", [Died(), told(EngineNotReady("dead"))])
async def test_a_stream_that_is_lost_ends_with_an_error_in_its_dialect(
    endpoint: Endpoint, start: bytes, end: Step
) -> None:
    client = Client([TAKEN, head(is_stream=True), part(b"data: 1\n\n", 1), end], endpoint=endpoint)
    first, last = await pieces(await client.call.answer())
    assert first == b"data: 1\n\n"
    assert last.startswith(start)
    error = json.loads(last.partition(b"data: ")[2])["error"]
    assert error["code"] == 503
    assert client.asked == [0], "the client has seen a part of it"


@pytest.mark.parametrize(
    "steps", [[TAKEN, None], [TAKEN, head(is_stream=True), None], [TAKEN, head(is_stream=False), None]]
)
async def test_a_client_that_leaves_before_the_first_bytes_ends_the_work(steps: Sequence[Step]) -> None:
    client = Client(steps)
    asyncio.get_running_loop().call_later(0.05, client.gone.set)
    assert await client.call.answer() is None
    assert client.replicas[0].cancelled == 1


async def test_a_stream_that_is_closed_ends_the_work() -> None:
    client = Client([TAKEN, head(is_stream=True), part(b"data: 1\n\n", 1), None])
    response = await client.call.answer()
    assert isinstance(response, StreamingResponse)
    source: Any = response.body_iterator
    assert await anext(source) == b"data: 1\n\n"
    await source.aclose()
    assert client.replicas[0].cancelled == 1


async def test_no_answer_because_the_client_left_there_is_none_here() -> None:
    assert await Client([TAKEN, LEFT]).call.answer() is None


async def test_a_request_that_nobody_takes_is_asked_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_call, "TAKEN_S", 0.05)
    client = Client([None], [TAKEN, head(is_stream=False), part(b"{}", 1)])
    assert await client.call.answer() is not None
    assert client.replicas[0].cancelled == 1
