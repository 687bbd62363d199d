"""The HTTP server of `amalgam serve`: uvicorn with bounds on connections, which says that it stops before it does."""

import asyncio
import socket
import ssl

import uvicorn
from starlette.applications import Starlette

from amalgam.api.transport.answered_failures import AnsweredFailures
from amalgam.cli.connection_limits import (
    LISTEN_QUEUE,
    ConnectionLimits,
    accepts_within,
    connections_within,
    prepare_listener,
    raise_descriptor_limit,
)
from amalgam.cli.failed_start import StartFailureKept
from amalgam.cli.http_protocol import BoundedHttp, bounded_http
from amalgam.cli.tls import tls_context
from amalgam.cli.tls_acceptor import TlsAcceptor
from amalgam.services.background_loops import end
from amalgam.settings import Settings


def http_server(app: Starlette, settings: Settings) -> "HttpServer":
    """The server of ``app``, not yet started; raises the process's limit of open files as far as it may."""

    def count_cut(reason: str) -> None:
        if hasattr(app.state, "amalgam"):
            app.state.amalgam.metrics.connection_cut(reason)

    descriptors = raise_descriptor_limit()
    connections = settings.http.max_connections or connections_within(descriptors)
    limits = ConnectionLimits(settings.http.head_timeout_s, settings.http.stall_timeout_s, connections)
    protocol = bounded_http(limits, count_cut)
    kept = StartFailureKept(AnsweredFailures(app))
    config = uvicorn.Config(
        kept,
        http=protocol,
        ws="none",
        backlog=accepts_within(descriptors),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(settings.http.drain_timeout_s) + 1,
        timeout_keep_alive=settings.http.keep_alive_s,
        server_header=False,
    )
    return HttpServer(config, app, kept, settings.http.shutdown_grace_s, protocol, tls_context(settings.tls))


class HttpServer(uvicorn.Server):
    """Accepts in small steps, and stops in three: say so, wait for those who have not heard it yet, then close.

    Args:
        config: uvicorn's.
        app: told that the end begins.
        kept: ``app`` as it is served.
        grace_s: seconds between saying so and closing the listener.
        protocol: of its connections.
        context: of their handshakes; None for plain HTTP.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: Starlette,
        kept: StartFailureKept,
        grace_s: float,
        protocol: type[BoundedHttp],
        context: ssl.SSLContext | None,
    ) -> None:
        super().__init__(config)
        self._app = app
        self._kept = kept
        self._grace_s = grace_s
        self._protocol = protocol
        self._context = context
        self._acceptors: list[asyncio.Task[None]] = []

    @property
    def start_failure(self) -> Exception | None:
        """Why the application did not start, where it is something that has a sentence."""
        return self._kept.failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; the loop accepts few connections at a time, and the kernel may keep many waiting for that."""
        listeners = sockets or []
        for listener in listeners:
            prepare_listener(listener)
        # With TLS uvicorn, and the loop, are given no listener.
        await super().startup(listeners if self._context is None else [])
        for listener in listeners:
            listener.listen(LISTEN_QUEUE)
        if self._context is not None:
            bounds = self._protocol.bounds
            acceptor = TlsAcceptor(self._context, bounds.limits, bounds.connections, bounds.on_cut, self._new_protocol)
            self._acceptors = [asyncio.create_task(acceptor.accept(listener)) for listener in listeners]

    def _new_protocol(self) -> BoundedHttp:
        """A protocol as uvicorn makes them."""
        return self._protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Who closes the listener at once refuses those who do not know yet, so it stays open for a while."""
        self._app.state.shutdown.begin()
        await asyncio.sleep(self._grace_s)
        # A stream of events ends with its job, which may be long after everything else is drained.
        if hasattr(self._app.state, "amalgam"):
            self._app.state.amalgam.merges.feed.close()
        await end(*self._acceptors)
        await super().shutdown(sockets)
