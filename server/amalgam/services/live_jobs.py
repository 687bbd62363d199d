"""How much is queued or under way, of every kind of job, for the page of metrics."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from amalgam.errors import AmalgamError

_LOOK_TIMEOUT_S: Final = 1.0

Counts = Mapping[tuple[str, str], int]
"""By kind and state."""


async def live_jobs(*sources: Callable[[], Awaitable[Counts]]) -> Counts | None:
    """What all ``sources`` count, together; None where the registry does not answer in time."""
    found: dict[tuple[str, str], int] = {}
    try:
        async with asyncio.timeout(_LOOK_TIMEOUT_S):
            for count in sources:
                found |= await count()
    except (AmalgamError, TimeoutError):
        return None
    return found
