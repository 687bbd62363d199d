"""Accepts connections that are to speak TLS, and counts and times each of them from its first moment on.

Where the event loop's own server speaks TLS, a protocol hears of a connection after its handshake: peers that begin one
and go silent hold descriptors, as many as they like, for as long as the loop waits for them.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from amalgam.cli.connection_limits import ConnectionLimits, OpenConnections
from amalgam.cli.http_protocol import BoundedHttp, Cut

logger = logging.getLogger(__name__)

_PAUSE_S = 0.1
"""It follows an accept that failed, as for want of descriptors."""


class _Handshake:
    """One that has not ended yet; see `Connection`."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None

    def give_way(self) -> bool:
        """It always does."""
        if self.task is not None:
            self.task.cancel()
        return True


class TlsAcceptor:
    """Accepts for the listeners of one server.

    Args:
        context: with certificate and key.
        limits: a handshake has the time of a head.
        connections: where handshakes count as connections that have asked for nothing yet.
        on_cut: told ``handshake`` of one that did not end in time.
        protocol: a new one, of a connection whose handshake is to come.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        limits: ConnectionLimits,
        connections: OpenConnections,
        on_cut: Cut,
        protocol: Callable[[], BoundedHttp],
    ) -> None:
        self._context = context
        self._limit_s = limits.head_s
        self._connections = connections
        self._on_cut = on_cut
        self._protocol = protocol

    async def accept(self, listener: socket.socket) -> None:
        """Accept until this is cancelled."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                peer, _ = await loop.sock_accept(listener)
            except OSError as error:
                logger.warning("accept_failed reason=%s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            peer.setblocking(False)
            self._begin(peer)

    def _begin(self, peer: socket.socket) -> None:
        handshake = _Handshake()
        if self._connections.enter(handshake) is None:
            self._connections.leave(handshake)
            peer.close()
            return
        handshake.task = asyncio.create_task(self._shake(peer, handshake), name="tls handshake")
        # Also of one that is cancelled before it begins.
        handshake.task.add_done_callback(lambda task: self._ended(peer, handshake, task))

    async def _shake(self, peer: socket.socket, handshake: _Handshake) -> None:
        protocol = self._protocol()
        # Its place becomes the connection's.
        protocol.came_from = handshake
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: protocol,
            peer,
            ssl=self._context,
            ssl_handshake_timeout=self._limit_s,
            ssl_shutdown_timeout=self._limit_s,
        )

    def _ended(self, peer: socket.socket, handshake: _Handshake, task: "asyncio.Task[None]") -> None:
        self._connections.leave(handshake)
        if not task.cancelled() and task.exception() is None:
            return
        peer.close()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ConnectionAbortedError):
            # By the limit; a peer that leaves, or speaks another protocol, is another error.
            self._on_cut("handshake")
        elif error is not None and not isinstance(error, OSError):
            logger.error("handshake_failed", exc_info=error)
