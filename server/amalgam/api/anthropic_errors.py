"""Errors in Anthropic's dialect: its types, by the status that its clients expect of each."""

from collections.abc import Mapping
from typing import Any, Final

from amalgam.errors import AmalgamError

_PATH: Final = "/v1/messages"
_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Other statuses are `invalid_request_error` for the request's own faults, and `api_error` for the server's."""


def speaks_anthropic(path: str) -> bool:
    """Whether the route of ``path`` answers in Anthropic's dialect."""
    return path == _PATH or path.startswith(f"{_PATH}/")


def anthropic_type(error: AmalgamError) -> str:
    """The type of ``error`` among Anthropic's."""
    return _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")


def anthropic_body(error: AmalgamError, body: Mapping[str, Any]) -> dict[str, Any]:
    """``body``, which is of the one shape of errors, in Anthropic's; ``code`` and ``param`` stay where they are."""
    content = {**body["error"], "type": anthropic_type(error)}
    return {"type": "error", "error": content, "request_id": content.get("request_id")}
