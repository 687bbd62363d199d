"""What every request passes before its route: an id, and bounds on its headers and its body."""

import re
import secrets
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from amalgam.api.access import matched_route
from amalgam.api.errors import error_response
from amalgam.errors import AmalgamError
from amalgam.errors.http import BodyTooLarge, HeadersTooLarge, MalformedRequest

MAX_HEADER_BYTES: Final = 64 << 10
_CLIENT_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_ID_HEADER: Final = b"x-request-id"
_LENGTH: Final = re.compile(r"[0-9]{1,18}")


class RequestId:
    """Gives each request an id: the client's where it is harmless, else a new one; it is in every answer and log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set the id and send it back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((v for k, v in scope["headers"] if k == _ID_HEADER and _CLIENT_ID.fullmatch(v)), None)
        request_id = given.decode() if given else f"req-{secrets.token_hex(12)}"
        scope["amalgam.request_id"] = request_id
        # vLLM names its work by this header; a client's repeated id must not collide there.
        scope["headers"] = [(k, v) for k, v in scope["headers"] if k != _ID_HEADER]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class HeaderLimit:
    """Ends a request whose headers are larger than `MAX_HEADER_BYTES`; the path and the query count with them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add up what came."""
        if scope["type"] == "http":
            size = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
            size += sum(len(name) + len(value) for name, value in scope["headers"])
            if size > MAX_HEADER_BYTES:
                await _refuse(HeadersTooLarge(MAX_HEADER_BYTES), scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyLimit:
    """Ends a request whose body grows beyond the limit of its route, by its header or while it arrives.

    Args:
        app: what answers.
        json_bytes: limit of all bodies but uploads.
        upload_bytes: limit of forms with files, at ``upload_routes``.
        upload_routes: templates of the routes that take such forms.
    """

    def __init__(self, app: ASGIApp, json_bytes: int, upload_bytes: int, upload_routes: frozenset[str]) -> None:
        self._app = app
        self._json_bytes = json_bytes
        self._upload_bytes = upload_bytes
        self._upload_routes = upload_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what arrives."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_multipart = headers.get("content-type", "").lower().startswith("multipart/")
        is_upload = is_multipart and matched_route(scope).template in self._upload_routes
        limit = self._upload_bytes if is_upload else self._json_bytes
        declared = headers.get("content-length", "0")
        if not _LENGTH.fullmatch(declared):
            await _refuse(MalformedRequest("its Content-Length is no number"), scope, receive, send)
            return
        if int(declared) > limit:
            await _refuse(BodyTooLarge(limit), scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > limit:
                    raise BodyTooLarge(limit)
            return message

        await self._app(scope, counted, send)


async def _refuse(error: AmalgamError, scope: Scope, receive: Receive, send: Send) -> None:
    await error_response(error, Request(scope))(scope, receive, send)
