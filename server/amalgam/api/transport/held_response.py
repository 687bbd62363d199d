"""A stream that gives back what its source needs when the source ends, and the rest with its last byte."""

from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from amalgam.api.inference.read_ahead import ReadAhead
from amalgam.api.inference.stream_errors import with_told_errors


class HeldResponse(Response):
    """Sends ``inner`` and releases what the request holds, also when the client leaves or sending fails.

    Args:
        inner: the stream.
        held: what the source needs, such as the engine's place; given back when the source has ended, however slowly
            the client reads.
        admitted: what the request needs as long as anything of it is left.
    """

    def __init__(self, inner: StreamingResponse, held: AsyncExitStack, admitted: AsyncExitStack | None = None) -> None:
        self._inner = inner
        self._held = held
        self._admitted = admitted or AsyncExitStack()
        self.status_code = inner.status_code
        self.raw_headers = inner.raw_headers
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, then release."""
        async with self._admitted, self._held:
            pieces = ReadAhead(aiter(self._inner.body_iterator), self._held.aclose)
            self._inner.body_iterator = pieces
            send = pieces.sending(send)
            if self._inner.headers.get("content-type", "").startswith("text/event-stream"):
                send = with_told_errors(send, Request(scope, receive))
            try:
                with pieces.watched():
                    await self._inner(scope, receive, send)
            finally:
                await pieces.close()
