"""How many requests may be in progress, waiting or running: in total, and of one key. What is more is refused at once.

A refusal costs a comparison, names what is full, and says when to come back, from the measured rate at which requests
end. Whose turn it is among those that are let in is `amalgam.services.fair_queue`'s.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from amalgam.errors.overload import KeyOverShare, ServerFull
from amalgam.services.drain_rate import DrainRate
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

BATCHES: Final = 4
"""Requests in progress that the server takes by itself, in full batches of the engine."""


@dataclass(frozen=True, slots=True)
class RequestBounds:
    """How many requests may be in progress.

    Attributes:
        total: of all keys.
        per_key: of one key.
    """

    total: int
    per_key: int

    @classmethod
    def of(cls, batch: int, total: int | None, per_key: int | None, *, keys: int) -> "RequestBounds":
        """What is set, else `BATCHES` full batches in total, of which one key of several may have half.

        Args:
            batch: sequences in a full batch of the engine.
            total: as set, or None.
            per_key: as set, or None.
            keys: how many keys are configured; a single one may have all.
        """
        whole = total or BATCHES * batch
        return cls(whole, min(per_key or (whole if keys < 2 else max(1, whole // 2)), whole))


@dataclass(slots=True, eq=False)
class _Key:
    drain: DrainRate
    count: int = 0


class Admission:
    """Counts requests in and out.

    Args:
        bounds: how many may be in.
        clock: monotonic seconds.
        metrics: told of the number in progress and of refusals.
    """

    def __init__(
        self, bounds: RequestBounds, clock: Callable[[], float] = time.monotonic, metrics: Metrics = NO_METRICS
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._drain = DrainRate(clock)
        self._keys: dict[str, _Key] = {}
        self._count = 0
        self.resize(bounds)

    def resize(self, bounds: RequestBounds) -> None:
        """Set the bounds anew, when the engine has said how large its batch is; what is in stays in."""
        self._bounds = bounds
        self._metrics.admission_bound(bounds.total)

    @property
    def count(self) -> int:
        """Requests in progress."""
        return self._count

    def _require_room(self, client: str) -> None:
        key = self._keys.get(client)
        if key is not None and key.count >= self._bounds.per_key < self._bounds.total:
            self._metrics.refused("key_share")
            raise KeyOverShare(self._bounds.per_key, key.drain.appointment_s())
        if self._count >= self._bounds.total:
            self._metrics.refused("server_full")
            raise ServerFull(self._bounds.total, self._drain.appointment_s())

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """The request is in progress while the block runs.

        Raises:
            KeyOverShare: the key has its share in progress.
            ServerFull: all keys together have what the server takes.
        """
        self._require_room(client)
        key = self._keys.get(client)
        if key is None:
            key = self._keys[client] = _Key(DrainRate(self._clock))
        key.count += 1
        self._count += 1
        if key.count * 2 == self._bounds.per_key:
            key.drain.restart()
        if self._count * 2 == self._bounds.total:
            self._drain.restart()
        self._metrics.admitted(self._count)
        try:
            yield
        finally:
            self._count -= 1
            key.count -= 1
            if key.count == 0:
                del self._keys[client]
            key.drain.ended()
            self._drain.ended()
            self._metrics.admitted(self._count)
