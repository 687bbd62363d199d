"""Bounds on what one connection may hold: bytes and time for its headers, a pace for its body and its answer, a place.

Uvicorn's parser has none of them: it collects headers without end, waits for the rest of a request for ever, and keeps
an answer for a reader who has stopped reading. What is cut here ends the request's work as a client that leaves does.
"""

from asyncio import TimerHandle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from amalgam.api.errors import error_response
from amalgam.cli.connection_limits import Connection, ConnectionLimits, OpenConnections
from amalgam.errors.http import TooManyConnections

MAX_UNREAD_BYTES: Final = 256 << 10
"""It is above the reading buffer of the event loop, so that a request which fits is never met half read; the
application's own, tighter bound on headers is answered in the one shape of errors."""
MIN_BODY_BYTES_PER_S: Final = 1 << 10
"""A body that arrives more slowly is cut off."""
MAX_PIPELINED: Final = 64
"""A connection may send so many requests before it has the answers to those before."""
MIN_READ_BYTES: Final = 1 << 10
"""A reader who takes less than this in the time of a stall has stopped reading."""

_END: Final = b"connection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\n" + _END
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\n" + _END
_PROBES: Final = frozenset({b"/livez", b"/readyz"})

Cut = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Bounds:
    """The bounds on the connections of one server."""

    limits: ConnectionLimits
    connections: OpenConnections
    on_cut: Cut


class BoundedHttp(HttpToolsProtocol):
    """Ends a connection that sends and sends and completes nothing, or that holds what it does not use."""

    bounds: ClassVar[_Bounds]
    came_from: Connection | None = None
    """This connection held its place until now."""

    _unread_bytes = 0
    _progress = False
    _in_body = False
    _body_bytes = 0
    _unsent_bytes = 0
    _probes_only = False
    _incoming: TimerHandle | None = None
    """It runs while a request is on its way in."""
    _outgoing: TimerHandle | None = None
    """It runs while the peer has to take what was sent."""

    def connection_made(self, transport: Any) -> None:
        """Let it in, for some time."""
        super().connection_made(transport)
        if self.came_from is not None:
            self.bounds.connections.leave(self.came_from)
        may_ask = self.bounds.connections.enter(self)
        if may_ask is None:
            transport.abort()
            return
        if not may_ask:
            self._probes_only, self.app = True, _turned_away
        self._incoming = self.loop.call_later(self.bounds.limits.head_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.bounds.connections.leave(self)
        self._stop_incoming()
        if self._outgoing is not None:
            self._outgoing.cancel()
        super().connection_lost(exc)

    def give_way(self) -> bool:
        """End it where it is idle; see `Connection`."""
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            return False
        self.transport.abort()
        return True

    def data_received(self, data: bytes) -> None:
        """Parse, then count what completed neither headers nor a piece of a body nor a request."""
        if self._incoming is None and not self._in_body:
            # The first byte of the next request; later ones gain it no time.
            self._incoming = self.loop.call_later(self.bounds.limits.head_s, self._head_is_late)
        self._progress = False
        super().data_received(data)
        self._unread_bytes = 0 if self._progress else self._unread_bytes + len(data)
        if self._unread_bytes > MAX_UNREAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        elif self._in_body and self._incoming is None:
            self._incoming = self.loop.call_later(self.bounds.limits.stall_s, self._look_at_body)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header of the head. What comes behind a body is left out: whoever read the head did not see it."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there; a body may follow."""
        self._progress = True
        self._in_body, self._body_bytes = True, 0
        self._stop_incoming()
        self.bounds.connections.busy(self)
        if self._probes_only:
            self.app = self.config.loaded_app if self.url.partition(b"?")[0] in _PROBES else _turned_away
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self._cut("head", b"")
            # The parser would go on through all that has come with it, which may be thousands of requests.
            raise BlockingIOError("too many requests at once")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._progress = True
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._progress = True
        self._in_body = False
        self._stop_incoming()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is written; what the peer has not taken yet is watched."""
        super().on_response_complete()
        if self.pipeline:
            # Uvicorn reads on after every answer, however many requests wait already.
            self.flow.pause_reading()
        else:
            self.bounds.connections.idle(self)
        self._watch_reader()

    def pause_writing(self) -> None:
        """More is unread than fits; nothing is written until it has been read."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """What was unread fits again."""
        super().resume_writing()
        self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        """Say that the request cannot be read, to a peer that is still there."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing is missing here, and a stranger's request is no reason for lines in the log."""

    def _should_upgrade_to_ws(self) -> bool:
        """Nothing but HTTP is spoken here; another protocol's connection would have no self.bounds."""
        return False

    def _stop_incoming(self) -> None:
        if self._incoming is not None:
            self._incoming.cancel()
            self._incoming = None

    def _head_is_late(self) -> None:
        self._incoming = None
        if self.cycle is not None and not self.cycle.response_complete:
            # An earlier request is being answered; this one has been sent too soon.
            self._incoming = self.loop.call_later(self.bounds.limits.head_s, self._head_is_late)
            return
        self._cut("head", _TOO_SLOW)

    def _look_at_body(self) -> None:
        # While we do not read, the peer cannot send.
        if self.flow.read_paused or self._body_bytes >= MIN_BODY_BYTES_PER_S * self.bounds.limits.stall_s:
            self._body_bytes = 0
            self._incoming = self.loop.call_later(self.bounds.limits.stall_s, self._look_at_body)
            return
        self._incoming = None
        self._cut("body", b"" if self.cycle.response_started else _TOO_SLOW)

    def _watch_reader(self) -> None:
        """Watch from now on, where the peer is to take what is there before anything else is written."""
        if self._outgoing is not None:
            self._outgoing.cancel()
            self._outgoing = None
        self._unsent_bytes = self.transport.get_write_buffer_size()
        if self._unsent_bytes and (self.flow.write_paused or self.cycle.response_complete):
            self._outgoing = self.loop.call_later(self.bounds.limits.stall_s, self._look_at_reader)

    def _look_at_reader(self) -> None:
        taken = self._unsent_bytes - self.transport.get_write_buffer_size()
        if taken < min(MIN_READ_BYTES, self._unsent_bytes):
            self._cut("answer", b"")
        else:
            self._watch_reader()

    def _cut(self, reason: str, answer: bytes) -> None:
        self.bounds.on_cut(reason)
        if answer and not self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self.transport.write(answer)
            self.transport.close()
        else:
            self.transport.abort()


def bounded_http(limits: ConnectionLimits | None = None, on_cut: Cut = lambda reason: None) -> type[BoundedHttp]:
    """What uvicorn's ``http`` option takes, for the connections of one server.

    Args:
        limits: of each connection, and how many there may be.
        on_cut: told why, whenever one is cut off: ``head`` (late, or too many at once), ``body``, ``answer``, ``idle``
            or ``busy``.
    """
    limits = limits or ConnectionLimits()
    bounds = _Bounds(limits, OpenConnections(limits.connections, on_cut), on_cut)
    return type("BoundedHttp", (BoundedHttp,), {"bounds": bounds})


async def _turned_away(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers what is no probe while every connection is busy."""
    await error_response(TooManyConnections(), extra_headers={"connection": "close"})(scope, receive, send)
