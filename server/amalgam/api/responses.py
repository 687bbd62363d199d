"""Errors in one shape: OpenAI's error object with all four fields."""

import re
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse

from amalgam.errors import AmalgamError
from amalgam.errors.adapters import InvalidAdapter
from amalgam.errors.engine import EngineRefused

_MAX_MESSAGE: Final = 1000
_PRIVATE: Final = re.compile(r"(?<![\w:/])(?:/[\w.@+~-]+){2,}/?(?::\d+)?|\b0x[0-9a-fA-F]{6,}\b")
"""Absolute paths, with the line that stands behind one, and addresses in memory."""


def error_body(error: AmalgamError, request_id: str | None = None) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``, with findings where an adapter was refused."""
    content: dict[str, Any] = {
        "message": _told(error.message) if isinstance(error, EngineRefused) else error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    if isinstance(error, InvalidAdapter):
        content["findings"] = [finding.model_dump() for finding in error.findings]
    if request_id is not None:
        content["request_id"] = request_id
    return {"error": content}


def _told(message: str) -> str:
    """What the engine said, fit to be told: its first line, without paths and addresses, and not without end."""
    return _PRIVATE.sub("…", message.strip().split("\n", 1)[0])[:_MAX_MESSAGE] or "The request was refused."


def error_response(
    error: AmalgamError, request: Request | None = None, extra_headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The HTTP answer for ``error``; carries what a client library needs to decide on a retry."""
    headers = dict(extra_headers or {})
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.status == 409 and error.retry_after_s is None:
        # openai-python repeats every 409 by itself; these are permanent.
        headers["x-should-retry"] = "false"
    request_id = request.scope.get("amalgam.request_id") if request is not None else None
    if request_id is not None:
        # Set here too: the answer to an unexpected error is sent outside of the middleware that sets it.
        headers["x-request-id"] = request_id
    return JSONResponse(error_body(error, request_id), status_code=error.status, headers=headers)
