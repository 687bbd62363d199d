"""Pieces of a stream: passed through while they are taken, taken in where they are not, whole and in order."""

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest
from starlette.types import Message

from amalgam.api.inference.read_ahead import LOOK_PERIOD_S, MAX_BYTES, ReadAhead


class Harness:
    """A source of pieces, a client that takes them when it is let, and what was told."""

    def __init__(self, count: int, size: int = 10, failure: Exception | None = None) -> None:
        self.count, self.size, self.failure = count, size, failure
        self.made = self.closed = self.ended = self.most_ahead = 0
        self.taken: list[bytes] = []
        self.open = asyncio.Event()
        self.open.set()
        self.pieces = ReadAhead(self._source(), self._ended)

    async def _source(self) -> AsyncIterator[bytes]:
        try:
            while self.made < self.count:
                self.made += 1
                yield str(self.made).encode().ljust(self.size)
                await asyncio.sleep(0)
            if self.failure is not None:
                raise self.failure
        finally:
            self.closed += 1

    async def _ended(self) -> None:
        self.ended += 1

    async def run(self) -> None:
        async def send(message: Message) -> None:
            await self.open.wait()
            self.most_ahead = max(self.most_ahead, self.made - len(self.taken))
            self.taken.append(message["body"])

        sending = self.pieces.sending(send)
        try:
            with self.pieces.watched():
                async for piece in self.pieces:
                    await sending({"type": "http.response.body", "body": piece})
        finally:
            await self.pieces.close()

    def whole(self) -> bool:
        return [int(piece) for piece in self.taken] == list(range(1, self.count + 1))


async def test_a_client_that_keeps_up_gets_every_piece_as_it_comes() -> None:
    harness = Harness(100)
    await harness.run()
    assert harness.whole()
    assert harness.ended >= 1
    assert harness.most_ahead == 1, "a piece is made when the one before has gone out"


@pytest.mark.parametrize("failure", [None, RuntimeError("core")])
async def test_the_end_of_the_source_is_told_while_a_piece_is_stuck(failure: Exception | None) -> None:
    harness = Harness(100, failure=failure)
    harness.open.clear()
    task = asyncio.create_task(harness.run())
    await asyncio.sleep(3 * LOOK_PERIOD_S)
    assert harness.ended == 1
    assert harness.taken == []
    harness.open.set()
    if failure is None:
        await task
    else:
        with pytest.raises(RuntimeError, match="core"):
            await task
    assert harness.whole()


async def test_what_is_taken_in_has_a_bound_and_nothing_is_lost_behind_it() -> None:
    harness = Harness(40, size=MAX_BYTES // 8)
    harness.open.clear()
    task = asyncio.create_task(harness.run())
    await asyncio.sleep(3 * LOOK_PERIOD_S)
    assert harness.made <= 10
    assert harness.ended == 0
    harness.open.set()
    await task
    assert harness.whole()


@pytest.mark.parametrize(("stuck", "size"), [(False, 10), (True, 10), (True, MAX_BYTES)])
async def test_a_stream_that_is_given_up_ends_its_source_however_fast_that_is(stuck: bool, size: int) -> None:
    """Also under anyio's cancellation, by which Starlette ends the streams of clients that have left.

    Whether a stuck source of small pieces has filled what is kept of it by then depends on the machine; that of large
    ones has.
    """
    harness = Harness(1 << 60, size)
    if stuck:
        harness.open.clear()
    async with asyncio.timeout(10), anyio.create_task_group() as group:
        group.start_soon(harness.run)
        await asyncio.sleep(3 * LOOK_PERIOD_S)
        # As uvicorn does when a connection is lost: what is sent goes nowhere, at once.
        harness.open.set()
        await asyncio.sleep(0)
        group.cancel_scope.cancel()
    assert harness.closed == 1
    made = harness.made
    await asyncio.sleep(0.05)
    assert harness.made == made
