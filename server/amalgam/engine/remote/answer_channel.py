"""The bytes on the connection by which a replica sends its answers to one front, past Ray.

Each token of each stream would be an object of Ray's, which takes both sides together a millisecond of a processor and
more. Ray still carries the request, chooses the replica, cancels, and tells when the replica dies. The answer's frames
come here: one connection for each front and replica, on which the frames of all answers follow each other, each with
the number that the front gave the request.

A front shows first that the replica's secret was told to it, which Ray does by its own token.
"""

import hmac
import struct
from asyncio import IncompleteReadError, StreamReader
from typing import Final

from amalgam.errors.remote import ChannelLost

END: Final = b""
"""As a frame: the answer is over."""
SECRET_BYTES: Final = 32
HELLO_S: Final = 5.0
"""A front says who it is within so long."""
MOST_BYTES: Final = 1 << 28
"""No frame is longer: a whole answer is one, with the vectors of all its inputs."""
_LONGEST_NAME: Final = 64

_HELLO: Final = struct.Struct(f"!{SECRET_BYTES}sB")
_FRAME: Final = struct.Struct("!IQ")


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
