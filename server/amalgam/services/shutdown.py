"""The way a server stops: it says so, refuses what is new, lets finish what runs, and cuts what takes too long.

running ── begin() ──> stopping: not ready, new requests are refused, the listener stays open for a grace
                           └── limit_s after begin(): over: what runs still is cut, and told why
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Shutdown:
    """The end of one server; in the event loop's thread.

    Args:
        limit_s: what runs at the begin may go on for so long, seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timer: asyncio.TimerHandle | None = None
        self._cuts: set[Callable[[], None]] = set()

    @property
    def is_stopping(self) -> bool:
        """Whether `begin` was called."""
        return self._timer is not None

    def begin(self) -> None:
        """Stop from now on; repeating it changes nothing."""
        if self._timer is None:
            logger.info("shutdown_begun limit_s=%.1f running=%d", self._limit_s, len(self._cuts))
            self._timer = asyncio.get_running_loop().call_later(self._limit_s, self._over)

    @contextmanager
    def watching(self, cut: Callable[[], None]) -> Iterator[None]:
        """While the block runs, ``cut`` is called when the limit has passed; at most once."""
        self._cuts.add(cut)
        try:
            yield
        finally:
            self._cuts.discard(cut)

    def _over(self) -> None:
        if self._cuts:
            logger.warning("requests_cut count=%d", len(self._cuts))
        for cut in tuple(self._cuts):
            cut()
