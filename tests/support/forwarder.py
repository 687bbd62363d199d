"""A line between a client and a server that a test may cut or hold up: a partition is what neither side is told of."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)


@dataclass
class Forwarder:
    """Takes connections on loopback and passes bytes on to ``target_port``."""

    target_port: int
    port: int = 0
    cut_on_request: Callable[[bytes], bool] | None = None
    """Told of what a client sends; where it says so, that is passed on and the answer is not: the line is cut."""
    _flows: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)
    cuts: int = 0

    def hold_up(self) -> None:
        """Pass nothing on in either direction, new connections included."""
        self._flows.clear()

    def let_flow(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        """End every connection there is."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._flows.wait()
            back, there = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._writers.add(there)
            silenced = asyncio.Event()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass_on(reader, there, silenced, is_request=True))
                    group.create_task(self._pass_on(back, writer, silenced, is_request=False))
            finally:
                self._writers.discard(there)
                there.close()
        except* OSError as gone:
            logger.debug("a connection through the forwarder ended: %s", gone.exceptions)
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, silenced: asyncio.Event, *, is_request: bool
    ) -> None:
        while piece := await source.read(1 << 16):
            await self._flows.wait()
            if is_request and self.cut_on_request is not None and self.cut_on_request(piece):
                silenced.set()
                sink.write(piece)
                await sink.drain()
                # The server is given the time to do what it was asked.
                await asyncio.sleep(0.2)
                self.cut()
                return
            if not is_request and silenced.is_set():
                continue
            sink.write(piece)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.write_eof()


@asynccontextmanager
async def forwarder(target_port: int) -> AsyncIterator[Forwarder]:
    line = Forwarder(target_port)
    line.let_flow()
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        server.close()
        line.cut_on_request = None
        line.let_flow()
        line.cut()
        await asyncio.gather(*line._tasks, return_exceptions=True)
