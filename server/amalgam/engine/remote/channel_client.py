"""A front's side of the channels: it connects to each replica, and gives each request the frames of its answer."""

import asyncio
import logging
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from itertools import count
from typing import Any, Final

from amalgam.engine.remote.answer_channel import END, HELLO_S, hello, read_numbered, watch
from amalgam.engine.remote.messages import TAKEN, ChannelAddress, kind_of
from amalgam.errors.remote import ChannelLost

logger = logging.getLogger(__name__)

REST_S: Final = 5.0
"""Ray says that a call is over; what is still on its way in the channel comes within so long."""
PAUSE_S: Final = 5.0
"""So much time lies between two tries to connect to a replica; Ray brings its answers meanwhile."""


class Answer:
    """The frames of one answer, whichever way they come: an iterator that can be cancelled, as Ray's own is.

    Args:
        by_ray: what Ray carries. Its first frame says by which replica's channel the others come, if not by Ray.
        channels: in which it is registered.
        number: of the request.
    """

    def __init__(self, by_ray: Any, channels: "Channels", number: int) -> None:
        self._by_ray = by_ray
        self._channels = channels
        self._number = number
        self._frames: asyncio.Queue[bytes | BaseException] = asyncio.Queue()
        self._is_over = asyncio.Event()
        self.replica = ""
        """Its frames come by the channel of this replica; empty: by Ray, or it is not known yet."""
        self.reading = asyncio.create_task(self._read_ray(), name=f"answer {number}")

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Itself."""
        return self

    async def __anext__(self) -> bytes:
        """The next frame.

        Raises:
            ChannelLost: there will be none.
        """
        got = await self._frames.get()
        if got == END:
            raise StopAsyncIteration
        if isinstance(got, BaseException):
            raise got
        return got

    def cancel(self) -> None:
        """Have the replica end its work."""
        self.put(ChannelLost("cancelled"))
        self.reading.cancel()
        self._by_ray.cancel()

    def came(self, replica: str, frame: bytes) -> None:
        """A frame has come by this replica's channel."""
        self.replica = replica
        self.put(frame)

    def put(self, frame: bytes | BaseException) -> None:
        """A frame has come, or what was raised in its place; after the last one nothing more is read."""
        if self._is_over.is_set():
            return
        if frame == END or isinstance(frame, BaseException):
            self._is_over.set()
            self._channels.forget(self._number)
        self._frames.put_nowait(frame)

    async def _read_ray(self) -> None:
        try:
            async for frame in self._by_ray:
                if kind_of(frame) == TAKEN:
                    if self.replica:
                        # Its channel was faster.
                        continue
                    self.replica = frame[1:].decode()
                    if self.replica and not self._channels.has(self.replica):
                        raise ChannelLost("before the answer")
                self.put(frame)
            if not self.replica:
                self.put(END)
                return
            async with asyncio.timeout(REST_S):
                await self._is_over.wait()
        except TimeoutError:
            self.put(ChannelLost("the rest of the answer did not come"))
        except Exception as error:
            # Whatever it was: who reads the answer tells a lost replica from a mistake.
            self.put(error)


class Channels:
    """Connections to replicas, and the answers that are awaited.

    Args:
        front: as the replicas know it.
    """

    def __init__(self, front: str) -> None:
        self._front = front
        self._numbers = count(1)
        self._answers: dict[int, Answer] = {}
        self._open: dict[str, StreamWriter] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._readings: set[asyncio.Task[None]] = set()

    def follow(self, addresses: Mapping[str, ChannelAddress]) -> None:
        """Connect to those replicas that there is no channel to; others end by themselves, with the replica."""
        for replica, address in addresses.items():
            if replica not in self._readers:
                task = asyncio.create_task(self._read(replica, address), name=f"channel {replica}")
                self._readers[replica] = task

    async def close(self) -> None:
        """Leave all replicas."""
        tasks = [*self._readers.values(), *self._readings]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def has(self, replica: str) -> bool:
        """Whether there is a channel to it."""
        return replica in self._open

    def next_number(self) -> int:
        """One that no other request of this front has."""
        return next(self._numbers)

    def awaited(self, number: int, by_ray: Any) -> Answer:
        """The answer to the request of that number, which Ray has just been given."""
        answer = self._answers[number] = Answer(by_ray, self, number)
        self._readings.add(answer.reading)
        answer.reading.add_done_callback(self._readings.discard)
        return answer

    def forget(self, number: int) -> None:
        """It is over."""
        self._answers.pop(number, None)

    async def _read(self, replica: str, address: ChannelAddress) -> None:
        writer: StreamWriter | None = None
        try:
            async with asyncio.timeout(HELLO_S):
                reader, writer = await asyncio.open_connection(address.host, address.port)
                watch(writer)
                writer.write(hello(bytes.fromhex(address.secret), self._front))
                await writer.drain()
            self._open[replica] = writer
            await self._take(replica, reader)
        except (ChannelLost, TimeoutError, OSError) as error:
            logger.info("channel_lost replica=%s reason=%s", replica, str(error) or type(error).__name__)
            if replica not in self._open:
                await asyncio.sleep(PAUSE_S)
        finally:
            self._open.pop(replica, None)
            self._readers.pop(replica, None)
            for answer in [one for one in self._answers.values() if one.replica == replica]:
                answer.put(ChannelLost("while it answered"))
            if writer is not None:
                with suppress(OSError):
                    writer.close()

    async def _take(self, replica: str, reader: StreamReader) -> None:
        while True:
            number, frame = await read_numbered(reader)
            answer = self._answers.get(number)
            if answer is not None:
                # It may be here before Ray says who has taken the request.
                answer.came(replica, frame)
