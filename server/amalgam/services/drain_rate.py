"""How fast requests end while there are many, as measured, and what that says to those who have to come back."""

from collections import deque
from collections.abc import Callable
from typing import Final

_REMEMBERED: Final = 64
_UNKNOWN_S: Final = 1.0
"""It lies between two ends, where none has been seen yet."""
LONGEST_S: Final = 60.0
"""Nobody is told to wait for longer: client libraries do not follow a longer advice."""
SHORTEST_S: Final = 1.0
"""``Retry-After`` counts whole seconds."""


class DrainRate:
    """Ends of requests, the last few since the load began.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since_s = clock()
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)
        self._promised_s = self._since_s

    def restart(self) -> None:
        """The load begins: what ended before, when few were asking, says nothing about how fast it can go."""
        self._ends.clear()
        self._since_s = self._clock()

    def ended(self) -> None:
        """A request has ended."""
        if len(self._ends) == _REMEMBERED:
            self._since_s = self._ends[0]
        self._ends.append(self._clock())

    @property
    def known(self) -> bool:
        """Whether anything has ended since the load began."""
        return bool(self._ends)

    def seconds_each(self) -> float:
        """Seconds between two ends, counted up to now, so that a stall shows."""
        lasted_s = self._clock() - self._since_s
        return lasted_s / len(self._ends) if self._ends else max(_UNKNOWN_S, lasted_s)

    def appointment_s(self) -> float:
        """Seconds after which a refused request is expected to be accepted.

        Each caller gets a later time than the one before: when the n-th request from now has ended, where n have been
        refused and have not come back yet.
        """
        now_s = self._clock()
        self._promised_s = min(max(self._promised_s, now_s) + self.seconds_each(), now_s + LONGEST_S)
        return max(self._promised_s - now_s, SHORTEST_S)
