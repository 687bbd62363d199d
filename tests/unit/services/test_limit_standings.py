"""How limits stand, for a key that asks: with what other front ends used, and without using anything."""

from collections.abc import Callable

import pytest

from amalgam.domain.limits import Payer
from amalgam.errors.registry import RegistryUnavailable
from amalgam.services.limits import Limiter
from tests.unit.services.limit_fronts import SlicesInMemory, key, tenant
from tests.unit.services.test_limits import Clocks, clocks, limiter, new_front, of_key, slices, spend

__all__ = ["clocks", "limiter", "new_front", "slices"]


async def test_how_limits_stand_counts_what_other_front_ends_used_and_hold(
    new_front: Callable[[str], Limiter], slices: SlicesInMemory, clocks: Clocks
) -> None:
    one, two = new_front("one"), new_front("two")
    payer = of_key(tokens_per_day=100, requests_per_minute=9)

    async def standings() -> dict[str, int]:
        return {bucket.measure.value: view.left for bucket, view in await one.standings(payer)}

    await spend(two, payer, 30)
    await two.beat()
    assert (await standings())["tokens_per_day"] < 70
    # Two questions within a second are one to the database.
    exchanges = slices.exchanges
    await standings()
    assert slices.exchanges == exchanges
    await two.beat()
    clocks.now_s += 2
    assert await standings() == {"tokens_per_day": 70, "requests_per_minute": 8}
    # Whoever only looks holds nothing back from the others.
    await spend(two, payer, 70)


async def test_how_limits_stand_is_not_known_while_the_database_is_away(
    limiter: Limiter, slices: SlicesInMemory
) -> None:
    assert await limiter.standings(Payer(tenant(), key())) == []
    slices.is_down = True
    with pytest.raises(RegistryUnavailable):
        await limiter.standings(of_key(tokens_per_day=100))
