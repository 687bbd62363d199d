"""Turns of adapters: none needed, none lost, none for ever."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from amalgam.errors.engine import NoTurn
from amalgam.errors.requests import ClientLeft
from amalgam.services.fair_queue import PATIENCE_S, TURN_S, Places
from tests.unit.services.fair_queue_driver import BASE, LONG_S, driven, settled, version


async def test_up_to_as_many_adapters_as_slots_nobody_ever_waits() -> None:
    async with driven(slots=2, quantum=1) as driver:
        for round_ in range(20):
            driver.now_s = round_ * LONG_S
            await driver.ask("ab"[round_ % 2])
        assert len(driver.running) == 20
        assert "amalgam_adapter_turn_wait_seconds_count" not in driver.page()


async def test_a_free_slot_goes_to_the_adapter_that_has_waited_longest_with_all_its_requests() -> None:
    async with driven() as driver:
        for name in "abcdcd":
            await driver.ask(name)
        assert driver.running == ["a", "b"]
        await driver.end("b")
        assert driver.running == ["a", "c", "c"]
        await driver.end("a")
        assert sorted(driver.running) == ["c", "c", "d", "d"]


@pytest.mark.parametrize("slots", [1, 2, 4])
async def test_a_cold_adapter_is_served_however_the_hot_ones_are_asked(slots: int) -> None:
    hot = "abdefg"[:slots]
    async with driven(slots=slots, quantum=4) as driver:
        for name in hot * 2:
            await driver.ask(name)
        driver.now_s = LONG_S
        await driver.ask("z")
        # Each request that ends is followed by one of the same adapter, and two of each overlap: no slot is ever free.
        for step in range(40):
            driver.now_s += 0.5
            name = hot[step % slots]
            await driver.ask(name)
            await driver.end(name) if driver.ends.get(name) else None
            if "z" in driver.running:
                break
        # The patience, then one ending of each request of one adapter.
        assert step <= PATIENCE_S / 0.5 + 3 * slots
        # One adapter gave way; the others were not held up for it.
        assert len(set(driver.running)) == slots
        assert len(set(driver.waiting)) == 1


async def test_the_same_flood_without_a_cold_adapter_closes_nothing() -> None:
    # What the test above needs to mean something: turns do not close by themselves, only for who waits.
    async with driven(slots=2, quantum=4) as driver:
        for name in "abab":
            await driver.ask(name)
        for step in range(200):
            driver.now_s += 0.5
            await driver.ask("ab"[step % 2])
            assert driver.queue.waiting == 0
            await driver.end("ab"[step % 2])


@pytest.mark.parametrize("waited_s", [0.0, PATIENCE_S - 0.1])
async def test_a_turn_does_not_close_before_somebody_has_waited_a_while(waited_s: float) -> None:
    async with driven(slots=2, quantum=1) as driver:
        for name in "ab":
            await driver.ask(name)
        driver.now_s = LONG_S
        await driver.ask("z")
        driver.now_s += waited_s
        await driver.ask("a")
        assert driver.running == ["a", "b", "a"]
        driver.now_s = LONG_S + PATIENCE_S
        await driver.ask("a")
        await driver.ask("b")
        # One turn closes for one who waits, the oldest; the other goes on.
        assert driver.running == ["a", "b", "a", "b"]


async def test_a_turn_closes_for_who_has_waited_longest_whoever_came_since() -> None:
    async with driven(slots=1, quantum=1) as driver:
        await driver.ask("a")
        await driver.ask("b")
        driver.now_s = LONG_S
        await driver.ask("c")
        await driver.ask("a")
        assert driver.running == ["a"]


async def test_a_turn_does_not_close_while_a_slot_is_free() -> None:
    async with driven(slots=2, quantum=1, places=Places(3, 3)) as driver:
        for name, key in (("a", "one"), (BASE, "two"), (BASE, "two"), ("b", "two"), ("a", "one")):
            await driver.ask(name, of=key)
        driver.now_s = LONG_S
        await driver.end(f"two:{BASE}")
        # Both keys have one place, and this one has used less; the adapter of the other waits for no slot.
        assert driver.begun[-1] == "one:a"


async def test_a_turn_does_not_close_for_who_has_no_place_anyway() -> None:
    async with driven(slots=1, quantum=1, places=Places(8, 2)) as driver:
        for name, key in ((BASE, "one"), (BASE, "one"), ("b", "one"), ("a", "two")):
            await driver.ask(name, of=key)
        driver.now_s = LONG_S
        await driver.ask("a", of="two")
        assert driver.running.count("two:a") == 2


async def test_a_turn_does_not_close_for_the_base_model() -> None:
    async with driven(slots=1, quantum=1, places=Places(3, 3)) as driver:
        for name, key in (("a", "one"), ("a", "two"), ("a", "four"), (BASE, "three"), (BASE, "three"), ("a", "one")):
            await driver.ask(name, of=key)
        driver.now_s = LONG_S
        await driver.end("two:a")
        assert driver.begun[-1] == f"three:{BASE}"
        await driver.end("four:a")
        assert driver.begun[-1] == "one:a"


async def test_with_more_flooding_adapters_than_slots_all_take_turns_alike() -> None:
    async with driven(slots=2, quantum=3) as driver:
        for name in "abcde" * 6:
            await driver.ask(name)
        for _ in range(400):
            driver.now_s += 1.0
            name = driver.running[0]
            await driver.end(name)
            await driver.ask(name)
        counts = [driver.begun.count(name) for name in "abcde"]
        assert min(counts) > 0.7 * max(counts)


async def test_a_turn_that_is_not_used_up_does_not_close_and_begins_no_more_than_its_quantum() -> None:
    async with driven(slots=1, quantum=3) as driver:
        await driver.ask("a")
        await driver.ask("b")
        driver.now_s = TURN_S - 0.5
        # The other one has waited long enough by now; this turn may still begin what is left of its quantum.
        for _ in range(4):
            await driver.ask("a")
        assert driver.running == ["a"] * 3
        for _ in range(3):
            await driver.end("a")
        assert driver.running == ["b"]


async def test_a_turn_that_lasts_closes_even_with_its_quantum_left() -> None:
    async with driven(slots=1, quantum=100) as driver:
        await driver.ask("a")
        await driver.ask("b")
        driver.now_s = TURN_S
        await driver.ask("a")
        assert driver.running == ["a"]


async def test_a_closed_turn_opens_again_when_nobody_else_waits() -> None:
    async with driven(slots=1, quantum=1) as driver:
        await driver.ask("a")
        other = await driver.ask("b")
        driver.now_s = LONG_S
        await driver.ask("a")
        assert driver.running == ["a"]
        other.cancel()
        await settled()
        assert driver.running == ["a", "a"]


async def test_one_long_answer_does_not_hold_up_those_who_wait_for_any_slot() -> None:
    async with driven(slots=2, quantum=1) as driver:
        for name in "abb":
            await driver.ask(name)
        await driver.ask("c")
        # The oldest turn closes first and has an endless answer; a while later the next closes too.
        for _ in range(int(2 * PATIENCE_S + TURN_S) + 2):
            driver.now_s += 1.0
            await driver.ask("b")
            await driver.end("b") if driver.ends["b"] else None
            if "c" in driver.running:
                break
        assert driver.running.count("a") == 1
        assert "c" in driver.running


async def test_a_request_that_is_cancelled_while_it_waits_leaves_nothing_behind() -> None:
    async with driven(slots=1) as driver:
        await driver.ask("a")
        task = await driver.ask("b")
        task.cancel()
        await settled()
        assert task.cancelled()
        assert driver.queue.waiting == 0
        await driver.end("a")


async def test_a_turn_that_comes_in_the_moment_of_a_cancellation_is_given_back() -> None:
    kept: list[bool] = []
    for steps in range(8):
        async with driven(slots=1) as driver:
            await driver.ask("a")
            task = await driver.ask("b")
            driver.ends["a"][0].set()
            for _ in range(steps):
                await asyncio.sleep(0)
            kept.append(driver.running == ["b"])
            task.cancel()
            await settled()
            assert task.cancelled()
    # The first of these were cancelled before the turn came, the last in it, and those between in the moment itself.
    assert kept == sorted(kept)
    assert set(kept) == {False, True}


async def test_an_error_in_the_request_frees_its_turn() -> None:
    async with driven(slots=1) as driver:

        async def fails() -> None:
            async with driver.queue.turn(version("a")):
                await driver.ask("b")
                assert driver.running == []
                raise RuntimeError("engine")

        with pytest.raises(RuntimeError, match="engine"):
            await fails()
        await settled()
        assert driver.running == ["b"]


async def test_a_client_that_leaves_while_it_waits_ends_its_wait_and_only_its_own() -> None:
    left = asyncio.Event()
    async with driven(slots=1) as driver:
        await driver.ask("a")
        goes = await driver.ask("b", left.wait)
        stays = await driver.ask("b")
        left.set()
        await settled()
        assert isinstance(goes.exception(), ClientLeft)
        await driver.end("a")
        assert driver.running == ["b"]
        assert not stays.done()


async def test_a_client_is_not_watched_where_nobody_waits() -> None:
    async def asked() -> None:
        raise AssertionError

    async with driven(slots=1) as driver:
        await driver.ask("a", asked)
        assert driver.running == ["a"]


async def test_the_wait_is_bounded_and_told() -> None:
    async with driven(slots=1, wait_s=0.01) as driver:
        await driver.ask("a")
        with pytest.raises(NoTurn, match="b@1 got no turn"):
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(driver.queue.turn(version("b")))
        assert driver.queue.waiting == 0


async def test_waits_are_counted_while_they_last_and_timed_when_they_end() -> None:
    async with driven(slots=1) as driver:
        await driver.ask("a")
        await driver.ask("b")
        assert "amalgam_adapter_turn_waiting_requests 1.0" in driver.page()
        driver.now_s = 3.0
        await driver.end("a")
        assert "amalgam_adapter_turn_wait_seconds_sum 3.0" in driver.page()
        assert "amalgam_adapter_turn_wait_seconds_count 1" in driver.page()


async def test_what_runs_and_waits_is_told_by_adapter_the_longest_wait_first() -> None:
    async with driven(slots=2) as driver:
        for name in "aab":
            await driver.ask(name)
        driver.now_s = 1.0
        await driver.ask("c")
        driver.now_s = 3.0
        await driver.ask("d")
        lines = {line.name[:1]: (line.running, line.waiting, line.longest_wait_s) for line in driver.queue.by_adapter()}
        assert list(lines.items()) == [("c", (0, 1, 2.0)), ("a", (2, 0, 0.0)), ("b", (1, 0, 0.0)), ("d", (0, 1, 0.0))]
    assert driver.queue.by_adapter() == []
