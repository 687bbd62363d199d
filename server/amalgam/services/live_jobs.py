"""How much is queued or under way, by kind of job, for the page of metrics: counted in the background, by no scrape."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from amalgam.errors import AmalgamError

logger = logging.getLogger(__name__)

_LOOK_TIMEOUT_S: Final = 5.0
_PERIOD_S: Final = 1.0

Counts = Mapping[tuple[str, str], int]
"""It has them by kind and state."""
Count = Callable[[], Awaitable[Counts]]


async def live_jobs(*sources: Count) -> Counts | None:
    """What all ``sources`` count, together; None where the registry does not answer in time."""
    found: dict[tuple[str, str], int] = {}
    try:
        async with asyncio.timeout(_LOOK_TIMEOUT_S):
            for count in sources:
                found |= await count()
    except (AmalgamError, TimeoutError):
        return None
    return found


class LiveJobs:
    """The last counts that the registry gave.

    Args:
        sources: count jobs of different kinds.
    """

    def __init__(self, *sources: Count) -> None:
        self._sources = sources
        self.counts: Counts | None = None
        """Of the last look that was answered; None before the first."""
        self.is_answered = False
        """Whether the last look was."""

    async def look(self) -> None:
        """Count once."""
        found = await live_jobs(*self._sources)
        if found is not None:
            self.counts = found
        elif self.is_answered:
            logger.warning("registry_silent shown=the jobs that were counted last")
        self.is_answered = found is not None

    async def look_loop(self, period_s: float = _PERIOD_S) -> None:
        """Count now and every ``period_s`` seconds; runs until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(period_s)
