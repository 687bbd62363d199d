"""How many requests may be in progress, waiting or running: in total, of a tenant, of a key. More is refused at once.

A refusal costs a comparison, names what is full, and says when to come back, from the measured rate at which requests
end. Whose turn it is among those that are let in is `amalgam.services.fair_queue`'s.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from amalgam.domain.tenant import BUILT_IN_TENANT
from amalgam.errors.overload import KeyOverShare, ServerFull, TenantOverShare
from amalgam.services.drain_rate import DrainRate
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

BATCHES: Final = 4
"""The server takes so many requests by itself, in full batches of the engine."""


@dataclass(frozen=True, slots=True)
class RequestBounds:
    """How many requests may be in progress.

    Attributes:
        total: of all keys.
        per_key: of one key.
        per_tenant: of all keys of one tenant; no fewer than of one key.
    """

    total: int
    per_key: int
    per_tenant: int

    @classmethod
    def of(
        cls, batch: int, total: int | None, per_key: int | None, per_tenant: int | None, *, keys: int, tenants: int
    ) -> "RequestBounds":
        """What is set, else `BATCHES` full batches in total: half for a key of several, three quarters for a tenant.

        Args:
            batch: sequences in a full batch of the engine.
            total: as set, or None.
            per_key: as set, or None.
            per_tenant: as set, or None.
            keys: how many keys there are; a single one may have all.
            tenants: how many tenants have keys; a single one may have all.
        """
        whole = total or BATCHES * batch
        of_key = min(per_key or (whole if keys < 2 else max(1, whole // 2)), whole)
        of_tenant = min(per_tenant or (whole if tenants < 2 else max(of_key, whole * 3 // 4)), whole)
        return cls(whole, min(of_key, of_tenant), of_tenant)


@dataclass(slots=True, eq=False)
class _Count:
    """The count of a key or a tenant with requests in progress."""

    drain: DrainRate
    count: int = 0

    def enter(self, bound: int) -> None:
        self.count += 1
        if self.count * 2 == bound:
            self.drain.restart()

    def leave(self) -> bool:
        """Whether nothing is left."""
        self.count -= 1
        self.drain.ended()
        return self.count == 0


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
        self._keys: dict[str, _Count] = {}
        self._tenants: dict[str, _Count] = {}
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

    def _require_room(self, client: str, tenant: str) -> None:
        bounds, key, whole = self._bounds, self._keys.get(client), self._tenants.get(tenant)
        if key is not None and key.count >= bounds.per_key < bounds.total:
            self._metrics.refused("key_share")
            raise KeyOverShare(bounds.per_key, key.drain.appointment_s())
        if whole is not None and whole.count >= bounds.per_tenant < bounds.total:
            self._metrics.refused("tenant_share")
            raise TenantOverShare(bounds.per_tenant, whole.drain.appointment_s())
        if self._count >= bounds.total:
            self._metrics.refused("server_full")
            raise ServerFull(bounds.total, self._drain.appointment_s())

    def _counted(self, counts: dict[str, _Count], name: str) -> _Count:
        found = counts.get(name)
        if found is None:
            found = counts[name] = _Count(DrainRate(self._clock))
        return found

    @contextmanager
    def enter(self, client: str, tenant: str = BUILT_IN_TENANT) -> Iterator[None]:
        """The request is in progress while the block runs.

        Args:
            client: the word for the key that asks.
            tenant: whose key it is.

        Raises:
            KeyOverShare: the key has its share in progress.
            TenantOverShare: the keys of the tenant together have theirs.
            ServerFull: all keys together have what the server takes.
        """
        self._require_room(client, tenant)
        key, whole = self._counted(self._keys, client), self._counted(self._tenants, tenant)
        key.enter(self._bounds.per_key)
        whole.enter(self._bounds.per_tenant)
        self._count += 1
        if self._count * 2 == self._bounds.total:
            self._drain.restart()
        self._metrics.admitted(self._count)
        try:
            yield
        finally:
            self._count -= 1
            if key.leave():
                del self._keys[client]
            if whole.leave():
                del self._tenants[tenant]
            self._drain.ended()
            self._metrics.admitted(self._count)
