"""Under which names adapters are asked for right now, for gateways that keep an adapter's requests together."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class AskedNames:
    """Counts the requests that wait and that run, by the name each gave its adapter."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._running: Counter[str] = Counter()

    @property
    def waiting(self) -> frozenset[str]:
        """The names of requests that have no place yet."""
        return frozenset(self._waiting)

    @property
    def running(self) -> frozenset[str]:
        """The names of requests that are being answered."""
        return frozenset(self._running)

    @contextmanager
    def asking(self, name: str) -> Iterator[Callable[[], None]]:
        """A request gives ``name`` while the block runs; what is given is called once it has its place."""
        now = self._waiting
        now[name] += 1

        def runs() -> None:
            nonlocal now
            _less(now, name)
            now = self._running
            now[name] += 1

        try:
            yield runs
        finally:
            _less(now, name)


def _less(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
