"""Time and fresh ids as arguments: what needs them is handed a source of them."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Gives the present moment, aware, in UTC."""


def utc_now() -> datetime:
    """The wall clock in UTC: what the roots of the program pass down as their `Clock`."""
    return datetime.now(UTC)


def new_id() -> str:
    """A fresh identifier: what the roots of the program pass down for jobs."""
    return f"job-{uuid.uuid4().hex}"


def new_evaluation_id() -> str:
    """The same for evaluations, and for who measures them."""
    return f"eval-{uuid.uuid4().hex}"
