"""A child's end of the line to its server: messages in on standard input, messages out on standard output.

The end of the input says that the server is gone.
"""

import asyncio
import logging
import select
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

from amalgam.domain.messages import (
    MAX_LINE_BYTES,
    TO_BLENDER,
    TO_WORKER,
    BlendOrder,
    Message,
    Wake,
    WorkerQuestion,
    written,
)
from amalgam.errors.internal import MessageUnreadable

logger = logging.getLogger(__name__)

Answer = Callable[[WorkerQuestion], Awaitable[None]]


class ServerWatch:
    """Whether the server at the other end of standard input is gone, also while nobody reads from it."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._poll.register(sys.stdin.fileno(), select.POLLHUP)

    def is_gone(self) -> bool:
        """Asked without waiting."""
        return bool(self._poll.poll(0))


def say(message: Message, to: BinaryIO | None = None) -> None:
    """One line to the server."""
    output = to or sys.stdout.buffer
    output.write(written(message) + b"\n")
    output.flush()


def orders(lines: Iterable[bytes]) -> Iterator[BlendOrder]:
    """The orders among the lines to the blend process; what is none is left out."""
    for line in lines:
        order = _read(TO_BLENDER.read, line)
        if order is not None:
            yield order


@asynccontextmanager
async def input_watched(answer: Answer, wake: asyncio.Event, ended: asyncio.Event) -> AsyncIterator[None]:
    """Hear the server while the block runs. A worker that cannot hear any more ends, so that it is started again.

    Args:
        answer: called for every question; tells its answer, or its failure, by itself.
        wake: set for every `Wake`, and at the end.
        ended: set at the end.
    """

    def over(watcher: "asyncio.Task[None]") -> None:
        if not watcher.cancelled() and (error := watcher.exception()) is not None:
            logger.error("loop_failed loop=worker_input", exc_info=error)
        ended.set()
        wake.set()

    watcher = asyncio.create_task(_hear(answer, wake))
    watcher.add_done_callback(over)
    try:
        yield
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


async def _hear(answer: Answer, wake: asyncio.Event) -> None:
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    answering: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        message = _read(TO_WORKER.read, line)
        if isinstance(message, Wake):
            wake.set()
        elif message is not None:
            task = asyncio.create_task(_answered(answer, message))
            answering.add(task)
            task.add_done_callback(answering.discard)


def _read(read: Callable[[bytes], Any], line: bytes) -> Any:
    """The message of ``line``; None for one that is not understood, which the log tells."""
    try:
        return read(line)
    except MessageUnreadable as error:
        logger.warning("message_unknown bytes=%d reason=%s", len(line), error)
        return None


async def _answered(answer: Answer, asked: WorkerQuestion) -> None:
    try:
        await answer(asked)
    except Exception:
        # Its server waits for no longer than it said; the next question may do better.
        logger.exception("question_failed")
