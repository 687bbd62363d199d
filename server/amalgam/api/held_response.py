"""A response that keeps its version held until its last byte."""

from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from amalgam.api.stream_errors import with_told_errors


class HeldResponse(Response):
    """Sends ``inner`` and then releases what the request holds, also when the client leaves or sending fails."""

    def __init__(self, inner: Response, stack: AsyncExitStack) -> None:
        self._inner = inner
        self._stack = stack
        self.status_code = inner.status_code
        self.raw_headers = inner.raw_headers
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, then release."""
        async with self._stack:
            if self._inner.headers.get("content-type", "").startswith("text/event-stream"):
                send = with_told_errors(send, Request(scope, receive))
            await self._inner(scope, receive, send)
