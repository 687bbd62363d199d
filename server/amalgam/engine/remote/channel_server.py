"""A replica's side of the channels: it listens, and sends each front the answers to its requests."""

import asyncio
import logging
import secrets
from asyncio import StreamReader, StreamWriter
from contextlib import suppress

from amalgam.engine.remote.answer_channel import END, HELLO_S, SECRET_BYTES, numbered, read_hello, watch
from amalgam.engine.remote.messages import ChannelAddress
from amalgam.errors.remote import ChannelLost

logger = logging.getLogger(__name__)


class ChannelServer:
    """Connections of fronts, one for each.

    Attributes:
        address: where fronts connect to, with what they have to show there; None: nobody can.
    """

    def __init__(self) -> None:
        self.address: ChannelAddress | None = None
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._fronts: dict[str, StreamWriter] = {}
        self._server: asyncio.Server | None = None

    async def open(self, host: str) -> None:
        """Listen on a port of ``host``, at which Ray's other processes reach this one."""
        self._server = await asyncio.start_server(self._welcome, host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        self.address = ChannelAddress(host=host, port=port, secret=self._secret.hex())

    async def close(self) -> None:
        """Leave all fronts."""
        self.address = None
        if self._server is not None:
            self._server.close()
        for writer in self._fronts.values():
            writer.close()
        self._fronts.clear()

    def to(self, front: str) -> "Channel | None":
        """The channel to that front; None: it has none, and Ray carries its answers."""
        writer = self._fronts.get(front)
        return None if writer is None or writer.is_closing() else Channel(writer)

    async def _welcome(self, reader: StreamReader, writer: StreamWriter) -> None:
        front = ""
        try:
            watch(writer)
            async with asyncio.timeout(HELLO_S):
                front = await read_hello(reader, self._secret)
            before = self._fronts.get(front)
            if before is not None:
                before.close()
            self._fronts[front] = writer
            # A front says nothing more: this returns when it leaves.
            await reader.read(1)
        except (ChannelLost, TimeoutError, OSError) as error:
            logger.warning("channel_refused_or_lost front=%s reason=%s", front or "?", str(error) or "silence")
        finally:
            if self._fronts.get(front) is writer:
                del self._fronts[front]
            with suppress(OSError):
                writer.close()


class Channel:
    """One front's."""

    def __init__(self, writer: StreamWriter) -> None:
        self._writer = writer

    async def send(self, number: int, frame: bytes) -> None:
        """Send a frame of the answer to the request of that number; waits where the front does not read.

        Raises:
            ChannelLost: the front has left this channel.
        """
        if self._writer.is_closing():
            raise ChannelLost("closed")
        self._writer.write(numbered(number, frame))
        try:
            await self._writer.drain()
        except OSError as error:
            raise ChannelLost(type(error).__name__) from None

    async def end(self, number: int) -> None:
        """Say that the answer is over."""
        await self.send(number, END)

    def close(self) -> None:
        """Leave this front, which comes again where it still is."""
        self._writer.close()
