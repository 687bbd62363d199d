"""A look at the registry for whoever misses something in memory: shared by all who ask at once, and rare."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from amalgam.errors import AmalgamError

logger = logging.getLogger(__name__)

AWAY_S: Final = 1.0
"""After a look that failed nobody waits for another for so long."""
LEAST_PAUSE_S: Final = 0.1
"""It lies between the beginnings of two looks: names that nobody registered cost at most ten a second, whoever asks."""


class CatchUp:
    """Looks when it is called.

    Args:
        look: brings what is in memory up to date.
        pause_s: see `LEAST_PAUSE_S`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        look: Callable[[], Awaitable[object]],
        pause_s: float = LEAST_PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._pause_s = pause_s
        self._clock = clock
        self._turn = asyncio.Lock()
        self._began = clock() - pause_s
        self._resumes_at = clock()
        self._next: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        """Return after a look that began after this call; one that failed is logged, and what is known stays.

        While looks fail, return at once.
        """
        if self._clock() < self._resumes_at:
            return
        if self._next is None:
            self._next = asyncio.create_task(self._run(), name="catch up")
        # Others wait for it too: it goes on where one of them leaves.
        await asyncio.shield(self._next)

    async def _run(self) -> None:
        async with self._turn:
            await asyncio.sleep(max(0.0, self._began + self._pause_s - self._clock()))
            # Whoever asks from here on needs the look after this one.
            self._next = None
            self._began = self._clock()
            try:
                await self._look()
            except AmalgamError as error:
                self._resumes_at = self._clock() + AWAY_S
                logger.warning("registry_not_looked_at reason=%s", error)
