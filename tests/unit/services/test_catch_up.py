"""Whoever misses a name has the registry looked at: after the question, for all who ask, and not too often."""

import asyncio

import pytest

from amalgam.errors.registry import RegistryUnavailable
from amalgam.services.catch_up import CatchUp


class Looks:
    """Counts looks, which take as long as the gate is shut."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False
        self.now = 100.0

    async def __call__(self) -> None:
        self.begun += 1
        await self.gate.wait()
        if self.fails:
            raise RegistryUnavailable("gone")
        self.ended += 1

    def clock(self) -> float:
        return self.now


async def test_all_who_ask_at_once_share_one_look() -> None:
    looks = Looks()
    catch_up = CatchUp(looks, pause_s=0.0)
    await asyncio.gather(*(catch_up() for _ in range(100)))
    assert looks.ended == 1


async def test_a_look_that_began_before_the_question_does_not_count() -> None:
    """It may have read before the commit that the caller knows of."""
    looks = Looks()
    looks.gate.clear()
    catch_up = CatchUp(looks, pause_s=0.0)
    early = asyncio.create_task(catch_up())
    while not looks.begun:
        await asyncio.sleep(0)
    late = [asyncio.create_task(catch_up()) for _ in range(10)]
    await asyncio.sleep(0)
    looks.gate.set()
    await asyncio.gather(early, *late)
    assert looks.ended == 2


async def test_looks_have_a_pause_between_their_beginnings() -> None:
    looks = Looks()
    catch_up = CatchUp(looks, pause_s=0.2)
    now = asyncio.get_running_loop().time
    began = now()
    for _ in range(3):
        await catch_up()
    assert now() - began >= 0.39
    assert looks.ended == 3


async def test_while_looks_fail_nobody_waits_for_one() -> None:
    looks = Looks()
    looks.fails = True
    catch_up = CatchUp(looks, pause_s=0.0, clock=looks.clock)
    for _ in range(10):
        await catch_up()
    assert looks.begun == 1
    looks.now += 1.0
    looks.fails = False
    await catch_up()
    assert looks.ended == 1


async def test_a_look_goes_on_for_others_where_one_leaves() -> None:
    looks = Looks()
    looks.gate.clear()
    catch_up = CatchUp(looks, pause_s=0.0)
    leaves, stays = asyncio.create_task(catch_up()), asyncio.create_task(catch_up())
    while not looks.begun:
        await asyncio.sleep(0)
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    looks.gate.set()
    await stays
    assert looks.ended == 1
