"""Requests at a server that stops: new ones are refused at once, and what takes too long is cut and told why.

Inside of the counting of requests, so that refusals and cuts count, and outside of everything that reads a request.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable
from typing import Any, Final

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amalgam.api.anthropic_errors import anthropic_type, speaks_anthropic
from amalgam.api.errors import error_body, error_response
from amalgam.errors.shutdown import ServerStopping
from amalgam.services.shutdown import Shutdown

logger = logging.getLogger(__name__)

_PROBES: Final = frozenset({"/livez", "/readyz", "/health", "/ping", "/metrics", "/version"})
"""They are answered to the end, so that the end can be watched."""
_TELL_S: Final = 1.0
"""A client that does not read is not waited for any longer."""


class Draining:
    """The middleware."""

    def __init__(self, app: ASGIApp, shutdown: Shutdown) -> None:
        self._app = app
        self._shutdown = shutdown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through what may run; see the module."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif get_route_path(scope) in _PROBES:
            await self._app(scope, receive, _closing(send) if self._shutdown.is_stopping else send)
        elif self._shutdown.is_stopping:
            await error_response(ServerStopping(), Request(scope))(scope, receive, _closing(send))
        else:
            await self._run(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        answer = _Answer(send, task)
        with self._shutdown.watching(answer.cut):
            try:
                await self._app(scope, receive, answer.send)
            except asyncio.CancelledError:
                if not answer.is_cut:
                    raise
                task.uncancel()
        if answer.is_cut:
            await answer.tell_why(scope, receive)


class _Answer:
    """What has been said to one client, and the task that says it."""

    def __init__(self, send: Send, task: "asyncio.Task[Any]") -> None:
        self._send = send
        self._task = task
        self._is_started = self._is_events = self._is_finished = False
        self.is_cut = False

    def cut(self) -> None:
        """End the application's work for it."""
        self.is_cut = True
        self._task.cancel()

    # Not a coroutine of its own: this runs for every token.
    def send(self, message: Message) -> Awaitable[None]:
        """Note how far the answer is, and pass it on."""
        if message["type"] == "http.response.start":
            self._is_started = True
            self._is_events = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
        elif not message.get("more_body", False):
            self._is_finished = True
        return self._send(message)

    async def tell_why(self, scope: Scope, receive: Receive) -> None:
        """End the answer: by an error where it has not begun, by an event in its dialect where it is a stream."""
        error = ServerStopping()
        try:
            async with asyncio.timeout(_TELL_S):
                if not self._is_started:
                    await error_response(error, Request(scope))(scope, receive, _closing(self._send))
                elif self._is_events and not self._is_finished:
                    event = cut_event(get_route_path(scope), error, scope.get("amalgam.request_id"))
                    await self._send({"type": "http.response.body", "body": event, "more_body": False})
        except TimeoutError:
            logger.info("cut_untold reason=the client does not read")


def cut_event(path: str, error: ServerStopping, request_id: str | None) -> bytes:
    """An event that tells of ``error``, as clients of the endpoint at ``path`` expect it in a stream."""
    body = error_body(error, request_id)
    if speaks_anthropic(path):
        told: dict[str, Any] = {"type": "error", "error": {"type": anthropic_type(error), "message": error.message}}
    elif path.startswith("/v1/responses"):
        told = {"type": "error", "code": error.code, "message": error.message, "param": None}
    else:
        return f"data: {json.dumps(body)}\n\n".encode()
    return f"event: error\ndata: {json.dumps(told)}\n\n".encode()


def _closing(send: Send) -> Send:
    """A ``send`` whose answer ends its connection, so that the client's next request goes elsewhere."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["connection"] = "close"
        await send(message)

    return closing
