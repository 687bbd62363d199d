"""What goes wrong in a stream, told in the one shape of errors.

vLLM answers 200 before it has looked at a streaming request, and puts what it refuses, and what fails later, into
events of its own shape. A refusal that comes first becomes the answer's status; a later one, an event of our shape.
"""

import json
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Message, Send

from amalgam.api.access import caller_of
from amalgam.api.anthropic_errors import anthropic_type
from amalgam.api.errors import error_body, error_response
from amalgam.api.state import services
from amalgam.errors import AmalgamError
from amalgam.errors.engine import EngineNotReady, EngineRefused
from amalgam.errors.http import InternalError

_ERROR: Final = b'data: {"error":'
_ANTHROPIC_ERROR: Final = b"event: error\ndata: "
_DATA: Final = b"data: "


def with_told_errors(send: Send, request: Request) -> Send:
    """A `send` that holds the first line back until the first piece shows whether it is an error, and tells errors."""
    start: Message | None = None
    is_over = False

    async def told(message: Message) -> None:
        nonlocal start, is_over
        if is_over:
            return
        if message["type"] == "http.response.start":
            start = message
            return
        body = message.get("body", b"")
        error = _error_in(body, request)
        if start is not None:
            if error is not None:
                is_over = True
                await error_response(error, request)(request.scope, request.receive, send)
                return
            await send(start)
            start = None
        await send(message if error is None else {**message, "body": _event(error, body, request)})

    return told


def _error_in(piece: bytes, request: Request) -> AmalgamError | None:
    """The error that a piece of a stream is; None for any other piece."""
    if not piece.startswith((_ERROR, _ANTHROPIC_ERROR)):
        return None
    try:
        content = json.loads(piece.partition(_DATA)[2].partition(b"\n")[0])["error"]
        status = int(content.get("code", 500))
        message, param = str(content.get("message", "")), content.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return InternalError()
    if 400 <= status < 500:
        return EngineRefused(status, message, param if isinstance(param, str) else None)
    state = services(request).engine.state
    if state != "ready":
        return EngineNotReady(state)
    # Of several engines the one that was lost is told of by its status alone.
    return EngineNotReady("restarting") if status == 503 else InternalError()


def _event(error: AmalgamError, piece: bytes, request: Request) -> bytes:
    """The same error as an event of the dialect that the stream speaks."""
    content: dict[str, Any] = error_body(error, request.scope.get("amalgam.request_id"), caller_of(request).scopes)
    if piece.startswith(_ANTHROPIC_ERROR):
        content = {"type": "error", "error": {"type": anthropic_type(error), "message": content["error"]["message"]}}
        return _ANTHROPIC_ERROR + json.dumps(content).encode() + b"\n\n"
    return _DATA + json.dumps(content).encode() + b"\n\n"
