import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse

from amalgam.api.errors import error_body, error_response
from amalgam.api.transport.held_response import HeldResponse
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import InvalidAdapter, NameTaken
from amalgam.errors.engine import EngineNotReady, EngineRefused
from amalgam.errors.findings import Finding
from amalgam.errors.registry import StoreUnavailable
from amalgam.errors.requests import FieldRefused, InvalidApiKey

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {"spec_version": "2.3"}}


class Held:
    """What a request holds, and what its client received."""

    def __init__(self) -> None:
        self.released = 0
        self.sent: list[dict[str, Any]] = []
        self.leave = asyncio.Event()

    async def stack(self) -> AsyncExitStack:
        stack = AsyncExitStack()
        stack.callback(self._release)
        return stack

    def _release(self) -> None:
        self.released += 1

    async def receive(self) -> dict[str, Any]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        assert self.released == 0 or not message.get("body"), "released before the source has ended"
        self.sent.append(message)


async def words(held: Held, fail: bool = False, endless: bool = False) -> AsyncIterator[bytes]:
    yield b"one"
    assert held.released == 0
    if fail:
        raise RuntimeError("middle")
    while endless:
        yield b"more"
        await asyncio.sleep(0.001)
    yield b"two"


async def test_a_stream_releases_once() -> None:
    held = Held()
    response = HeldResponse(StreamingResponse(words(held)), await held.stack())
    assert held.released == 0
    await response(SCOPE, held.receive, held.send)
    assert held.released == 1
    assert held.sent[0]["status"] == 200
    assert not held.sent[-1].get("more_body", False)


def test_the_headers_are_the_inner_ones() -> None:
    inner = StreamingResponse(words(Held()), status_code=207, headers={"x-b": "c"})
    outer = HeldResponse(inner, AsyncExitStack())
    outer.headers["x-added"] = "d"
    assert (outer.status_code, inner.headers["x-added"], outer.headers["x-b"]) == (207, "d", "c")


async def test_a_stream_that_fails_releases() -> None:
    held = Held()
    response = HeldResponse(StreamingResponse(words(held, fail=True)), await held.stack())
    with pytest.raises((RuntimeError, BaseExceptionGroup)):
        await response(SCOPE, held.receive, held.send)
    assert held.released == 1


async def test_a_client_that_leaves_ends_the_stream_and_releases() -> None:
    held = Held()
    response = HeldResponse(StreamingResponse(words(held, endless=True)), await held.stack())
    task = asyncio.create_task(response(SCOPE, held.receive, held.send))
    while len(held.sent) < 3:
        await asyncio.sleep(0.001)
    assert held.released == 0
    held.leave.set()
    await asyncio.wait_for(task, 1)
    assert held.released == 1


async def test_a_sender_that_fails_or_is_cancelled_releases() -> None:
    async def broken(message: Any) -> None:
        raise OSError("gone")

    held = Held()
    with pytest.raises(OSError, match="gone"):
        await HeldResponse(StreamingResponse(words(held)), await held.stack())(SCOPE, held.receive, broken)
    assert held.released == 1
    held = Held()
    task = asyncio.create_task(
        HeldResponse(StreamingResponse(words(held, endless=True)), await held.stack())(SCOPE, held.receive, held.send)
    )
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert held.released == 1


def request(request_id: str = "req-1") -> Request:
    return Request(SCOPE | {"amalgam.request_id": request_id})


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (FieldRefused("n", "must be 1"), {}),
        (InvalidApiKey("client"), {"www-authenticate": "Bearer"}),
        (NameTaken("sql"), {"x-should-retry": "false"}),
        (EngineNotReady("starting"), {"retry-after": "1"}),
        (StoreUnavailable("disk full"), {"retry-after": "30"}),
    ],
)
def test_each_error_has_the_four_fields_and_what_a_client_needs(error: AmalgamError, headers: dict[str, str]) -> None:
    response = error_response(error, request())
    assert response.status_code == error.status
    content = error_body(error, "req-1")["error"]
    assert list(content) == ["message", "type", "param", "code", "request_id"]
    for name in ("www-authenticate", "x-should-retry", "retry-after"):
        assert response.headers.get(name) == headers.get(name)
    assert response.headers["x-request-id"] == "req-1"
    assert "x-request-id" not in error_response(error).headers


def test_findings_come_along_all_of_them() -> None:
    findings = [Finding(code="no_effect", message="a"), Finding(code="non_finite", message="b", module="m")]
    content = error_body(InvalidAdapter(findings))["error"]
    assert content["code"] == "no_effect"
    assert [(f["code"], f["module"]) for f in content["findings"]] == [("no_effect", None), ("non_finite", "m")]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("plain words and/or more", "plain words and/or more"),
        ("failed [/project/cpp/a_b.cc:12]: no", "failed […]: no"),
        ("see /home/me/.cache/x-y/model.py", "see …"),
        ("<object at 0x7f00deadbeef>", "<object at …>"),
        ("one\nTraceback (most recent call last):\n  two", "one"),
        ("  ", "The request was refused."),
        ("1/2 of 3/4", "1/2 of 3/4"),
    ],
)  # fmt: skip
def test_what_the_engine_says_is_told_without_what_is_private(said: str, told: str) -> None:
    assert error_body(EngineRefused(400, said))["error"]["message"] == told
    assert len(error_body(EngineRefused(400, "x" * 10_000))["error"]["message"]) == 1000


def test_our_own_words_are_told_as_they_are() -> None:
    message = "GET /admin/v1/adapters lists them."
    assert error_body(AmalgamError(message))["error"]["message"] == message


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("n must be 1 when using greedy sampling, got 2.", "n"),
        ("thinking_token_budget is set but reasoning_config is not configured.", "thinking_token_budget"),
        ("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs"),
        ("The model does not read pictures.", None),
        ("nothing like a field", None),
    ],
)
def test_a_refusal_of_the_engine_names_the_field_that_it_begins_with(said: str, field: str | None) -> None:
    assert error_body(EngineRefused(400, said))["error"]["param"] == field
    assert error_body(EngineRefused(400, said, "messages"))["error"]["param"] == "messages"
