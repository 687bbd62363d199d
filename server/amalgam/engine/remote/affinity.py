"""Which replica answers: an adapter's own, by a hash that every front computes alike, so that no message is needed.

Each adapter orders all replicas by a hash of both (rendezvous hashing): the first is its home, and when replicas come
or go only the adapters of those move. An adapter that has a large share of what arrives has more homes, as many as
replicas that its share would fill; while the first is not busy it has its requests all the same.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Final, Protocol

WINDOW_S: Final = 10.0
"""Arrivals weigh half after so long."""
_LEAST: Final = 16.0
"""With fewer arrivals, weighted, a share says nothing."""
_MOST_KEYS: Final = 4096
_ATTEMPT: Final = "|"


def routing_key(name: str | None, attempt: int) -> str:
    """What a request is routed by.

    Args:
        name: of its adapter; None: the base model, which is everywhere.
        attempt: how often it was lost; each time it goes to another replica, where there is one.
    """
    return f"{attempt}{_ATTEMPT}{name or ''}"


def read_key(given: str) -> tuple[int, str]:
    """Attempt and adapter of a `routing_key`."""
    attempt, separator, key = given.partition(_ATTEMPT)
    return (int(attempt), key) if separator and attempt.isdecimal() else (0, given)


class Shares:
    """The share that each adapter had of late in what arrives.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts: dict[str, float] = {}
        self._total = 0.0
        self._at = clock()

    def arrived(self, key: str) -> None:
        """One request more of ``key``."""
        now = self._clock()
        if now - self._at >= 1.0:
            self._fade(0.5 ** ((now - self._at) / WINDOW_S))
            self._at = now
        self._counts[key] = self._counts.get(key, 0.0) + 1.0
        self._total += 1.0

    def homes(self, key: str, replicas: int) -> int:
        """How many of ``replicas`` are the adapter's, from one to all."""
        if self._total < _LEAST:
            return 1
        share = self._counts.get(key, 0.0) / self._total
        return min(max(1, math.ceil(share * replicas)), replicas)

    def _fade(self, factor: float) -> None:
        kept = {key: count * factor for key, count in self._counts.items() if count * factor > 0.1}
        if len(kept) > _MOST_KEYS:
            kept = dict(sorted(kept.items(), key=lambda one: one[1])[-_MOST_KEYS:])
        self._counts, self._total = kept, sum(kept.values())


class Seen(Protocol):
    """What is known of a replica when a request is routed."""

    @property
    def name(self) -> str:
        """Unique."""

    @property
    def load(self) -> int:
        """Requests that it has."""

    @property
    def is_resident(self) -> bool:
        """Whether the adapter is in its memory."""

    @property
    def is_ready(self) -> bool:
        """Whether its engine answered when it was last asked."""


def ranked(key: str, seen: Sequence[Seen], homes: int, busy: int, attempt: int) -> list[int]:
    """Places in ``seen``, the best first.

    Args:
        key: the adapter; empty: the base model.
        seen: the replicas.
        homes: how many are the adapter's own.
        busy: requests from which on a replica is busy.
        attempt: how many of the best are passed over, because the request was lost there.
    """
    if not key:
        order = sorted(range(len(seen)), key=lambda i: seen[i].load)
    else:
        by_hash = sorted(range(len(seen)), key=lambda i: _weight(key, seen[i].name), reverse=True)
        own, others = by_hash[:homes], by_hash[homes:]
        # In the order of the hash while they are not busy; sorting is stable.
        free = [i for i in own if seen[i].load < busy]
        full = sorted((i for i in own if seen[i].load >= busy), key=lambda i: seen[i].load)
        rest = sorted(others, key=lambda i: (not seen[i].is_resident, seen[i].load))
        spare = [i for i in rest if seen[i].load < busy]
        order = [*free, *spare, *full, *(i for i in rest if seen[i].load >= busy)]
    first = attempt % len(order) if order else 0
    order = order[first:] + order[:first]
    return sorted(order, key=lambda i: not seen[i].is_ready)


def _weight(key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{key}|{replica}".encode(), digest_size=8).digest()
