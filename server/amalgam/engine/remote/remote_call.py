"""One request from a front to a replica: tried again elsewhere until its first bytes are there, and a stream after."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from amalgam.engine.protocol import Endpoint
from amalgam.engine.remote.messages import ERROR, HEAD, LEFT, PIECE, TAKEN, USAGE, Head, ToldUsage, kind_of, read_piece
from amalgam.engine.remote.told_errors import ToldError
from amalgam.errors import AmalgamError
from amalgam.errors.engine import EngineNotReady
from amalgam.errors.remote import ReplicaLost
from amalgam.telemetry.context import TokenCount, tokens_of_current

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 4
TAKEN_S: Final = 30.0
"""A replica has the request after at most so long."""
PAUSE_S: Final = 0.2
"""It lies before a second attempt, and grows with the attempts."""
_DROPPED: Final = frozenset({"content-length"})


class RemoteCall:
    """One request.

    Args:
        ask: sends the request to the replica for the given attempt; gives its frames, with ``cancel``.
        endpoint: whose dialect errors within a stream are told in.
        request: the client's, whose disconnect ends the work.
        lost: what Ray raises where a replica is lost.
    """

    def __init__(
        self,
        ask: Callable[[int], Any],
        endpoint: Endpoint,
        request: Request,
        lost: tuple[type[BaseException], ...],
    ) -> None:
        self._ask = ask
        self._endpoint = endpoint
        self._request = request
        self._lost = lost
        self._frames: Any = None
        self._tokens = tokens_of_current()
        self._counted = TokenCount()

    async def answer(self) -> Response | None:
        """The response; None where the client left first.

        Raises:
            EngineNotReady: no replica could answer.
            AmalgamError: what a replica answered with.
        """
        for attempt in range(ATTEMPTS):
            try:
                return await self._attempt(attempt)
            except ReplicaLost as error:
                logger.warning("replica_lost endpoint=%s attempt=%d reason=%s", self._endpoint, attempt + 1, error)
                self._count(TokenCount())
                await asyncio.sleep(PAUSE_S * attempt)
        raise EngineNotReady("restarting")

    async def _attempt(self, attempt: int) -> Response | None:
        self._frames = self._ask(attempt)
        left = asyncio.ensure_future(_gone(self._request))
        is_kept = False
        try:
            head = await self._head(left)
            if head is None:
                return None
            headers = {name: value for name, value in head.headers if name not in _DROPPED}
            first = await self._next(left)
            if first is None:
                return None
            if not head.is_stream:
                whole = await self._whole(first, left)
                return None if whole is None else Response(whole, head.status, headers)
            is_kept = True
            return StreamingResponse(self._stream(first), head.status, headers)
        finally:
            left.cancel()
            if not is_kept:
                self._cancel()

    async def _head(self, left: "asyncio.Future[None]") -> Head | None:
        """None where the client left first."""
        try:
            async with asyncio.timeout(TAKEN_S):
                frame = await self._next(left)
        except TimeoutError:
            raise ReplicaLost(f"nobody took the request in {TAKEN_S:g} s") from None
        while frame is not None and kind_of(frame) == TAKEN:
            frame = await self._next(left)
        if frame is None or kind_of(frame) == LEFT:
            return None
        assert kind_of(frame) == HEAD, frame[:1]
        return Head.model_validate_json(frame[1:])

    async def _whole(self, frame: bytes | None, left: "asyncio.Future[None]") -> bytes | None:
        """The pieces together; None where the client left first."""
        pieces = []
        while frame is not None and frame != b"":
            data = self._read(frame)
            if data is not None:
                pieces.append(data)
            frame = await self._next(left)
        return None if frame is None else b"".join(pieces)

    async def _next(self, left: "asyncio.Future[None]") -> bytes | None:
        """The next frame before anything was answered; None: the client left; empty: that was all.

        Raises:
            ReplicaLost: there will be none, and another replica may be asked.
        """
        frame = asyncio.ensure_future(self._frames.__anext__())
        try:
            await asyncio.wait({frame, left}, return_when=asyncio.FIRST_COMPLETED)
            if not frame.done():
                return None
            got: bytes = frame.result()
        except StopAsyncIteration:
            return b""
        except self._lost as error:
            raise ReplicaLost(type(error).__name__) from None
        finally:
            frame.cancel()
        if kind_of(got) == ERROR:
            told = ToldError.model_validate_json(got[1:]).as_error()
            if isinstance(told, EngineNotReady):
                raise ReplicaLost("its engine is not ready")
            raise told
        return got

    async def _stream(self, first: bytes) -> AsyncIterator[bytes]:
        """The pieces from ``first`` on; what goes wrong from here on is an event of the stream."""
        is_whole = False
        try:
            frame = first
            while frame:
                if kind_of(frame) == ERROR:
                    yield self._event(ToldError.model_validate_json(frame[1:]).as_error())
                    break
                data = self._read(frame)
                if data is not None:
                    yield data
                frame = await anext(self._frames, b"")
            is_whole = True
        except self._lost as error:
            is_whole = True
            logger.warning("replica_lost endpoint=%s attempt=0 reason=%s", self._endpoint, type(error).__name__)
            yield self._event(EngineNotReady("restarting"))
        finally:
            if not is_whole:
                self._cancel()

    def _event(self, error: AmalgamError) -> bytes:
        """An event as vLLM tells a late error, which the API brings into its own shape."""
        told = {"message": error.message, "type": error.type, "param": error.param, "code": error.status}
        if self._endpoint == "messages":
            content = json.dumps({"type": "error", "error": told})
            return f"event: error\ndata: {content}\n\n".encode()
        return f"data: {json.dumps({'error': told})}\n\n".encode()

    def _read(self, frame: bytes) -> bytes | None:
        if kind_of(frame) == PIECE:
            counts, data = read_piece(frame)
            self._count(counts)
            return data
        if kind_of(frame) == USAGE:
            usage = ToldUsage.model_validate_json(frame[1:])
            state = self._request.scope.setdefault("state", {})
            state["request_metadata"] = SimpleNamespace(final_usage_info=SimpleNamespace(**usage.model_dump()))
        return None

    def _count(self, counts: TokenCount) -> None:
        """What this attempt has taken so far, in place of what was known of it, or of one that was lost."""
        before = self._counted
        self._tokens.add(
            prompt=counts.prompt - before.prompt,
            cached=counts.cached - before.cached,
            completion=counts.completion - before.completion,
        )
        self._counted = counts

    def _cancel(self) -> None:
        with suppress(Exception):
            self._frames.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
