"""How many connections a process keeps open, and which one goes where there are too many.

Descriptors are few, and a process without any can neither answer its probes nor open a file. So the connections stay
below what is allowed. At the bound the one that has waited longest without asking for anything goes; where all of them
are busy, a few more are let in for the probes alone.
"""

import resource
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

MOST_DESCRIPTORS: Final = 65_536
"""The system is asked for so many; more would only make it slower to start processes."""
MOST_CONNECTIONS: Final = 16_384
FOR_PROBES: Final = 16
LISTEN_QUEUE: Final = 2048
"""The kernel keeps so many connections until they are accepted."""
SEND_BUFFER_BYTES: Final = 128 << 10
"""The kernel is asked for so much for what is on its way to one peer; Linux takes twice as much, its own records
included. Left to itself it takes megabytes: a stream of text runs for many minutes before it shows that nobody reads
it."""
_KEPT_SHARE: Final = 0.25
_KEPT_MOST: Final = 512
"""A quarter of the descriptors, at most so many, is kept for files, the registry, the engine and other processes."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one peer may hold without doing its part.

    Attributes:
        head_s: longest time for the headers of a request to arrive, and for the first request of a connection.
        stall_s: a peer that neither sends its body nor reads its answer for so long is cut off.
        connections: open at a time.
    """

    head_s: float = 10.0
    stall_s: float = 20.0
    connections: int = 1024


def prepare_listener(listener: socket.socket, send_buffer_bytes: int = SEND_BUFFER_BYTES) -> None:
    """Set what every connection has from the listener that accepted it.

    Small pieces are sent at once. A loop sees to that by itself for sockets that name their protocol, which accepted
    ones do not; without it the last piece of an answer waits until the peer confirms the one before, for 40 ms.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def raise_descriptor_limit() -> int:
    """Ask for as many descriptors as this process may have, up to `MOST_DESCRIPTORS`; how many it has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def connections_within(descriptors: int) -> int:
    """How many connections so many descriptors allow, beside what else needs them."""
    return max(1, min(descriptors - _kept(descriptors) - FOR_PROBES, MOST_CONNECTIONS))


def accepts_within(descriptors: int) -> int:
    """How many connections may be accepted before they are counted here.

    asyncio takes as many as its ``backlog`` says in one go, and closes what has to go some rounds of its loop later.
    """
    return max(1, _kept(descriptors) // 8)


def _kept(descriptors: int) -> int:
    return min(int(descriptors * _KEPT_SHARE), _KEPT_MOST)


class Connection(Protocol):
    """One connection, as it is counted."""

    def give_way(self) -> bool:
        """End it, where nothing of an answer is still on its way; whether it has ended."""


class OpenConnections:
    """Counts connections, and knows which of them wait for a request.

    Args:
        limit: open at a time.
        on_full: told the reason whenever one has to go: ``idle`` or ``busy``.
    """

    def __init__(self, limit: int, on_full: Callable[[str], None] = lambda reason: None) -> None:
        self._limit = limit
        self._on_full = on_full
        self._open: set[Connection] = set()
        self._idle: OrderedDict[Connection, None] = OrderedDict()

    def __len__(self) -> int:
        """Connections that are open."""
        return len(self._open)

    def enter(self, connection: Connection) -> bool | None:
        """A new connection: True where it may ask for anything, False for probes alone, None where it has to go."""
        self._open.add(connection)
        while len(self._open) > self._limit and self._evict():
            self._on_full("idle")
        self._idle[connection] = None
        if len(self._open) <= self._limit:
            return True
        self._on_full("busy")
        return False if len(self._open) <= self._limit + FOR_PROBES else None

    def _evict(self) -> bool:
        for connection in self._idle:
            if connection.give_way():
                self.leave(connection)
                return True
        return False

    def busy(self, connection: Connection) -> None:
        """It has asked for something."""
        self._idle.pop(connection, None)

    def idle(self, connection: Connection) -> None:
        """It has its answer, and may ask again."""
        if connection in self._open:
            self._idle[connection] = None

    def leave(self, connection: Connection) -> None:
        """It is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)
