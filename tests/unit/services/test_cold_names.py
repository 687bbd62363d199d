"""Whoever needs a name that is not in memory has the registry asked: one look at a time, for all who wait."""

import asyncio
from collections.abc import Sequence

import pytest

from amalgam.domain.catalog_rows import NameAnswers
from amalgam.errors.registry import RegistryUnavailable
from amalgam.services.cold_names import AWAY_S, MOST_AT_ONCE, ColdNames, Wanted


class Looks:
    """Remembers what was asked for; answers when the gate is open."""

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[str], Sequence[str]]] = []
        self.at_once = self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: Exception | None = None
        self.now = 50.0

    async def __call__(self, names: Sequence[str], recipes: Sequence[str]) -> NameAnswers:
        self.asked.append((names, recipes))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
        finally:
            self.at_once -= 1
        if self.fails is not None:
            raise self.fails
        return NameAnswers(len(self.asked), {}, {}, {})

    def clock(self) -> float:
        return self.now


async def test_a_crowd_is_asked_about_in_few_looks_one_after_the_other() -> None:
    looks = Looks()
    cold = ColdNames(looks)
    await asyncio.gather(*(cold(Wanted(f"n{number % 300}")) for number in range(900)))
    assert sorted(name for names, _ in looks.asked for name in names) == sorted(f"n{number}" for number in range(300))
    assert len(looks.asked) == -(-300 // MOST_AT_ONCE)
    assert looks.most_at_once == 1


async def test_recipes_are_asked_about_as_such() -> None:
    looks = Looks()
    cold = ColdNames(looks)
    await asyncio.gather(cold(Wanted("a")), cold(Wanted(recipe="r")))
    assert looks.asked == [(["a"], ["r"])]


async def test_a_look_that_began_before_the_question_does_not_count() -> None:
    """It may have read before the commit that the caller knows of."""
    looks = Looks()
    looks.gate.clear()
    cold = ColdNames(looks)
    first = asyncio.create_task(cold(Wanted("a")))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(cold(Wanted("a")))
    await asyncio.sleep(0.01)
    looks.gate.set()
    assert (await first).revision == 1
    assert (await second).revision == 2


async def test_who_leaves_takes_nothing_from_those_who_stay() -> None:
    looks = Looks()
    looks.gate.clear()
    cold = ColdNames(looks)
    leaving, staying = (asyncio.create_task(cold(Wanted("a"))) for _ in range(2))
    await asyncio.sleep(0.01)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    looks.gate.set()
    assert (await asyncio.wait_for(staying, 5)).revision == 1
    assert (await cold(Wanted("b"))).revision == 2


async def test_while_the_registry_is_away_nobody_waits_for_it_twice() -> None:
    looks = Looks()
    looks.fails = RegistryUnavailable("gone")
    cold = ColdNames(looks, clock=looks.clock)
    ended = await asyncio.gather(*(cold(Wanted(f"n{number}")) for number in range(5)), return_exceptions=True)
    assert [type(one) for one in ended] == [RegistryUnavailable] * 5
    with pytest.raises(RegistryUnavailable):
        await cold(Wanted("later"))
    assert len(looks.asked) == 1
    looks.now += AWAY_S
    looks.fails = None
    assert (await cold(Wanted("later"))).revision == 2


async def test_a_mistake_ends_those_who_wait_and_not_what_comes_later() -> None:
    looks = Looks()
    looks.fails = ZeroDivisionError("ours")
    cold = ColdNames(looks)
    waiting = [asyncio.create_task(cold(Wanted(f"n{number}"))) for number in range(MOST_AT_ONCE + 1)]
    _, left = await asyncio.wait(waiting, timeout=5)
    assert not left
    looks.fails = None
    assert (await cold(Wanted("b"))).found == {}
