"""Limits as buckets: what one of them counts, how long, for whom, and what may be given of it.

Rates are counted over any sixty seconds, and not by the minute of a clock, so that nobody gets twice the limit around
the turn of a minute. Budgets are counted by the day and the month, in UTC. What is reserved counts as spent at the
moment of its admission; what was not needed is given back to that moment.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final

from amalgam.domain.scopes import BASE, Scopes
from amalgam.domain.tenant import Key, Limits, Tenant

MINUTE_S: Final = 60
LEASE_S: Final = 10
"""What a front end holds of a limit on requests at a time is free again after so long without a word from it."""
FRESH_S: Final = 2.0
"""What a front end was given and has not used may be used for so long."""
SKEW_S: Final = 1
"""The clock of a front end may be so far behind that of another."""
KEPT_S: Final = MINUTE_S + 1 + int(FRESH_S) + SKEW_S
"""A use counts for so long, by the second that it was given out in: never less than a minute from the use itself."""
BUDGET_KEPT_S: Final = 40 * 86_400
"""Rows of budgets stay for so long after their last change: longer than a month."""


class Measure(StrEnum):
    """What is limited, by the name of the field of `Limits`."""

    REQUESTS = "requests_per_minute"
    TOKENS = "tokens_per_minute"
    CONCURRENT = "concurrent_requests"
    TOKENS_DAY = "tokens_per_day"
    TOKENS_MONTH = "tokens_per_month"
    BLENDS = "blends_per_minute"

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are counted, and not requests or blends."""
        return self in _OF_TOKENS

    @property
    def is_rate(self) -> bool:
        """Whether uses are forgotten after a minute."""
        return self in _RATES

    @property
    def is_budget(self) -> bool:
        """Whether uses are forgotten when a day or a month is over."""
        return self in _BUDGETS

    @property
    def words(self) -> str:
        """The words that errors have for it."""
        return self.value.replace("_", " ")


_OF_TOKENS: Final = frozenset({Measure.TOKENS, Measure.TOKENS_DAY, Measure.TOKENS_MONTH})
_RATES: Final = frozenset({Measure.REQUESTS, Measure.TOKENS, Measure.BLENDS})
_BUDGETS: Final = frozenset({Measure.TOKENS_DAY, Measure.TOKENS_MONTH})


@dataclass(frozen=True, slots=True)
class Bucket:
    """One limit, as it is counted.

    Attributes:
        id: the same at every front end; of a budget, another for each day or month.
        measure: what it counts.
        limit: as much may be used.
        owner: whose limit it is, as errors name it.
        ends_at: of a budget, when it begins anew.
    """

    id: str
    measure: Measure
    limit: int
    owner: str
    ends_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Payer:
    """Who is counted and charged.

    Attributes:
        tenant: whose key it is.
        key: None on a server without keys, and for the keys of the environment.
    """

    tenant: Tenant
    key: Key | None = None

    @property
    def key_id(self) -> str:
        """The id of the key; empty without one."""
        return "" if self.key is None else self.key.id


def patterns_met(tenant: Tenant, names: Iterable[str]) -> tuple[int, ...]:
    """Which of the tenant's limits by name concern a request: their places in the list.

    Args:
        tenant: whose limits.
        names: of the alias, the exact versions and the base model (`BASE`) that may answer.
    """
    if not tenant.model_limits:
        return ()
    asked = tuple(names)
    return tuple(
        place
        for place, entry in enumerate(tenant.model_limits)
        if any(_concerns(_scopes(entry.pattern), name) for name in asked)
    )


@lru_cache(maxsize=4096)
def _scopes(pattern: str) -> Scopes:
    return Scopes(models=(pattern,))


def _concerns(scopes: Scopes, name: str) -> bool:
    return scopes.base if name == BASE else scopes.asked(name)


def buckets_of(payer: Payer, met: Sequence[int], now: datetime) -> tuple[Bucket, ...]:
    """Every limit that a request of ``payer`` has to pass.

    Args:
        payer: who asks.
        met: from `patterns_met`.
        now: decides which day and month are counted.
    """
    tenant, key = payer.tenant, payer.key
    found = [*_buckets(tenant.limits, f"tenant:{tenant.id}", f"The tenant {tenant.id!r}", now)]
    if key is not None:
        found += _buckets(key.limits, f"key:{key.id}", f"The key {key.prefix}", now)
    for place in met:
        entry = tenant.model_limits[place]
        owner = f"The tenant {tenant.id!r}, on models {entry.pattern!r},"
        found += _buckets(entry.limits, f"names:{tenant.id}:{entry.pattern}", owner, now)
    # A pattern that stands there twice has the smaller limit.
    by_id = {bucket.id: bucket for bucket in sorted(found, key=lambda bucket: -bucket.limit)}
    return tuple(by_id[bucket.id] for bucket in dict.fromkeys(found) if by_id[bucket.id] is bucket)


def _buckets(limits: Limits, whose: str, owner: str, now: datetime) -> Iterable[Bucket]:
    for measure in Measure:
        limit: int | None = getattr(limits, measure.value)
        if limit is None:
            continue
        period, ends_at = _period(measure, now)
        yield Bucket(f"{measure.value}:{period}{whose}", measure, limit, owner, ends_at)


def _period(measure: Measure, now: datetime) -> tuple[str, datetime | None]:
    """What tells one day or month from another in a bucket's id, and when it ends."""
    if not measure.is_budget:
        return "", None
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if measure is Measure.TOKENS_DAY:
        return f"{day:%Y-%m-%d}:", day + timedelta(days=1)
    first = day.replace(day=1)
    return f"{first:%Y-%m}:", (first + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True, slots=True)
class SliceAsk:
    """What a front end says of one bucket, and what it wants of it.

    Attributes:
        bucket: its id.
        limit: as much may be used by all together.
        mine: what this front end has used and keeps, as far as it still counts.
        want: what it would have beside that.
        slot: the second that new units are counted by.
        base: what of ``mine`` is counted by that second.
        used: what was used by other seconds, where that has changed since it was told.
        kept_s: how long after its second a row counts.
    """

    bucket: str
    limit: int
    mine: int
    want: int
    slot: int
    base: int
    used: Mapping[int, int]
    kept_s: int

    def granted(self, others: int) -> int:
        """What may be given where other front ends have used and hold ``others``."""
        return max(0, min(self.want, self.limit - others - self.mine))

    def until_s(self, slot: int, now_s: int) -> int:
        """When a row stops counting. Rows without a second count from now on."""
        return (slot or now_s) + self.kept_s


@dataclass(frozen=True, slots=True)
class Slice:
    """What a front end was given of one bucket.

    Attributes:
        granted: units that it may use.
        others: what the other front ends have used and hold.
        by_slot: the same by second, where less was given than wanted.
    """

    granted: int
    others: int
    by_slot: Mapping[int, int]
