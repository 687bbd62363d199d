"""A bound on what one connection may send without end: headers, trailers, chunk extensions.

Uvicorn's fast parser has none. It hands on a body as it comes, which the application counts; all else it collects.
"""

import importlib.util
from typing import Any, Final

MAX_UNREAD_BYTES: Final = 256 << 10
"""Above the reading buffer of the event loop, so that a request which fits is never met half read; the application's
own, tighter bound on headers is answered in the one shape of errors."""

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def bounded_http() -> Any:
    """What uvicorn's ``http`` option takes: its httptools protocol with a bound, or h11, which has one."""
    if importlib.util.find_spec("httptools") is None:
        return "h11"
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class BoundedHttp(HttpToolsProtocol):
        """Ends a connection that sends and sends, and completes nothing."""

        _unread_bytes = 0
        _progress = False

        def data_received(self, data: bytes) -> None:
            """Parse, then count what completed neither headers nor a piece of a body nor a request."""
            self._progress = False
            super().data_received(data)
            self._unread_bytes = 0 if self._progress else self._unread_bytes + len(data)
            if self._unread_bytes > MAX_UNREAD_BYTES and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

        def on_headers_complete(self) -> None:
            """Progress."""
            self._progress = True
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            """Progress."""
            self._progress = True
            super().on_body(body)

        def on_message_complete(self) -> None:
            """Progress."""
            self._progress = True
            super().on_message_complete()

    return BoundedHttp
