"""Turns: none needed, none lost, none for ever."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from amalgam.engine.protocol import LoadableVersion
from amalgam.errors.engine import NoTurn
from amalgam.errors.requests import ClientLeft
from amalgam.services.fair_queue import PATIENCE_S, TURN_S, FairQueue
from amalgam.telemetry.metrics import Metrics, ServerState

LONG_S = TURN_S + PATIENCE_S


def version(name: str) -> LoadableVersion:
    return LoadableVersion(f"{name}@1", ord(name), Path("/nowhere") / name)


class Rig:
    """A queue under a clock that stands still until it is told, and who runs."""

    def __init__(self, slots: int = 2, quantum: int = 4, wait_s: float = 60.0) -> None:
        self.now_s = 0.0
        self.metrics = Metrics()
        self.queue = FairQueue(slots, quantum, wait_s, clock=lambda: self.now_s, metrics=self.metrics)
        self.running: list[str] = []
        self.begun: list[str] = []
        self.ends: dict[str, list[asyncio.Event]] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, name: str, gone: Callable[[], Awaitable[object]] | None = None) -> asyncio.Task[None]:
        """A request, as far as it comes."""
        task = asyncio.create_task(self._request(name, gone))
        self.tasks.append(task)
        await settled()
        return task

    async def _request(self, name: str, gone: Callable[[], Awaitable[object]] | None) -> None:
        async with self.queue.turn(version(name), gone):
            assert len({*self.running, name}) <= self.queue._slots
            self.running.append(name)
            self.begun.append(name)
            end = asyncio.Event()
            self.ends.setdefault(name, []).append(end)
            try:
                await end.wait()
            finally:
                self.running.remove(name)

    async def end(self, name: str) -> None:
        """The oldest running request of ``name`` has its answer."""
        self.ends[name].pop(0).set()
        await settled()

    def empty(self) -> bool:
        return not self.queue._turns and not self.queue._lines

    def page(self) -> str:
        return self.metrics.scrape(ServerState()).text().decode()


async def settled() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


@asynccontextmanager
async def opened(**how: float) -> AsyncIterator[Rig]:
    rig = Rig(**how)  # type: ignore[arg-type]
    try:
        yield rig
    finally:
        for task in rig.tasks:
            task.cancel()
        await asyncio.gather(*rig.tasks, return_exceptions=True)
    assert rig.empty()
    assert "amalgam_adapter_turn_waiting_requests 0.0" in rig.page()


async def test_up_to_as_many_adapters_as_slots_nobody_ever_waits() -> None:
    async with opened(slots=2, quantum=1) as rig:
        for round_ in range(20):
            rig.now_s = round_ * LONG_S
            await rig.ask("ab"[round_ % 2])
        assert len(rig.running) == 20
        assert "amalgam_adapter_turn_wait_seconds_count" not in rig.page()


async def test_a_free_slot_goes_to_the_adapter_that_has_waited_longest_with_all_its_requests() -> None:
    async with opened() as rig:
        for name in "abcdcd":
            await rig.ask(name)
        assert rig.running == ["a", "b"]
        await rig.end("b")
        assert rig.running == ["a", "c", "c"]
        await rig.end("a")
        assert sorted(rig.running) == ["c", "c", "d", "d"]


@pytest.mark.parametrize("slots", [1, 2, 4])
async def test_a_cold_adapter_is_served_however_the_hot_ones_are_asked(slots: int) -> None:
    hot = "abdefg"[:slots]
    async with opened(slots=slots, quantum=4) as rig:
        for name in hot * 2:
            await rig.ask(name)
        rig.now_s = LONG_S
        await rig.ask("z")
        # Each request that ends is followed by one of the same adapter, and two of each overlap: no slot is ever free.
        for step in range(40):
            rig.now_s += 0.5
            name = hot[step % slots]
            await rig.ask(name)
            await rig.end(name) if rig.ends.get(name) else None
            if "z" in rig.running:
                break
        # The patience, then one ending of each request of one adapter.
        assert step <= PATIENCE_S / 0.5 + 3 * slots
        # One adapter gave way; the others were not held up for it.
        assert len(set(rig.running)) == slots
        assert len(rig.queue._lines) == 1


async def test_plain_first_come_first_served_would_let_the_cold_adapter_wait_for_ever() -> None:
    # The same flood, where nothing closes: what the queue is there for.
    async with opened(slots=2, quantum=4) as rig:
        rig.queue._to_close = lambda now_s: 0  # type: ignore[method-assign]
        for name in "abab":
            await rig.ask(name)
        rig.now_s = LONG_S
        await rig.ask("z")
        for step in range(200):
            rig.now_s += 0.5
            await rig.ask("ab"[step % 2])
            await rig.end("ab"[step % 2])
        assert "z" not in rig.begun


async def test_with_more_flooding_adapters_than_slots_all_take_turns_alike() -> None:
    async with opened(slots=2, quantum=3) as rig:
        for name in "abcde" * 6:
            await rig.ask(name)
        for _ in range(400):
            rig.now_s += 1.0
            name = rig.running[0]
            await rig.end(name)
            await rig.ask(name)
        counts = [rig.begun.count(name) for name in "abcde"]
        assert min(counts) > 0.7 * max(counts)


async def test_a_turn_that_is_not_used_up_does_not_close_and_begins_no_more_than_its_quantum() -> None:
    async with opened(slots=1, quantum=3) as rig:
        await rig.ask("a")
        await rig.ask("b")
        rig.now_s = TURN_S - 0.5
        # The other one has waited long enough by now; this turn may still begin what is left of its quantum.
        for _ in range(4):
            await rig.ask("a")
        assert rig.running == ["a"] * 3
        for _ in range(3):
            await rig.end("a")
        assert rig.running == ["b"]


async def test_a_turn_that_lasts_closes_even_with_its_quantum_left() -> None:
    async with opened(slots=1, quantum=100) as rig:
        await rig.ask("a")
        await rig.ask("b")
        rig.now_s = TURN_S
        await rig.ask("a")
        assert rig.running == ["a"]


async def test_a_closed_turn_opens_again_when_nobody_else_waits() -> None:
    async with opened(slots=1, quantum=1) as rig:
        await rig.ask("a")
        other = await rig.ask("b")
        rig.now_s = LONG_S
        await rig.ask("a")
        assert rig.running == ["a"]
        other.cancel()
        await settled()
        assert rig.running == ["a", "a"]


async def test_one_long_answer_does_not_hold_up_those_who_wait_for_any_slot() -> None:
    async with opened(slots=2, quantum=1) as rig:
        for name in "abb":
            await rig.ask(name)
        await rig.ask("c")
        # The oldest turn closes first and has an endless answer; a while later the next closes too.
        for _ in range(int(2 * PATIENCE_S + TURN_S) + 2):
            rig.now_s += 1.0
            await rig.ask("b")
            await rig.end("b") if rig.ends["b"] else None
            if "c" in rig.running:
                break
        assert rig.running.count("a") == 1
        assert "c" in rig.running


async def test_a_request_that_is_cancelled_while_it_waits_leaves_nothing_behind() -> None:
    async with opened(slots=1) as rig:
        await rig.ask("a")
        task = await rig.ask("b")
        task.cancel()
        await settled()
        assert task.cancelled()
        assert not rig.queue._lines
        await rig.end("a")
        assert rig.empty()


async def test_a_turn_that_comes_in_the_moment_of_a_cancellation_is_given_back() -> None:
    async with opened(slots=1) as rig:
        await rig.ask("a")
        task = await rig.ask("b")
        rig.ends["a"][0].set()
        for _ in range(8):
            await asyncio.sleep(0)
            if ord("b") in rig.queue._turns:
                task.cancel()
                break
        await settled()
        assert task.cancelled()
        assert rig.empty()


async def test_an_error_in_the_request_frees_its_turn() -> None:
    async with opened(slots=1) as rig:

        async def fails() -> None:
            async with rig.queue.turn(version("a")):
                await rig.ask("b")
                assert rig.running == []
                raise RuntimeError("engine")

        with pytest.raises(RuntimeError, match="engine"):
            await fails()
        await settled()
        assert rig.running == ["b"]


async def test_a_client_that_leaves_while_it_waits_ends_its_wait_and_only_its_own() -> None:
    left = asyncio.Event()
    async with opened(slots=1) as rig:
        await rig.ask("a")
        goes = await rig.ask("b", left.wait)
        stays = await rig.ask("b")
        left.set()
        await settled()
        assert isinstance(goes.exception(), ClientLeft)
        await rig.end("a")
        assert rig.running == ["b"]
        assert not stays.done()


async def test_a_client_is_not_watched_where_nobody_waits() -> None:
    async def asked() -> None:
        raise AssertionError

    async with opened(slots=1) as rig:
        await rig.ask("a", asked)
        assert rig.running == ["a"]


async def test_the_wait_is_bounded_and_told() -> None:
    async with opened(slots=1, wait_s=0.01) as rig:
        await rig.ask("a")
        with pytest.raises(NoTurn, match="b@1 got no turn"):
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(rig.queue.turn(version("b")))
        assert not rig.queue._lines


async def test_waits_are_counted_while_they_last_and_timed_when_they_end() -> None:
    async with opened(slots=1) as rig:
        await rig.ask("a")
        await rig.ask("b")
        assert "amalgam_adapter_turn_waiting_requests 1.0" in rig.page()
        rig.now_s = 3.0
        await rig.end("a")
        assert "amalgam_adapter_turn_wait_seconds_sum 3.0" in rig.page()
        assert "amalgam_adapter_turn_wait_seconds_count 1" in rig.page()
