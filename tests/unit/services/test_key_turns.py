"""One at a time: keys in rotation, nothing lost where somebody gives up."""

import asyncio

import pytest

from amalgam.services.key_turns import KeyTurns
from tests.support.memory import objects_within


async def settled() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


class Harness:
    def __init__(self) -> None:
        self.turns = KeyTurns()
        self.begun: list[str] = []
        self.ends: list[asyncio.Event] = []

    async def ask(self, client: str, wait_s: float = 60.0) -> "asyncio.Task[None]":
        async def work() -> None:
            async with self.turns.turn(client, wait_s):
                self.begun.append(client)
                end = asyncio.Event()
                self.ends.append(end)
                await end.wait()

        task = asyncio.create_task(work())
        await settled()
        return task

    async def end(self) -> None:
        self.ends[-1].set()
        await settled()

    async def assert_as_new(self) -> None:
        """Nobody has the turn, and nothing is kept of those who had it, or waited."""
        last = await self.ask("last")
        assert self.begun[-1] == "last"
        await self.end()
        await last
        assert objects_within(self.turns) == objects_within(KeyTurns())


async def test_a_light_key_waits_for_one_of_a_heavy_key_and_not_for_all() -> None:
    harness = Harness()
    tasks = [await harness.ask("heavy") for _ in range(10)] + [await harness.ask("light") for _ in range(2)]
    assert harness.begun == ["heavy"]
    for _ in range(5):
        await harness.end()
    assert harness.begun == ["heavy", "heavy", "light", "heavy", "light", "heavy"]
    for _ in range(7):
        await harness.end()
    await asyncio.gather(*tasks)
    await harness.assert_as_new()


@pytest.mark.parametrize("late", [False, True])
async def test_who_gives_up_leaves_nothing_behind(late: bool) -> None:
    harness = Harness()
    first, second, third = await harness.ask("a"), await harness.ask("a"), await harness.ask("b")
    if late:
        # In the moment in which its turn has come.
        harness.ends[-1].set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    second.cancel()
    await settled()
    assert second.cancelled()
    if not late:
        await harness.end()
    assert harness.begun[-1] == "b"
    await harness.end()
    await asyncio.gather(first, third)
    await harness.assert_as_new()


async def test_the_wait_has_a_limit() -> None:
    harness = Harness()
    first, second = await harness.ask("a"), await harness.ask("b", wait_s=0.01)
    with pytest.raises(TimeoutError):
        await second
    await harness.end()
    await first
    await harness.assert_as_new()
