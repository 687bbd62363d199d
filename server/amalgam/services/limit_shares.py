"""One front end's part of every limit: what it was given, what of it is used, and what it has to tell the others.

No I/O and no waiting: time comes in, in seconds of the clock that all front ends share, which only goes on. A unit is
used only while the database counts it as this front end's, so that all of them together never use more than a limit,
whatever else they do, and whichever of them dies.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from amalgam.domain.limits import BUDGET_KEPT_S, FRESH_S, KEPT_S, LEASE_S, Bucket, Measure, Slice, SliceAsk

_HEADROOM: Final = 50
"""One part in so many of a limit is asked for beside what was used of late, so that few requests have to wait."""
_IDLE_S: Final = 2.0 * KEPT_S


@dataclass(slots=True, eq=False)
class Share:
    """This front end's part of one bucket.

    Attributes:
        bucket: with the limit as it is now.
        free: units that may be used.
        free_until_s: only until then.
        waiting: units that requests wait for.
        is_looked_at: whether somebody waits for word of how it stands.
        others: what the other front ends had when they were last heard of.
        told_s: when that was.
    """

    bucket: Bucket
    free: int = 0
    free_until_s: float = float("-inf")
    waiting: int = 0
    is_looked_at: bool = False
    others: int = 0
    told_s: float = float("-inf")
    _free_slot: int = 0
    _usable_s: float = FRESH_S
    """The exchange that is under way gives what may be used for so long from its begin."""
    _used: dict[int, int] = field(default_factory=dict)
    """It has the units by second; of what is no rate, all by second 0."""
    _used_total: int = 0
    _changed: set[int] = field(default_factory=set)
    _recent: int = 0
    _others_by_slot: Mapping[int, int] = field(default_factory=dict)
    is_rate: bool = False
    counts_tokens: bool = False

    def __post_init__(self) -> None:
        """Said once: they are asked several times in every request."""
        self.is_rate = self.bucket.measure.is_rate
        self.counts_tokens = self.bucket.measure.counts_tokens

    def has(self, units: int, now_s: float) -> bool:
        """Whether so many can be used now."""
        return self.free >= units and (now_s < self.free_until_s or units == 0)

    def use(self, units: int, now_s: float) -> int:
        """Use what is there; returns the second that it is counted by."""
        slot = self._slot(now_s)
        self.free -= units
        self._recent += units
        self._count(slot, units)
        return slot

    def give_back(self, slot: int, units: int, now_s: float) -> None:
        """Take back so much of what was used by ``slot``; below zero: so much more was needed."""
        if units < 0:
            # Nobody was asked about these: they come out of what others could have had, and of what is free here first.
            self._count(slot if slot in self._used else self._slot(now_s), -units)
            self.free = max(0, self.free + units)
            return
        if slot not in self._used:
            # Forgotten by now: it counts for nobody.
            return
        self._count(slot, -units)
        if not self.is_rate or slot + KEPT_S > now_s + FRESH_S + 1:
            self.free += units

    def _count(self, slot: int, units: int) -> None:
        self._used[slot] = self._used.get(slot, 0) + units
        self._used_total += units
        self._changed.add(slot)

    def _slot(self, now_s: float) -> int:
        return int(now_s) if self.is_rate else 0

    def left(self, now_s: float) -> int:
        """Units that are neither used nor held by another, as far as it is known here; may be below zero."""
        self._forget(now_s)
        return self.bucket.limit - self.others - self._used_total

    def _forget(self, now_s: float) -> None:
        # Nearly always in order of time, so that the first is the oldest.
        if not self.is_rate or not self._used or next(iter(self._used)) + KEPT_S > now_s:
            return
        for slot in [slot for slot in self._used if slot + KEPT_S <= now_s]:
            self._used_total -= self._used.pop(slot)
            self._changed.discard(slot)

    def room_in_s(self, units: int, now_s: float) -> float:
        """Seconds until so many may be used, if nobody uses more meanwhile; of a budget, that is not known here."""
        missing = units - self.left(now_s)
        if missing <= 0 or not self.is_rate:
            return 1.0
        for slot in sorted({*self._used, *self._others_by_slot}):
            missing -= self._used.get(slot, 0) + self._others_by_slot.get(slot, 0)
            if missing <= 0:
                return max(1.0, slot + KEPT_S - now_s)
        return float(KEPT_S)

    def full_in_s(self, now_s: float) -> float:
        """Seconds until all may be used again; of a budget, that is not known here."""
        self._forget(now_s)
        if self.is_rate and self._used_total:
            return max(0.0, next(reversed(self._used)) + KEPT_S - now_s)
        return float(KEPT_S) if self.is_rate and self.others else 0.0

    def wants_word(self) -> bool:
        """Whether the database has to hear of it, or is to be asked."""
        is_held = self.bucket.measure is Measure.CONCURRENT and self._used_total > 0
        return bool(self._changed) or self.free > 0 or self.waiting > 0 or is_held or self.is_looked_at

    def is_live(self, now_s: float) -> bool:
        """Whether it matters what the shared clock says: what was used has not been forgotten."""
        self._forget(now_s)
        return self._used_total > 0 and not self.bucket.measure.is_budget

    def shift(self, seconds: int) -> None:
        """The clock was behind that of the others by so much: what was used, was used later than it says."""
        if not self.is_rate:
            return
        moved = {slot + seconds: units for slot, units in self._used.items()}
        self._changed |= {*self._used, *moved}
        self._used = moved

    def is_idle(self, now_s: float) -> bool:
        """Whether it may be forgotten; what was used of a budget never is, until the budget is over."""
        self._forget(now_s)
        is_empty = not self.wants_word() and self._used_total == 0
        return is_empty and now_s > self.told_s + _IDLE_S

    def ask(self, now_s: float, *, late_s: float = 0.0, is_last: bool = False) -> SliceAsk:
        """What to tell and to ask. What is not wanted any more is given back with it; with the last one, all.

        Args:
            now_s: by the shared clock.
            late_s: so much later than usual the answer is expected: what is given counts by a second that is later by
                as much, and may be used for as much longer. Requests at a time are held by a lease, which nothing
                makes longer.
            is_last: whether nothing is asked for.
        """
        self._forget(now_s)
        if self.bucket.measure is Measure.CONCURRENT:
            late_s = 0.0
        self._usable_s = FRESH_S + late_s
        slot = self._slot(now_s + late_s)
        busy = 0 if is_last else self.waiting + self._recent
        wanted = min(busy + self.bucket.limit // _HEADROOM, self.bucket.limit) if busy else 0
        keep = min(self.free, wanted) if now_s < self.free_until_s else 0
        told = self._changed | {self._free_slot}
        used = {s: self._used.get(s, 0) for s in told if s != slot and s + self._kept_s > now_s}
        self.free, self._recent, self.is_looked_at = keep, 0, False
        self._changed = set()
        base = self._used.get(slot, 0) + keep
        mine = self._used_total + keep
        return SliceAsk(self.bucket.id, self.bucket.limit, mine, wanted - keep, slot, base, used, self._kept_s)

    @property
    def _kept_s(self) -> int:
        if self.is_rate:
            return KEPT_S
        return LEASE_S if self.bucket.measure is Measure.CONCURRENT else BUDGET_KEPT_S

    def given(self, ask: SliceAsk, piece: Slice, asked_s: float) -> None:
        """What came of ``ask``, which was made at ``asked_s``."""
        self.free += piece.granted
        self.free_until_s = asked_s + self._usable_s
        self._free_slot = ask.slot
        self.others, self.told_s = piece.others, asked_s
        if piece.granted < ask.want:
            self._others_by_slot = piece.by_slot

    def unheard(self, ask: SliceAsk) -> None:
        """Nothing came of ``ask``, as far as is known: it may have been written all the same."""
        self._changed |= {*ask.used, ask.slot, self._free_slot}


class Shares:
    """The shares of one front end, by bucket."""

    def __init__(self) -> None:
        self._shares: dict[str, Share] = {}

    def of(self, buckets: Iterable[Bucket]) -> tuple[Share, ...]:
        """The share of each bucket, with the limit as the bucket says it now."""
        return tuple(map(self._of, buckets))

    def _of(self, bucket: Bucket) -> Share:
        share = self._shares.get(bucket.id)
        if share is None:
            share = self._shares[bucket.id] = Share(bucket)
        elif share.bucket != bucket:
            share.bucket = bucket
        return share

    def keep(self, share: Share) -> Share:
        """The share of the same bucket that is asked for: this one, unless it was forgotten and there is another."""
        return self._shares.setdefault(share.bucket.id, share)

    def want_word(self) -> bool:
        """Whether there is anything to tell or to ask."""
        return any(share.wants_word() for share in self._shares.values())

    def is_live(self, now_s: float) -> bool:
        """Whether any share has to know the shared clock."""
        return any(share.is_live(now_s) for share in self._shares.values())

    def shift(self, seconds: int) -> None:
        """See `Share.shift`."""
        for share in self._shares.values():
            share.shift(seconds)

    def asks(self, now_s: float, *, late_s: float = 0.0, is_last: bool = False) -> list[tuple[Share, SliceAsk]]:
        """What there is to tell and to ask now, see `Share.ask`; shares that nobody uses are forgotten."""
        for idle in [name for name, share in self._shares.items() if share.is_idle(now_s)]:
            del self._shares[idle]
        talking = [share for share in self._shares.values() if share.wants_word()]
        return [(share, share.ask(now_s, late_s=late_s, is_last=is_last)) for share in talking]

    def __len__(self) -> int:
        return len(self._shares)


Need = tuple[Share, int]
"""It is a share, and the units that a request would use of it."""


def short(needs: Sequence[Need], now_s: float) -> list[Need]:
    """The needs that cannot be met from what is there."""
    return [(share, units) for share, units in needs if not share.has(units, now_s)]
