"""What a stream holds in the engine is given back when the engine is done, and not when a slow reader is."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from starlette.types import Message, Send

MAX_BYTES: Final = 1 << 20
"""So much of one answer is kept for a client that does not take it; the engine's own buffer takes what is beyond."""
LOOK_PERIOD_S: Final = 0.25
"""A piece that has not gone out for so long shows that the client does not read."""

Piece = str | bytes | memoryview


class ReadAhead:
    """The pieces of a stream. While the client keeps up they pass through; else they are taken in during the sending.

    Args:
        source: what the engine says.
        ended: called when the source has ended, whether all of it was sent or not; also where it fails. Not called
            where the stream is given up before.
    """

    def __init__(self, source: AsyncIterator[Piece], ended: Callable[[], Awaitable[None]]) -> None:
        self._source = source
        self._ended = ended
        self._pieces: deque[Piece] = deque()
        self._size_bytes = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_sending = False
        self._sent = 0
        self._seen = -1

    def __aiter__(self) -> "ReadAhead":
        return self

    async def __anext__(self) -> Piece:
        """The next piece, from the source itself until somebody has begun to read ahead."""
        if self._reader is None:
            try:
                return await anext(self._source)
            except Exception:
                # The end, or a failure of the engine; a cancelled stream is given up as a whole.
                await self._ended()
                raise
        # A wait that is never over at once: anyio passes over a task whose wait has just ended when it cancels, and a
        # source that always has a piece would have it passed over for ever.
        await asyncio.sleep(0)
        while not self._pieces:
            if self._reader.done():
                self._reader.result()
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        piece = self._pieces.popleft()
        self._size_bytes -= len(piece)
        self._room.set()
        return piece

    def sending(self, send: Send) -> Send:
        """The same ``send``, which says while it is at work."""

        async def timed(message: Message) -> None:
            self._is_sending = True
            await send(message)
            self._is_sending = False
            self._sent += 1

        return timed

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look now and then whether a piece is stuck, while the block runs."""
        self._look_again()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _look_again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_PERIOD_S, self._look)

    def _look(self) -> None:
        if self._is_sending and self._seen == self._sent:
            self._reader = asyncio.create_task(self._read(), name="read ahead")
            return
        self._seen = self._sent if self._is_sending else -1
        self._look_again()

    async def _read(self) -> None:
        """Take in what comes, as much as fits."""
        try:
            async for piece in self._source:
                self._pieces.append(piece)
                self._size_bytes += len(piece)
                self._news.set()
                while self._size_bytes >= MAX_BYTES:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._news.set()
            await self._ended()

    async def close(self) -> None:
        """End the source, wherever it is."""
        try:
            if self._reader is not None:
                self._reader.cancel()
                await asyncio.gather(self._reader, return_exceptions=True)
        finally:
            # Whoever is cancelled by anyio is so at each wait. The reader is done by then, and a source that it had
            # left between two pieces, for want of room, still waits for its end.
            close = getattr(self._source, "aclose", None)
            if close is not None:
                await close()
