"""The bytes on the connection by which a replica sends its answers to one front, past Ray.

Each token of each stream would be an object of Ray's, which takes both sides together a millisecond of a processor and
more. Ray still carries the request, chooses the replica, cancels, and tells when the replica dies. The answer's frames
come here: one connection for each front and replica, on which the frames of all answers follow each other, each with
the number that the front gave the request.

A front shows first that the replica's secret was told to it, which Ray does by its own token.
"""

import hmac
import socket
import struct
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from typing import Final

from amalgam.errors.remote import ChannelLost

END: Final = b""
"""A frame of nothing says that the answer is over."""
SECRET_BYTES: Final = 32
HELLO_S: Final = 5.0
"""A front says who it is within so long."""
MOST_BYTES: Final = 1 << 28
"""No frame is longer; replicas send whole answers in pieces that are much shorter."""
_LONGEST_NAME: Final = 64
_QUIET_S: Final = 10
_ASKED_S: Final = 5
_ASKED: Final = 3
UNHEARD_MS: Final = 30_000
"""The connection breaks where nothing is confirmed for so long, as where a host is gone or stands still."""

_HELLO: Final = struct.Struct(f"!{SECRET_BYTES}sB")
_FRAME: Final = struct.Struct("!IQ")


def watch(writer: StreamWriter) -> None:
    """Have the system ask the other side, from time to time, whether it is still there."""
    own = writer.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _QUIET_S)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASKED_S)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _ASKED)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MS)


def hello(secret: bytes, front: str) -> bytes:
    """What a front says first."""
    name = front.encode()
    return _HELLO.pack(secret, len(name)) + name


async def read_hello(reader: StreamReader, secret: bytes) -> str:
    """The front's name.

    Raises:
        ChannelLost: it does not know the secret, or is gone.
    """
    try:
        said, length = _HELLO.unpack(await reader.readexactly(_HELLO.size))
        if not hmac.compare_digest(said, secret) or not 0 < length <= _LONGEST_NAME:
            raise ChannelLost("a stranger asked for answers")
        return (await reader.readexactly(length)).decode()
    except (IncompleteReadError, OSError, UnicodeDecodeError) as error:
        raise ChannelLost(type(error).__name__) from None


def numbered(number: int, frame: bytes) -> bytes:
    """A frame of the answer to the request of that number."""
    return _FRAME.pack(len(frame), number) + frame


async def read_numbered(reader: StreamReader) -> tuple[int, bytes]:
    """The next frame, and the number of its request.

    Raises:
        ChannelLost: there will be none.
    """
    try:
        length, number = _FRAME.unpack(await reader.readexactly(_FRAME.size))
        if length > MOST_BYTES:
            raise ChannelLost(f"a frame of {length} bytes")
        return number, await reader.readexactly(length)
    except (IncompleteReadError, OSError) as error:
        raise ChannelLost(type(error).__name__) from None
