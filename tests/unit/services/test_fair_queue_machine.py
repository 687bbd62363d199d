"""The two-level queue under anything that may happen, in any order: bounds hold, nobody starves, nothing is left."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from amalgam.engine.protocol import LoadableVersion
from amalgam.errors.requests import ClientLeft
from amalgam.services.fair_queue import FairQueue, Places
from tests.unit.services.fair_queue_driver import assert_like_new

KEYS = st.sampled_from(["", "one", "two", "three", "acme/one", "acme/two", "beta/one", "beta/two"])
ADAPTERS = st.integers(0, 5)
"""0 is the base model."""
WEIGHTS = {"": 1.0, "acme": 3.0, "beta": 0.5}


@dataclass(eq=False)
class Asked:
    """One request and what became of it."""

    client: str
    adapter: int
    sequences: int
    begun: bool = False
    ended: bool = False
    end: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    @property
    def tenant(self) -> str:
        return self.client.partition("/")[0] if "/" in self.client else ""


class Turns(RuleBasedStateMachine):
    """Requests come, end, fail, are cancelled and leave; the clock goes on; the batch is resized."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now_s = 0.0
        self.all: list[Asked] = []

    @initialize(slots=st.integers(1, 3), quantum=st.integers(1, 3), total=st.integers(1, 6), kept=st.integers(0, 2))
    def begin(self, slots: int, quantum: int, total: int, kept: int) -> None:
        self.slots = slots
        self.places = Places(total, max(1, total - kept))
        self.queue = FairQueue(slots, quantum, 1e9, clock=lambda: self.now_s, places=self.places)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        async def settled() -> None:
            await work
            for _ in range(12):
                await asyncio.sleep(0)

        self.loop.run_until_complete(settled())

    @property
    def running(self) -> list[Asked]:
        return [one for one in self.all if one.begun and not one.ended]

    @property
    def waiting(self) -> list[Asked]:
        return [one for one in self.all if not one.begun and not one.ended]

    async def _request(self, one: Asked) -> None:
        adapter = one.adapter
        asked = None if adapter == 0 else LoadableVersion(f"a{adapter}@1", adapter, Path("/nowhere"))
        try:
            async with self.queue.turn(
                asked, one.left.wait, one.client, one.sequences, None, one.tenant, WEIGHTS[one.tenant]
            ):
                one.begun = True
                await one.end.wait()
        except ClientLeft:
            assert one.left.is_set()
        finally:
            one.ended = True

    @rule(client=KEYS, adapter=ADAPTERS, sequences=st.sampled_from([1, 1, 1, 2, 9]))
    def ask(self, client: str, adapter: int, sequences: int) -> None:
        async def work() -> None:
            one = Asked(client, adapter, sequences)
            self.all.append(one)
            one.task = asyncio.create_task(self._request(one))

        self.run(work())

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))

        async def work() -> None:
            one.end.set()

        self.run(work())

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), how=st.sampled_from(["cancel", "leave", "cancel as its turn comes"]))
    def give_up(self, data: st.DataObject, how: str) -> None:
        one = data.draw(st.sampled_from(self.waiting))
        assert one.task is not None
        task = one.task

        async def work() -> None:
            if how == "leave":
                one.left.set()
                return
            if how != "cancel" and self.running:
                self.running[0].end.set()
                await asyncio.sleep(0)
            task.cancel()

        self.run(work())
        assert one.ended or (one.begun and how != "cancel")

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cancel_running(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        assert one.task is not None
        task = one.task

        async def work() -> None:
            task.cancel()

        self.run(work())
        assert one.ended

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(total=st.integers(1, 6))
    def resize(self, total: int) -> None:
        self.places = Places(max(total, int(self.places.total)), max(total, int(self.places.per_key)))

        async def work() -> None:
            self.queue.resize(self.places)

        self.run(work())

    @invariant()
    def bounds_hold(self) -> None:
        running = self.running
        assert len(running) <= self.places.total
        assert len({one.adapter for one in running} - {0}) <= self.slots
        held: Counter[str] = Counter()
        for one in running:
            held[one.client] += one.sequences
        for client, count in held.items():
            # One request may have more sequences than the share by itself.
            largest = max(one.sequences for one in running if one.client == client)
            assert count < self.places.per_key + largest

    @invariant()
    def no_place_is_empty_for_nothing(self) -> None:
        """Whoever could begin has begun: with a place, in his share, and for the base model, which needs no slot."""
        running, waiting = self.running, self.waiting
        is_alone = len({one.tenant for one in (*running, *waiting)}) == 1
        held: Counter[str] = Counter()
        for one in running:
            held[one.client if is_alone else one.tenant] += one.sequences
        if sum(held.values()) < self.places.total:
            idle = [one for one in waiting if held[one.client if is_alone else one.tenant] == 0]
            assert not [one for one in idle if one.adapter == 0]

    def teardown(self) -> None:
        async def drain() -> None:
            for _ in range(10 * len(self.all) + 10):
                self.now_s += 10.0
                for one in self.running[:1]:
                    one.end.set()
                for _ in range(12):
                    await asyncio.sleep(0)

        if hasattr(self, "queue"):
            self.run(drain())
            assert not self.waiting, "somebody starved"
            assert not self.running
            self.run(assert_like_new(self.queue, self.slots))
        for one in self.all:
            assert one.task is not None
            assert one.task.done()
            assert one.task.cancelled() or one.task.exception() is None
        self.loop.close()


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
