"""One at a time: keys in rotation, nothing lost where somebody gives up."""

import asyncio

import pytest

from amalgam.services.key_turns import KeyTurns


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
    assert not harness.turns._lines
    assert not harness.turns._taken


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
    assert not harness.turns._lines
    assert not harness.turns._taken


async def test_the_wait_has_a_limit() -> None:
    harness = Harness()
    first, second = await harness.ask("a"), await harness.ask("b", wait_s=0.01)
    with pytest.raises(TimeoutError):
        await second
    assert not harness.turns._lines
    await harness.end()
    await first
    assert not harness.turns._taken
