"""Places of keys in the batch: equal ones, none for nothing, and some kept for others."""

import asyncio

import pytest

from amalgam.errors.overload import AdapterOverShare, DeadlineNotMet
from amalgam.services.fair_queue import MAX_DEBT_S, Places
from tests.unit.services.fair_queue_driver import BASE, LONG_S, driven, settled


async def test_a_light_key_waits_for_one_place_and_not_for_all_requests_of_a_heavy_one() -> None:
    async with driven(places=Places(4, 4)) as driver:
        for _ in range(50):
            await driver.ask(BASE, of="heavy")
        await driver.ask(BASE, of="light")
        assert driver.running == [f"heavy:{BASE}"] * 4
        await driver.end(f"heavy:{BASE}")
        assert driver.begun[-1] == f"light:{BASE}"


@pytest.mark.parametrize("name", [BASE, "a"])
async def test_what_is_kept_for_others_a_flooding_key_never_gets(name: str) -> None:
    async with driven(places=Places(8, 7)) as driver:
        for _ in range(20):
            await driver.ask(name, of="heavy")
        assert len(driver.running) == 7
        await driver.ask(name, of="light")
        assert driver.begun[-1] == f"light:{name}"


async def test_one_key_alone_gets_the_whole_batch_and_not_more() -> None:
    async with driven(places=Places(4, 4)) as driver:
        for _ in range(10):
            await driver.ask(BASE)
        assert len(driver.running) == 4
        for began in range(5, 11):
            await driver.end(BASE)
            assert len(driver.running) == 4
            assert len(driver.begun) == began


async def test_keys_that_flood_alike_hold_equal_places_whatever_they_ask_for() -> None:
    async with driven(slots=2, quantum=4, places=Places(6, 6)) as driver:
        for _ in range(30):
            await driver.ask(BASE, of="one")
        for name in "ab" * 15:
            await driver.ask(name, of="two")
        for _ in range(12):
            driver.now_s += 0.1
            await driver.end(next(name for name in driver.running if driver.ends.get(name)))
        held = [sum(name.startswith(key) for name in driver.running) for key in ("one", "two")]
        assert held == [3, 3]


async def test_a_key_with_ten_adapters_gets_no_ten_turns() -> None:
    async with driven(slots=1, quantum=1) as driver:
        for name in "abcdefghij":
            await driver.ask(name, of="many")
        for _ in range(3):
            await driver.ask("z", of="few")
        for _ in range(7):
            driver.now_s += LONG_S
            await driver.end(driver.running[0])
        assert [name[0] for name in driver.begun[1:7]].count("f") >= 3


async def test_a_key_that_was_away_saves_nothing_and_a_debt_has_an_end() -> None:
    async with driven(places=Places(1, 1)) as driver:
        await driver.ask(BASE, of="long")
        await driver.ask(BASE, of="short")
        await driver.ask(BASE, of="long")
        # An endless answer, and then short ones of another key: the long one's next turn comes within the debt.
        driver.now_s = 10_000.0
        await driver.end(f"long:{BASE}")
        waits = 0
        while f"long:{BASE}" not in driver.running:
            waits += 1
            await driver.ask(BASE, of="short")
            driver.now_s += 1.0
            await driver.end(f"short:{BASE}")
        assert 1 < waits <= MAX_DEBT_S + 2
        # One that comes now begins level with the others, and not with all that it did not use.
        for name in ("new", "short") * 10:
            await driver.ask(BASE, of=name)
        await driver.end(f"long:{BASE}")
        for _ in range(9):
            driver.now_s += 1.0
            await driver.end(driver.running[0])
        assert [name.partition(":")[0] for name in driver.begun[-10:]].count("new") in (4, 5, 6)


async def test_a_request_of_many_sequences_does_not_take_what_is_kept_for_others() -> None:
    async with driven(places=Places(8, 6)) as driver:
        await driver.ask(BASE, of="light")
        for _ in range(3):
            await driver.ask(BASE, of="heavy", sequences=4)
        assert driver.running.count(f"heavy:{BASE}") == 1
        await driver.ask(BASE, of="light")
        assert driver.running.count(f"light:{BASE}") == 2
    # Nobody else is there: nothing stays empty for it.
    async with driven(places=Places(8, 6)) as driver:
        for _ in range(3):
            await driver.ask(BASE, of="heavy", sequences=4)
        assert len(driver.running) == 2


async def test_more_sequences_than_the_batch_has_run_all_the_same() -> None:
    async with driven(places=Places(4, 3)) as driver:
        await driver.ask(BASE, of="heavy", sequences=64)
        await driver.ask(BASE, of="light")
        assert driver.running == [f"heavy:{BASE}"]
        await driver.end(f"heavy:{BASE}")
        assert driver.running == [f"light:{BASE}"]


async def test_a_larger_batch_begins_what_waits() -> None:
    async with driven(places=Places(1, 1)) as driver:
        for _ in range(3):
            await driver.ask(BASE)
        driver.queue.resize(Places(3, 3))
        await settled()
        assert len(driver.running) == 3


async def test_a_wait_that_is_known_to_be_too_long_is_refused_at_once() -> None:
    async with driven(places=Places(1, 1)) as driver:
        for _ in range(5):
            await driver.ask(BASE)
        for _ in range(2):
            driver.now_s += 2.0
            await driver.end(BASE)
        # Two wait, one ends every two seconds.
        with pytest.raises(DeadlineNotMet, match="shorter than the wait"):
            async with driver.queue.turn(None, within_s=3.0):
                raise AssertionError
        assert driver.queue.waiting == 2
        assert 'amalgam_requests_refused_total{reason="deadline"} 1.0' in driver.page()
        hopeful = asyncio.create_task(asyncio.wait_for(driver.queue.turn(None, within_s=60.0).__aenter__(), 0.01))
        with pytest.raises(TimeoutError):
            await hopeful
        assert driver.queue.waiting == 2


async def test_an_adapter_that_everybody_asks_leaves_places_in_the_line_to_others() -> None:
    async with driven(slots=2, quantum=4, places=Places(2, 2, waiting_per_adapter=3)) as driver:
        for of in ("one", "two", "one", "two", "one"):
            await driver.ask("a", of=of)
        assert (len(driver.running), len(driver.waiting)) == (2, 3)
        with pytest.raises(AdapterOverShare, match="3 requests wait for a@1") as refused:
            await (await driver.ask("a", of="three"))
        assert refused.value.status == 503
        assert refused.value.retry_after_s is not None
        for name in ("b", BASE, BASE, BASE, BASE):
            await driver.ask(name, of="three")
        assert len(driver.waiting) == 8
        assert 'amalgam_requests_refused_total{reason="adapter_share"} 1.0' in driver.page()
