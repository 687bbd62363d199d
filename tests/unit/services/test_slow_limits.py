"""Limits where the database takes its time: what it gives has to be usable when it comes, and still counts a minute."""

from collections.abc import Sequence

import pytest

from amalgam.domain.limits import KEPT_S, Slice, SliceAsk
from amalgam.errors.limits import RateLimited
from amalgam.errors.registry import RegistryUnavailable
from amalgam.services.limits import Limiter
from tests.unit.services.limit_fronts import SlicesInMemory
from tests.unit.services.test_limits import Clocks, clocks, limits_of, of_key, spend

__all__ = ["clocks"]


class SlowSlices(SlicesInMemory):
    """A database that takes its time."""

    clocks: Clocks
    takes_s: float = 0.0

    async def exchange(
        self, front: str, reached_s: float | None, asks: Sequence[SliceAsk]
    ) -> tuple[float, Sequence[Slice]]:
        answer = await super().exchange(front, reached_s, asks)
        self.clocks.now_s += self.takes_s
        return answer


@pytest.mark.parametrize("takes_s", [1.9, 2.5, 5.0, 7.0])
async def test_a_database_that_is_slow_refuses_nobody_who_has_something_left(clocks: Clocks, takes_s: float) -> None:
    slices = SlowSlices()
    slices.clocks, slices.takes_s = clocks, takes_s
    limiter, payer = Limiter(slices, "one", clocks, clocks.today), of_key(tokens_per_minute=1000)
    for _ in range(4):
        await spend(limiter, payer, 10)


async def test_what_a_slow_database_gives_is_counted_for_a_minute_from_its_use(clocks: Clocks) -> None:
    slices = SlowSlices()
    slices.clocks, slices.takes_s = clocks, 5.0
    slow, payer = Limiter(slices, "slow", clocks, clocks.today), of_key(tokens_per_minute=100)
    await slow.reserve(limits_of(slow, payer), 100)
    used_s, slices.takes_s = clocks.now_s, 0.0
    # It dies before it tells of the use. The other one knows the clock, by a limit of its own.
    other = Limiter(slices, "other", clocks, clocks.today)
    await spend(other, of_key(requests_per_minute=5), 1)
    clocks.now_s = used_s + 59.9
    with pytest.raises(RateLimited):
        await other.reserve(limits_of(other, payer), 1)
    clocks.now_s = used_s + KEPT_S + 5
    await other.reserve(limits_of(other, payer), 100)


async def test_a_database_that_is_too_slow_is_what_a_refusal_names(clocks: Clocks) -> None:
    slices = SlowSlices()
    slices.clocks, slices.takes_s = clocks, 9.0
    limiter, payer = Limiter(slices, "one", clocks, clocks.today), of_key(tokens_per_minute=1000)
    with pytest.raises(RegistryUnavailable, match="too long"):
        await limiter.reserve(limits_of(limiter, payer), 10)
