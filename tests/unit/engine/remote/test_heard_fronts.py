"""What a front asked for ends where it falls silent, and only then, and only what is its own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from amalgam.engine.protocol import LoadableVersion
from amalgam.engine.remote.heard_fronts import SILENT_S, HeardFronts
from amalgam.engine.remote.messages import ERROR, HEAD, TAKEN, CallOrder, kind_of
from amalgam.engine.remote.replica_call import ReplicaCall
from tests.api.fake_engine import FakeEngine


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_calls_of_a_silent_front_end_once_and_those_of_others_go_on() -> None:
    clock, ended = Clock(), list[str]()
    fronts = HeardFronts(clock)
    with ExitStack() as stack:
        for name in ("dead", "lives", ""):
            stack.enter_context(fronts.call(name, partial(ended.append, name)))
        clock.now_s += SILENT_S - 1
        fronts.heard("lives")
        fronts.end_silent()
        assert ended == []
        clock.now_s += 2
        fronts.end_silent()
        fronts.end_silent()
        assert ended == ["dead"]
        clock.now_s += SILENT_S
        fronts.end_silent()
        assert ended == ["dead", "lives"]


def test_a_call_that_has_ended_is_not_ended_again() -> None:
    clock, ended = Clock(), list[str]()
    fronts = HeardFronts(clock)
    with fronts.call("dead", lambda: ended.append("first")):
        pass
    with fronts.call("dead", lambda: ended.append("second")):
        clock.now_s += SILENT_S + 1
        fronts.end_silent()
    assert ended == ["second"]


class UntilGone(FakeEngine):
    """Answers when the client has left, as vLLM's handlers of whole answers do."""

    async def call(self, endpoint: Any, body: dict[str, Any], raw_request: Any, profile: Any = None) -> Any:
        await raw_request.receive()


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_call_that_is_ended_lets_go_and_tells_why(is_stream: bool) -> None:
    holds: list[str] = []

    @asynccontextmanager
    async def hold(gone: Callable[[], Any]) -> AsyncIterator[LoadableVersion | None]:
        holds.append("held")
        try:
            yield None
        finally:
            holds.append("let go")

    engine = FakeEngine(chunk_pause_s=60.0) if is_stream else UntilGone()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": is_stream, "max_tokens": 9}
    order = CallOrder("chat_completions", body, None, None, (), "r", None, "front")
    call = ReplicaCall(engine, SimpleNamespace(state=SimpleNamespace()), CallOrder.read(order.written()), hold, None)
    frames = call.frames()
    found = [kind_of(await anext(frames)), *([kind_of(await anext(frames))] if is_stream else [])]
    call.end()
    async with asyncio.timeout(10):
        rest = [frame async for frame in frames]
        while holds != ["held", "let go"]:
            await asyncio.sleep(0.01)
    assert (found, [kind_of(one) for one in rest]) == ([TAKEN, HEAD][: len(found)], [ERROR])
    assert json.loads(rest[0][1:])["code"] == "front_silent"
