"""Requests of experiments: a write that fails is written later, and what was forgotten meanwhile is not."""

import asyncio
from typing import Any

import pytest

from amalgam.errors.registry import RegistryUnavailable
from amalgam.services.experiment_counts import ExperimentCounts


class Rows:
    """A registry that fails, or waits, while it is told to."""

    def __init__(self) -> None:
        self.written: list[dict[tuple[str, str], tuple[int, int, int]]] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.is_down = False

    async def put_counts(self, front: str, counted: Any) -> None:
        await self.answers.wait()
        if self.is_down:
            raise RegistryUnavailable("down")
        self.written.append(dict(counted))


def counts(rows: Rows) -> ExperimentCounts:
    return ExperimentCounts(rows, "front")  # type: ignore[arg-type]


async def test_what_could_not_be_written_is_written_later() -> None:
    rows = Rows()
    counted = counts(rows)
    counted.add("e1", "sql@1", is_error=False, is_slow=True)
    rows.is_down = True
    with pytest.raises(RegistryUnavailable):
        await counted.flush()
    rows.is_down = False
    counted.add("e1", "sql@1", is_error=True, is_slow=False)
    await counted.flush()
    await counted.flush()
    assert rows.written == [{("e1", "sql@1"): (2, 1, 1)}], "all it came to, once"


async def test_an_experiment_that_is_forgotten_while_a_write_fails_stays_forgotten() -> None:
    rows = Rows()
    counted = counts(rows)
    counted.forget(frozenset({"e1", "e2"}))
    counted.add("e1", "sql@1", is_error=False, is_slow=False)
    counted.add("e2", "sql@1", is_error=False, is_slow=False)
    rows.answers.clear()
    rows.is_down = True
    writing = asyncio.create_task(counted.flush())
    await asyncio.sleep(0)
    counted.forget(frozenset({"e2"}))
    rows.answers.set()
    with pytest.raises(RegistryUnavailable):
        await writing
    rows.is_down = False
    await counted.flush()
    assert rows.written == [{("e2", "sql@1"): (1, 0, 0)}]
