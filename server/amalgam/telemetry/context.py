"""What log lines of one request have in common: its id and the version that answers it."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class RequestContext:
    """The request that is being answered."""

    request_id: str
    adapter: str | None = None
    """Exact version (``sql@3``) or the base model's served name; None before it is known."""
    alias: str | None = None
    """The alias that the request named, if it did."""
    trace_id: str | None = None
    """Of the caller's ``traceparent``, 32 hexadecimal digits."""


_current: ContextVar[RequestContext | None] = ContextVar("amalgam_request", default=None)


def enter(context: RequestContext) -> None:
    """Make ``context`` the current one of this task and of the tasks it starts.

    It is not taken back: each request has a task of its own, and what handles its failure runs after its routes.
    """
    _current.set(context)


def current() -> RequestContext | None:
    """The request that this task works for."""
    return _current.get()


def note_adapter(engine_name: str) -> None:
    """Say which version the current request means; nothing outside of a request."""
    context = _current.get()
    if context is not None:
        context.adapter = engine_name


def note_alias(name: str) -> None:
    """Say which alias the current request named; nothing outside of a request."""
    context = _current.get()
    if context is not None:
        context.alias = name
