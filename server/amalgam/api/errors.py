"""Every error leaves in one shape: our classes, FastAPI's validation, Starlette's 404 and 405, and the unexpected.

`ErrorView` is that shape for the API's document, `error_body` makes it, and the handlers answer with it. They are
coroutines: Starlette runs others in a thread, so that a refusal would cost three times as much, and wait for a thread.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from amalgam.api.access import caller_of
from amalgam.api.anthropic_errors import anthropic_body, speaks_anthropic
from amalgam.api.fields.by_endpoint import FIELD_NAMES
from amalgam.api.inference.rate_headers import RATE_HEADERS
from amalgam.api.transport.cross_origin import PERMISSION
from amalgam.domain.adapter import NAME_PATTERN
from amalgam.domain.in_scope import redacted
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.errors import AmalgamError, NotFound
from amalgam.errors.adapters import HUB_STEP, NAME_STEP, InvalidAdapter
from amalgam.errors.engine import EngineRefused
from amalgam.errors.findings import Finding
from amalgam.errors.http import InternalError, MethodNotAllowed, RouteNotFound
from amalgam.errors.requests import FieldRefused
from amalgam.errors.tenants import NotInScope
from amalgam.errors.type_words import told
from amalgam.telemetry.request_watch import CLIENT_GONE

logger = logging.getLogger(__name__)

_MAX_PLACE: Final = 128
_MAX_REASON: Final = 400
_MAX_MESSAGE: Final = 1000
_FIRST_WORD: Final = re.compile(r"[`']?([a-z_]+)\b")
_PRIVATE: Final = re.compile(r"(?<![\w:/])(?:/[\w.@+~-]+){2,}/?(?::\d+)?|\b0x[0-9a-fA-F]{6,}\b")
"""It matches absolute paths, with the line that stands behind one, and addresses in memory."""


class ErrorContent(BaseModel):
    """OpenAI's four fields, and where they apply the findings and the request's id."""

    message: str = Field(description="what is wrong, with the values, and the next step")
    type: str
    param: str | None = Field(description="the request field at fault")
    code: str = Field(description="stable name; match on this")
    findings: tuple[Finding, ...] | None = Field(default=None, description="all of them, where an adapter was refused")
    request_id: str | None = Field(
        default=None, description="id of the request, also in the header x-request-id and in the server's log"
    )


class ErrorView(BaseModel):
    """Every error of every route."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "No adapter is named 'sqll'. GET /admin/v1/adapters lists what there is.",
                        "type": "invalid_request_error",
                        "param": "name",
                        "code": "adapter_not_found",
                        "request_id": "req-5f2b8c0d9a1e4b7c6d3f2a10",
                    }
                }
            ]
        }
    )

    error: ErrorContent


ERRORS: Final[dict[int | str, dict[str, Any]]] = {"default": {"model": ErrorView, "description": "Any error"}}
"""Every route has it; it also keeps FastAPI's own 422, which is never sent, out of the document."""


def error_body(error: AmalgamError, request_id: str | None = None, scopes: Scopes = EVERYTHING) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``, with findings where an adapter was refused.

    Of exact versions only those are named that are in ``scopes``, or that whoever asks has named.
    """
    is_engines = isinstance(error, EngineRefused)
    content: dict[str, Any] = {
        "message": _told(error.message) if is_engines else error.message,
        "type": error.type,
        "param": _field_named(error.message) if error.param is None and is_engines else error.param,
        "code": error.code,
    }
    if isinstance(error, InvalidAdapter):
        content["findings"] = [finding.model_dump() for finding in error.findings]
    if not isinstance(error, NotFound | NotInScope):
        # These two repeat what was asked for, and hints that were chosen for whoever asks.
        content = redacted(content, scopes)
    if request_id is not None:
        content["request_id"] = request_id
    return {"error": content}


def _field_named(message: str) -> str | None:
    """The field that a sentence of the engine begins with: it says so of some refusals in no other way."""
    begin = _FIRST_WORD.match(message)
    return begin[1] if begin is not None and begin[1] in FIELD_NAMES else None


def _told(message: str) -> str:
    """What the engine said, fit to be told: its first line, without paths and addresses, and not without end."""
    return _PRIVATE.sub("…", message.strip().split("\n", 1)[0])[:_MAX_MESSAGE] or "The request was refused."


def error_response(
    error: AmalgamError, request: Request | None = None, extra_headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The HTTP answer for ``error``; carries what a client library needs to decide on a retry."""
    headers = dict(extra_headers or {})
    if request is not None:
        headers |= request.scope.get(RATE_HEADERS, {})
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.status in (409, 429) and error.retry_after_s is None:
        # openai-python repeats every one of these by itself; without a time to come back they are permanent.
        headers["x-should-retry"] = "false"
    request_id = request.scope.get("amalgam.request_id") if request is not None else None
    if request_id is not None:
        # Set here too: the answer to an unexpected error is sent outside of the middleware that sets it.
        headers["x-request-id"] = request_id
    scopes = EVERYTHING if request is None else caller_of(request).scopes
    body = error_body(error, request_id, scopes)
    if request is not None and speaks_anthropic(request.scope["path"]):
        body = anthropic_body(error, body)
    return JSONResponse(body, status_code=error.status, headers=headers)


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AmalgamError)
    if error.status >= 500 and error.status != 503:
        logger.error(
            "request_failed method=%s path=%s code=%s reason=%s",
            request.method,
            request.scope["path"],
            error.code,
            error,
            exc_info=error.__cause__,
        )
        if isinstance(error, EngineRefused):
            # The engine's words for a fault of its own are for the log.
            return error_response(InternalError(), request)
    return error_response(error, request)


def refused_field(errors: Sequence[Any]) -> FieldRefused:
    """Pydantic's first finding, by the field's place in the body; the refused value is not repeated."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    # Names of fields are a client's own text.
    shown = place[:_MAX_PLACE].encode("unicode_escape").decode() or "body"
    reason = told(first)
    if NAME_PATTERN in str(first.get("ctx", {}).get("pattern", "")):
        reason = f"is not a name. {NAME_STEP} {HUB_STEP}"
    return FieldRefused(shown, reason[:_MAX_REASON])


async def _validation(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's 422 becomes 400 with ``param``."""
    assert isinstance(error, RequestValidationError)
    return error_response(refused_field(error.errors()), request)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, AmalgamError):
        # FastAPI wraps what a body raises while it is read.
        return error_response(error.__cause__, request)
    if error.status_code == 404:
        return error_response(RouteNotFound(), request)
    if error.status_code == 405:
        return error_response(MethodNotAllowed(), request, error.headers)
    if 400 <= error.status_code < 500:
        return error_response(FieldRefused("body", str(error.detail)), request)
    return error_response(InternalError(), request)


async def _gone(request: Request, error: Exception) -> Response:
    """The client left while its body was read; whatever was begun has been undone on the way here."""
    logger.info("client_gone method=%s path=%s", request.method, request.scope["path"])
    return Response(status_code=CLIENT_GONE)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error(
        "request_failed method=%s path=%s code=internal_error", request.method, request.scope["path"], exc_info=error
    )
    # Sent outside of all middleware, which would have said whether a page may read it.
    return error_response(InternalError(), request, request.scope.get(PERMISSION))


def install_error_handlers(app: FastAPI) -> None:
    """Register all of the above."""
    app.add_exception_handler(AmalgamError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)
