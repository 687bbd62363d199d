"""One request in a replica: the version is held, vLLM's handler answers, and its answer becomes frames."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Message

from amalgam.engine.inner_scope import inner_scope
from amalgam.engine.protocol import CallProfile, Engine, LoadableVersion
from amalgam.engine.remote.messages import ERROR, HEAD, LEFT, TAKEN, USAGE, CallOrder, Head, ToldUsage, piece
from amalgam.engine.remote.told_errors import ToldError
from amalgam.engine.token_usage import usage_left_on
from amalgam.errors import AmalgamError
from amalgam.errors.engine import EngineNotReady, FrontSilent
from amalgam.errors.http import InternalError
from amalgam.telemetry.context import RequestContext, enter

logger = logging.getLogger(__name__)

_AHEAD: Final = 64
"""So many frames may wait to be sent; then the source waits."""
_PIECE_BYTES: Final = 1 << 20
"""No piece of a whole answer is longer, so that other answers go on between its pieces."""
_ERROR_EVENTS: Final = (b'data: {"error":', b"event: error\ndata: ")


class ReplicaCall:
    """One request.

    Args:
        engine: what answers.
        app: of which vLLM's handlers take their state.
        order: the request.
        hold: waits for its turn, and keeps its version resident; told how to hear that the client has left.
        profile: how the version wants to be asked.
    """

    def __init__(
        self,
        engine: Engine,
        app: Any,
        order: CallOrder,
        hold: Callable[..., AbstractAsyncContextManager[LoadableVersion | None]],
        profile: CallProfile | None,
    ) -> None:
        self._engine = engine
        self._order = order
        self._hold = hold
        self._profile = profile
        self._gone = asyncio.Event()
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue(_AHEAD)
        self._context = RequestContext(order.request_id)
        self._is_streaming = False
        self._task: asyncio.Task[None] | None = None
        self._scope = inner_scope(
            app, ((name.encode("latin-1"), value.encode("latin-1")) for name, value in order.headers)
        )

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The answer. Closed early, or cancelled, the work for it is aborted."""
        task = asyncio.create_task(self._run(), name=f"call {self._order.request_id}")
        task.add_done_callback(_observe)
        self._task = task
        is_whole = False
        try:
            yield TAKEN
            while (frame := await self._frames.get()) is not None:
                yield frame
            is_whole = True
        finally:
            if not is_whole:
                self._abort()

    def end(self) -> None:
        """End the work as if the client had left; whoever should still read the answer is told."""
        self._abort()
        self._frames.put_nowait(ERROR + ToldError.of(FrontSilent()).model_dump_json().encode())
        self._frames.put_nowait(None)

    def _abort(self) -> None:
        # vLLM's handlers work in tasks of their own, which only a client that leaves ends; a stream ends at once.
        self._gone.set()
        if self._is_streaming and self._task is not None:
            self._task.cancel()
        while not self._frames.empty():
            # Whoever waits for a place among them goes on, and sends nothing more.
            self._frames.get_nowait()

    async def _run(self) -> None:
        enter(self._context)
        try:
            async with self._hold(gone=self._gone.wait) as version:
                await self._answer(version)
        except AmalgamError as error:
            await self._put(ERROR + ToldError.of(error).model_dump_json().encode())
        except Exception:
            logger.exception("replica_call_failed endpoint=%s", self._order.endpoint)
            await self._put(ERROR + ToldError.of(InternalError()).model_dump_json().encode())
        await self._put(None)

    async def _answer(self, version: LoadableVersion | None) -> None:
        order, request = self._order, Request(self._scope, self._receive)
        # Of two blends whose short names are the same, one has a longer name here.
        body = order.body if version is None else {**order.body, "model": version.engine_name}
        extra = () if self._profile is None else (self._profile,)
        response = await self._engine.call(order.endpoint, body, request, *extra)
        if response is None:
            await self._put(LEFT)
            return
        source = getattr(response, "body_iterator", None)
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)
        head = Head(status=response.status_code, headers=headers, is_stream=source is not None)
        await self._put(HEAD + head.model_dump_json().encode())
        if source is None:
            whole = bytes(response.body)
            for start in range(0, max(len(whole), 1), _PIECE_BYTES):
                await self._put(piece(whole[start : start + _PIECE_BYTES], self._context.tokens))
        else:
            await self._send(source)
        usage = usage_left_on(self._scope["state"])
        if usage is not None:
            told = ToldUsage(prompt_tokens=usage.prompt, completion_tokens=usage.completion)
            await self._put(USAGE + told.model_dump_json().encode())

    async def _send(self, source: Any) -> None:
        self._is_streaming = True
        try:
            if self._gone.is_set():
                return
            async for given in source:
                data = given.encode() if isinstance(given, str) else bytes(given)
                if data.startswith(_ERROR_EVENTS) and self._engine.state != "ready":
                    # Of an engine that died under the stream; the front says it in the words of the stream's dialect.
                    raise EngineNotReady("restarting")
                await self._put(piece(data, self._context.tokens))
        finally:
            self._is_streaming = False
            await source.aclose()

    async def _put(self, frame: bytes | None) -> None:
        if not self._gone.is_set():
            await self._frames.put(frame)

    async def _receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}


def _observe(task: "asyncio.Task[None]") -> None:
    """Read the task's outcome, so that asyncio does not report it."""
    if not task.cancelled():
        task.exception()
