import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from amalgam.domain.messages import BlendBuilt, BlendOrder, Refusal
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.errors.blends import BlendUnavailable
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.blender_link import BlenderLink
from amalgam.telemetry.metrics import Metrics

PROGRAM = """
import json, sys, os, time
BUILT = {"type": "built", "size_bytes": 7, "rank": 2, "seconds": {"merge": 0.5}}
for line in sys.stdin:
    order = json.loads(line)
    what = order["folder"]
    if what == "die":
        os._exit(3)
    if what == "hang":
        time.sleep(60)
    if what == "babble":
        print("not json", flush=True)
        print(json.dumps({"type": "built", "id": order["id"], "size_bytes": 1}), flush=True)
        print(json.dumps({**BUILT, "id": order["id"] - 1}), flush=True)
    if what == "refuse":
        error = {"code": "x", "status": 400, "message": "no"}
        print(json.dumps({"type": "refused", "id": order["id"], "error": error}), flush=True)
        continue
    print(json.dumps({**BUILT, "id": order["id"]}), flush=True)
"""
RECIPE = Recipe(inputs=(RecipeInput(adapter="a@1"),))


@asynccontextmanager
async def link(timeout_s: float = 10.0) -> AsyncIterator[BlenderLink]:
    metrics = Metrics()
    command = (sys.executable, "-c", PROGRAM)
    made = BlenderLink(command, dict(os.environ), timeout_s, BackgroundLoops(metrics), metrics)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
        assert not made.alive


def order(number: int, what: str = "") -> BlendOrder:
    return BlendOrder(id=number, recipe=RECIPE, inputs={}, folder=what, max_rank=8, max_bytes=100)


def built(number: int) -> BlendBuilt:
    return BlendBuilt(id=number, size_bytes=7, rank=2, seconds={"merge": 0.5})


async def ready(made: BlenderLink) -> None:
    async with asyncio.timeout(10):
        while not made.alive:
            await asyncio.sleep(0.01)


async def test_an_order_is_answered_and_words_for_others_are_not_mistaken_for_it() -> None:
    async with link() as made:
        await ready(made)
        assert await made.build(order(1)) == built(1)
        assert await made.build(order(2, "babble")) == built(2)
        refused = await made.build(order(3, "refuse"))
        assert isinstance(refused, Refusal)
        assert refused.error.code == "x"


async def test_orders_take_turns() -> None:
    async with link() as made:
        await ready(made)
        replies = await asyncio.gather(*(made.build(order(number)) for number in range(5)))
        assert [reply.id for reply in replies] == list(range(5))


async def test_a_process_that_dies_over_an_order_fails_it_and_the_next_is_built() -> None:
    async with link() as made:
        await ready(made)
        with pytest.raises(BlendUnavailable):
            await made.build(order(1, "die"))
        with pytest.raises(BlendUnavailable):
            await made.build(order(2))
        await ready(made)
        assert (await made.build(order(3))).id == 3
        assert made.restarts == 1


async def test_a_process_that_hangs_is_ended_and_started_again() -> None:
    async with link(timeout_s=1.0) as made:
        await ready(made)
        await made.build(order(1))
        pid = made.pid
        with pytest.raises(BlendUnavailable):
            await made.build(order(2, "hang"))
        while made.restarts == 0 or not made.alive:
            await asyncio.sleep(0.01)
        assert made.pid != pid


async def test_who_waits_for_a_turn_too_long_is_told_so() -> None:
    async with link(timeout_s=0.5) as made:
        await ready(made)
        outcomes = await asyncio.gather(*(made.build(order(n, "hang")) for n in range(3)), return_exceptions=True)
        assert all(isinstance(outcome, BlendUnavailable) for outcome in outcomes)


async def test_a_process_killed_from_outside_is_started_again() -> None:
    async with link() as made:
        await ready(made)
        await made.build(order(1))
        assert made.pid is not None
        os.kill(made.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while made.restarts == 0 or not made.alive:
                await asyncio.sleep(0.01)
        assert (await made.build(order(2))).id == 2
