"""Which fronts a replica has heard of lately, and an end of what those that are gone have asked for.

Ray goes on with a call whose caller was killed: an engine would generate to the end for nobody. Every front asks every
replica for its state twice a second, so that one that is silent has died, or stands still.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

logger = logging.getLogger(__name__)

SILENT_S: Final = 20.0
"""A front that was not heard of for so long has nobody left who waits for its answers."""


class HeardFronts:
    """Fronts by the name that each has drawn for itself.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard_s: dict[str, float] = {}
        self._ends: dict[str, list[Callable[[], None]]] = {}

    def heard(self, front: str) -> None:
        """It has just said something; one without a name is not waited for."""
        if front:
            self._heard_s[front] = self._clock()

    @contextmanager
    def call(self, front: str, end: Callable[[], None]) -> Iterator[None]:
        """While the block runs, ``end`` is called once where the front falls silent; without a name it never does."""
        if not front:
            yield
            return
        self.heard(front)
        ends = self._ends.setdefault(front, [])
        ends.append(end)
        try:
            yield
        finally:
            ends.remove(end)

    def end_silent(self) -> None:
        """End what silent fronts have asked for, and forget them."""
        limit_s = self._clock() - SILENT_S
        for front in [name for name, at_s in self._heard_s.items() if at_s < limit_s]:
            del self._heard_s[front]
            ends = self._ends.pop(front, [])
            if ends:
                logger.warning("front_silent front=%s calls=%d", front, len(ends))
            for end in tuple(ends):
                end()
