"""A look at the registry for a name that is not in memory: one at a time, for all who wait."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from amalgam.domain.catalog_rows import NameAnswers
from amalgam.errors import AmalgamError

logger = logging.getLogger(__name__)

MOST_AT_ONCE: Final = 64
"""One look has so many names: whoever asks for names that nobody registered has the registry do one statement after the
other, and never more than that."""
AWAY_S: Final = 1.0
"""Whoever misses a name is told so at once for this long after a look failed, seconds."""

LookUp = Callable[[Sequence[str], Sequence[str]], Awaitable[NameAnswers]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is not in memory."""

    name: str = ""
    recipe: str = ""
    """It is a digest: which versions were merged by it; else a name."""


class ColdNames:
    """Reads when it is called.

    Args:
        look_up: asks the registry about names and recipes.
        clock: monotonic seconds.
    """

    def __init__(self, look_up: LookUp, clock: Callable[[], float] = time.monotonic) -> None:
        self._look_up = look_up
        self._clock = clock
        self._waiting: dict[Wanted, asyncio.Future[NameAnswers]] = {}
        self._working: asyncio.Task[None] | None = None
        self._failed: tuple[float, AmalgamError] | None = None

    async def __call__(self, wanted: Wanted) -> NameAnswers:
        """What the registry says of ``wanted``, in a look that began after this call.

        Raises:
            RegistryUnavailable: it is away, or was a moment ago.
        """
        if self._failed is not None and self._clock() < self._failed[0]:
            raise self._failed[1].with_traceback(None)
        answer = self._waiting.get(wanted)
        if answer is None:
            answer = self._waiting[wanted] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_asked_about)
        if self._working is None:
            self._working = asyncio.create_task(self._work(), name="cold names")
        # Others wait for it too: it goes on where one of them leaves.
        return await asyncio.shield(answer)

    async def _work(self) -> None:
        try:
            while self._waiting:
                now = {one: self._waiting.pop(one) for one in list(self._waiting)[:MOST_AT_ONCE]}
                await self._answer(now)
        finally:
            self._working = None
            for left in self._waiting.values():
                left.cancel()
            self._waiting.clear()

    async def _answer(self, asked: dict[Wanted, "asyncio.Future[NameAnswers]"]) -> None:
        names = [one.name for one in asked if not one.recipe]
        recipes = [one.recipe for one in asked if one.recipe]
        try:
            found = await self._look_up(names, recipes)
        except AmalgamError as error:
            logger.warning("names_not_looked_up reason=%s", error)
            self._failed = self._clock() + AWAY_S, error
            for answer in asked.values():
                answer.set_exception(error)
        except BaseException:
            for answer in asked.values():
                answer.cancel()
            raise
        else:
            self._failed = None
            for answer in asked.values():
                answer.set_result(found)


def _asked_about(answer: "asyncio.Future[NameAnswers]") -> None:
    """Whatever it came to is known, so that nothing complains where nobody waits any more."""
    if not answer.cancelled():
        answer.exception()
