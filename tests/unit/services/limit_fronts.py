"""Front ends that share limits in memory: a stand-in for the database, and several `Shares` under one clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from amalgam.domain.limits import Bucket, Measure, Slice, SliceAsk
from amalgam.domain.tenant import Key, Limits, Role, Tenant
from amalgam.errors.registry import RegistryUnavailable

MOMENT = datetime(2026, 1, 1, 12, tzinfo=UTC)


def tenant(limits: Limits | None = None, **fields: object) -> Tenant:
    """The tenant ``acme``."""
    given: dict[str, object] = {"id": "acme", "name": "Acme", "created_at": MOMENT, "updated_at": MOMENT}
    return Tenant.model_validate(given | {"limits": limits or Limits()} | fields)


def key(limits: Limits | None = None, **fields: object) -> Key:
    """A key of ``acme``."""
    given: dict[str, object] = {"id": "0" * 16, "tenant": "acme", "secret_digest": "0" * 64, "role": Role.CLIENT}
    return Key.model_validate(given | {"created_at": MOMENT, "limits": limits or Limits()} | fields)


@dataclass
class SlicesInMemory:
    """As `amalgam.registry.limit_slices.LimitSlices`, without a database; and one that can be out of reach."""

    rows: dict[tuple[str, str, int], tuple[int, int]] = field(default_factory=dict)
    """Bucket, front end and second: what is taken, and until when it counts."""
    now_s: float = 1000.0
    is_down: bool = False
    is_deaf: bool = False
    """Writes, and fails all the same: the connection is lost in the moment of the commit."""
    exchanges: int = 0

    async def exchange(
        self, front: str, reached_s: float | None, asks: Sequence[SliceAsk]
    ) -> tuple[float, Sequence[Slice]]:
        return self.exchanged(front, reached_s, asks)

    def exchanged(self, front: str, reached_s: float | None, asks: Sequence[SliceAsk]) -> tuple[float, Sequence[Slice]]:
        if self.is_down:
            raise RegistryUnavailable("it is down")
        self.exchanges += 1
        self.now_s = max(self.now_s, reached_s or 0.0)
        slices = []
        for ask in asks:
            others = self.taken(ask.bucket, without=front)
            granted = ask.granted(sum(others.values()))
            for slot, units in {**ask.used, ask.slot: ask.base + granted}.items():
                self.rows[ask.bucket, front, slot] = (units, ask.until_s(slot, int(self.now_s)))
            slices.append(Slice(granted, sum(others.values()), others))
        if self.is_deaf:
            raise RegistryUnavailable("the connection was lost")
        return self.now_s, slices

    def taken(self, bucket: str, without: str = "") -> Mapping[int, int]:
        found: dict[int, int] = {}
        for (name, front, slot), (units, until_s) in self.rows.items():
            if name == bucket and front != without and until_s > int(self.now_s):
                found[slot] = found.get(slot, 0) + units
        return found

    async def sweep(self) -> None:
        self.rows = {where: row for where, row in self.rows.items() if row[1] > int(self.now_s)}


def bucket(measure: Measure, limit: int) -> Bucket:
    ends_at = MOMENT if measure.is_budget else None
    return Bucket(f"{measure.value}:test", measure, limit, "The key ak_test", ends_at)
