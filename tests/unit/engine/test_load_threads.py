"""A file system that hangs holds up the loads from it, and nothing else that is done in threads."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from amalgam.engine.load_threads import MOST, LoadThreads
from amalgam.engine.protocol import LoadableVersion
from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.engine import EngineLoadFailed
from tests.support.waiting import until

PLACES = 3


def version(number: int, folder: str = "near") -> LoadableVersion:
    return LoadableVersion(f"a@{number}", number, Path(folder))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Shut; opened at the end, so that no thread outlives the test."""
    event = threading.Event()
    yield event
    event.set()


async def test_loads_that_hang_hold_up_neither_another_load_nor_other_work(gate: threading.Event) -> None:
    begun: list[Path] = []

    def hang(folder: Path) -> None:
        if folder.name != "near":
            begun.append(folder)
            gate.wait(60)

    threads = LoadThreads(hang, PLACES)
    hanging = [asyncio.create_task(threads.prepare(version(number, "far"))) for number in range(1, PLACES)]
    await until(lambda: len(begun) == PLACES - 1)
    async with asyncio.timeout(10):
        await threads.prepare(version(PLACES))
        # Every place hangs from now on, more of them than the loop has threads of its own.
        begun.clear()
        many = LoadThreads(hang, MOST)
        hanging += [asyncio.create_task(many.prepare(version(number, "far"))) for number in range(MOST)]
        await until(lambda: len(begun) == MOST)
        assert await asyncio.to_thread(lambda: 1) == 1
    gate.set()
    await asyncio.gather(*hanging)
    for pool in (threads, many):
        pool.close()


async def test_what_cannot_be_read_is_said_and_what_is_damaged_too() -> None:
    def read(folder: Path) -> None:
        if folder.name == "gone":
            raise FileNotFoundError(os.fspath(folder))
        raise ArtifactDamaged("0" * 64)

    threads = LoadThreads(read, PLACES)
    with pytest.raises(EngineLoadFailed):
        await threads.prepare(version(1, "gone"))
    with pytest.raises(ArtifactDamaged):
        await threads.prepare(version(2, "damaged"))
    threads.close()
