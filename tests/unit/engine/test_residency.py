"""Residency: never evict what is held, load once, wait for a place, free what nobody holds."""

import asyncio
from pathlib import Path

import pytest

from amalgam.engine.protocol import LoadableVersion
from amalgam.engine.residency import Residency
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady, SlotsBusy, StillLoading
from tests.support.waiting import until


def version(number: int) -> LoadableVersion:
    return LoadableVersion(f"a@{number}", number, Path(f"/nowhere/{number}"))


class Table:
    """Stands for the engine's own table of adapters."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.inside: set[int] = set()
        self.loads: list[int] = []
        self.refuse: set[int] = set()
        self.peak = self.begun = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._delay_s = delay_s

    async def load(self, target: LoadableVersion) -> None:
        self.begun += 1
        await asyncio.sleep(self._delay_s)
        await self.gate.wait()
        if target.lora_id in self.refuse:
            raise EngineLoadFailed(target.engine_name)
        self.loads.append(target.lora_id)
        self.inside.add(target.lora_id)
        self.peak = max(self.peak, len(self.inside))

    async def free(self, target: LoadableVersion) -> None:
        await asyncio.sleep(0)
        self.inside.remove(target.lora_id)


def residency(table: Table, capacity: int = 2, timeout_s: float = 1.0) -> Residency:
    return Residency(capacity, table.load, table.free, timeout_s)


async def test_concurrent_first_uses_load_once() -> None:
    table = Table(delay_s=0.01)
    kept = residency(table)

    async def use() -> None:
        async with kept.hold(version(1)):
            assert 1 in table.inside

    await asyncio.gather(*(use() for _ in range(20)))
    assert table.loads == [1]
    assert kept.held == 0


async def test_least_recently_used_goes_first_and_a_held_one_never() -> None:
    table = Table()
    kept = residency(table)
    async with kept.hold(version(1)):
        async with kept.hold(version(2)):
            pass
        async with kept.hold(version(3)):
            assert table.inside == {1, 3}
    assert kept.evictions == 1


async def test_a_full_engine_waits_for_a_place_and_then_refuses() -> None:
    table = Table()
    kept = residency(table, capacity=1, timeout_s=0.05)
    async with kept.hold(version(1)):
        with pytest.raises(SlotsBusy):
            async with kept.hold(version(2)):
                pytest.fail("there was no place")
    async with kept.hold(version(2)):
        assert table.inside == {2}


async def test_a_waiting_request_gets_the_place_that_comes_free() -> None:
    table = Table()
    kept = residency(table, capacity=1, timeout_s=5)
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def first() -> None:
        async with kept.hold(version(1)):
            entered.set()
            await leave.wait()

    async def second() -> None:
        async with kept.hold(version(2)):
            assert table.inside == {2}

    holder = asyncio.create_task(first())
    await entered.wait()
    waiter = asyncio.create_task(second())
    await asyncio.sleep(0.01)
    assert not waiter.done()
    leave.set()
    await asyncio.gather(holder, waiter)


async def test_many_versions_on_few_places_never_exceed_the_capacity() -> None:
    table = Table(delay_s=0.001)
    kept = residency(table, capacity=4, timeout_s=30)

    async def use(number: int) -> None:
        async with kept.hold(version(number)):
            assert number in table.inside
            await asyncio.sleep(0.001)
            assert number in table.inside

    await asyncio.gather(*(use(n % 24 + 1) for n in range(240)))
    assert table.peak <= 4
    assert kept.held == 0
    assert {r.lora_id for r in kept.residents()} == table.inside


async def test_a_refused_load_reaches_every_waiter_and_leaves_nothing() -> None:
    table = Table(delay_s=0.01)
    table.refuse = {1}
    kept = residency(table)

    async def use() -> None:
        async with kept.hold(version(1)):
            pytest.fail("it was refused")

    outcomes = await asyncio.gather(*(use() for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineLoadFailed] * 5
    assert kept.residents() == ()
    table.refuse = set()
    async with kept.hold(version(1)):
        assert table.inside == {1}


async def test_a_caller_that_leaves_during_the_load_does_not_take_it_from_the_others() -> None:
    table = Table()
    table.gate.clear()
    kept = residency(table)

    async def use() -> None:
        async with kept.hold(version(1)):
            assert 1 in table.inside

    first, second = asyncio.create_task(use()), asyncio.create_task(use())
    await until(lambda: table.begun and kept.held == 2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    table.gate.set()
    await second
    assert table.loads == [1]
    assert kept.held == 0


async def test_unload_waits_for_the_last_holder() -> None:
    table = Table()
    kept = residency(table)
    leave = asyncio.Event()

    async def use() -> None:
        async with kept.hold(version(1)):
            await leave.wait()

    holder = asyncio.create_task(use())
    await until(lambda: kept.held)
    unloading = asyncio.create_task(kept.unload(1))
    await asyncio.sleep(0.01)
    assert table.inside == {1}
    leave.set()
    assert await unloading is True
    await holder
    assert table.inside == set()
    assert await kept.unload(1) is False


async def test_a_pinned_version_stays() -> None:
    table = Table()
    kept = residency(table, capacity=2)
    async with kept.hold(version(1)):
        assert kept.pin(1, pinned=True)
    for number in (2, 3, 4):
        async with kept.hold(version(number)):
            assert 1 in table.inside
    assert [v.lora_id for v in kept.pinned()] == [1]
    assert kept.pin(99, pinned=True) is False


async def test_a_load_that_the_lost_engine_fails_leaves_the_new_engines_load_alone() -> None:
    lost = asyncio.Event()
    loads: list[int] = []

    async def load(target: LoadableVersion) -> None:
        loads.append(target.lora_id)
        if len(loads) == 1:
            await lost.wait()
            raise EngineNotReady("restarting")

    async def free(target: LoadableVersion) -> None:
        pytest.fail(f"{target.engine_name} was freed")

    kept = Residency(2, load, free, 1.0)

    async def use() -> None:
        async with kept.hold(version(1)):
            return

    waiting = asyncio.create_task(use())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    kept.forget_all()
    await use()
    lost.set()
    with pytest.raises(EngineNotReady):
        await waiting
    assert [resident.engine_name for resident in kept.residents()] == ["a@1"]
    await use()
    assert loads == [1, 1]


async def test_a_load_that_takes_longer_than_the_limit_is_not_waited_for_and_goes_on() -> None:
    table = Table(delay_s=0.3)
    kept = residency(table, capacity=1, timeout_s=0.05)
    for _ in range(2):
        with pytest.raises(StillLoading):
            async with kept.hold(version(1)):
                pytest.fail("it is not there yet")
    assert kept.held == 0
    async with asyncio.timeout(10):
        while not kept.residents():
            await asyncio.sleep(0.01)
    async with kept.hold(version(1)):
        assert table.inside == {1}
