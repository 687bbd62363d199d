"""Time as an argument: what reads the clock is handed one."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Gives the present moment, aware, in UTC."""


def utc_now() -> datetime:
    """The wall clock in UTC: what the roots of the program pass down as their `Clock`."""
    return datetime.now(UTC)
