"""The one place where what a database driver raises becomes an error of this server."""

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from amalgam.errors.registry import RegistryFailed, RegistryUnavailable
from amalgam.registry.silence import Silence

logger = logging.getLogger(__name__)

_REASONS: Final = {
    "locked": "it is locked",
    "lock timeout": "it is locked",
    "full": "its disk is full",
    "no space left": "its disk is full",
    "readonly": "it is read-only",
    "interrupted": "it does not answer",
}
_UNAVAILABLE_STATES: Final = ("08", "25P03", "40", "53", "55", "57", "58")
"""These classes of PostgreSQL's SQLSTATE pass: connection, idle in a transaction, deadlock, resources, locks,
intervention, the system."""


@dataclass(slots=True)
class Progress:
    """How far a transaction has come."""

    is_committing: bool = False
    watch: Silence = field(default_factory=lambda: Silence(None, 0.0))
    """It watches over its connection."""


@contextmanager
def translated(progress: Progress | None = None) -> Iterator[None]:
    """Let nothing of a driver out of the block.

    Raises:
        RegistryUnavailable: the database cannot be used now.
        RegistryFailed: it refused a statement in a way that nobody foresaw; logged with its traceback.
        CancelledError: the task was cancelled, whatever the driver made of it.
    """
    progress = progress or Progress()
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from error
        if not _passes(error):
            logger.exception("registry_failed error=%s", type(error).__name__)
            raise RegistryFailed from error
        reason = "it does not answer" if progress.watch.has_cut or isinstance(error, TimeoutError) else reason_of(error)
        if progress.is_committing and _is_in_doubt(error):
            raise RegistryUnavailable.in_doubt(reason) from error
        raise RegistryUnavailable(reason) from error


def _passes(error: Exception) -> bool:
    """Whether the same statement may succeed later."""
    if isinstance(error, PoolTimeout | OSError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return True
    state = _state(error)
    return state is not None and state.startswith(_UNAVAILABLE_STATES)


def _state(error: Exception) -> str | None:
    state: str | None = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state


def _is_in_doubt(error: Exception) -> bool:
    """Whether the commit may have happened although its answer did not come; a refusal has a state of its own."""
    if isinstance(getattr(error, "orig", error), sqlite3.Error):
        return False
    state = _state(error)
    return state is None or state.startswith(("08", "57P"))


def reason_of(error: Exception) -> str:
    """A reason that says what is wrong and gives away neither host nor path."""
    text = str(error).lower()
    return next((reason for sign, reason in _REASONS.items() if sign in text), "it cannot be reached")
