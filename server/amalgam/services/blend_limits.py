"""How many new blends one key may describe."""

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final

from amalgam.errors.blends import TooManyBlends

_MINUTE_S: Final = 60.0


class BlendsPerMinute:
    """Counts by client over the last sixty seconds.

    Args:
        limit: new blends of one client in any minute.
        clock: monotonic seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._begun: defaultdict[str, deque[float]] = defaultdict(deque)

    def count(self, client: str) -> None:
        """Count one more of ``client``, one of the configured keys.

        Raises:
            TooManyBlends: the limit is reached; says how long to wait.
        """
        now = self._clock()
        begun = self._begun[client]
        while begun and begun[0] <= now - _MINUTE_S:
            begun.popleft()
        if len(begun) >= self._limit:
            wait_s = begun[0] + _MINUTE_S - now if begun else _MINUTE_S
            raise TooManyBlends(self._limit, wait_s)
        begun.append(now)
