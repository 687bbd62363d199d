"""Every error leaves in one shape: our classes, FastAPI's validation, Starlette's 404 and 405, and the unexpected."""

import logging
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from amalgam.api.responses import error_response
from amalgam.errors import AmalgamError, InvalidRequest, NotFound
from amalgam.errors.engine import EngineRefused
from amalgam.errors.requests import FieldRefused
from amalgam.telemetry.request_watch import CLIENT_GONE

logger = logging.getLogger(__name__)

_MAX_PLACE: Final = 128
_MAX_REASON: Final = 400


class RouteNotFound(NotFound):
    """No route at that path."""

    code = "route_not_found"

    def __init__(self) -> None:
        super().__init__("There is no such route. GET /openapi.json lists them.")


class MethodNotAllowed(InvalidRequest):
    """The route exists for other methods."""

    status = 405
    code = "method_not_allowed"

    def __init__(self) -> None:
        super().__init__("The route does not answer this method. GET /openapi.json says which.")


class InternalError(AmalgamError):
    """A fault of the server; the log has the trace under the request's id."""

    def __init__(self) -> None:
        super().__init__("The server failed on this request. Its log says why, under the request id of this answer.")


def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AmalgamError)
    if error.status >= 500 and error.status != 503:
        logger.error("%s %s: %s", request.method, request.scope["path"], error, exc_info=error.__cause__)
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
    return FieldRefused(shown, str(first["msg"])[:_MAX_REASON])


def _validation(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's 422 becomes 400 with ``param``."""
    assert isinstance(error, RequestValidationError)
    return error_response(refused_field(error.errors()), request)


def _http(request: Request, error: Exception) -> JSONResponse:
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


def _gone(request: Request, error: Exception) -> Response:
    """The client left while its body was read; whatever was begun has been undone on the way here."""
    logger.info("%s %s: the client left", request.method, request.scope["path"])
    return Response(status_code=CLIENT_GONE)


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    return error_response(InternalError(), request)


def install_error_handlers(app: FastAPI) -> None:
    """Register all of the above."""
    app.add_exception_handler(AmalgamError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)
