"""Loops that end by an error: seen, counted, started again, and told to readiness while they are down."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from amalgam.errors.engine import EngineStartFailed
from amalgam.services.background_loops import BackgroundLoops, end
from amalgam.telemetry import metric_table as table
from amalgam.telemetry.metrics import Metrics

SETTLED_S = 0.05


@asynccontextmanager
async def group() -> AsyncIterator[tuple[BackgroundLoops, Metrics]]:
    metrics = Metrics()
    loops = BackgroundLoops(metrics, pause_s=0.01, settled_s=SETTLED_S)
    try:
        yield loops, metrics
    finally:
        await loops.stop()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.001)


def failing(times: int, failure: Callable[[], Awaitable[None]]) -> tuple[Callable[[], Awaitable[None]], list[int]]:
    """A loop whose first ``times`` starts end by ``failure``, and the starts there were."""
    starts: list[int] = []

    async def loop() -> None:
        starts.append(len(starts))
        if len(starts) <= times:
            await failure()
            return
        await asyncio.Event().wait()

    return loop, starts


async def raises() -> None:
    raise ZeroDivisionError("nobody thought of it")


async def returns() -> None:
    return


async def waits_for_something_cancelled() -> None:
    other = asyncio.get_running_loop().create_future()
    other.cancel()
    await other


async def waits_for_an_engine() -> None:
    raise EngineStartFailed("no such model")


async def test_a_loop_ends_with_an_engine_that_does_not_start(caplog: pytest.LogCaptureFixture) -> None:
    loop, starts = failing(2, waits_for_an_engine)
    async with group() as (loops, metrics):
        await loops.start("counting", loop)
        assert loops.down == ()
        assert not metrics.values(table.LOOP_FAILURES).get(("counting",))
    assert len(starts) == 1
    # The engine's own supervisor says why.
    assert not caplog.records


@pytest.mark.parametrize("failure", [raises, returns, waits_for_something_cancelled])
async def test_a_loop_that_ends_is_logged_counted_down_and_started_again(
    failure: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    loop, starts = failing(2, failure)
    async with group() as (loops, metrics):
        with caplog.at_level(logging.INFO):
            loops.start("counting", loop)
            assert loops.names == ("counting",)
            await until(lambda: loops.down == ("counting",))
            assert metrics.values(table.LOOP_UP).get(("counting",)) == 0
            await until(lambda: len(starts) == 3)
            assert loops.down == ("counting",), "it has only just begun again"
            await until(lambda: loops.down == ())
        assert metrics.values(table.LOOP_FAILURES).get(("counting",)) == 2
        assert metrics.values(table.LOOP_UP).get(("counting",)) == 1
        failures = [record for record in caplog.records if record.getMessage().startswith("loop_failed loop=counting")]
        assert len(failures) == 2
        assert all(record.exc_info and record.exc_info[1] is not None for record in failures)
        assert any(record.getMessage() == "loop_recovered loop=counting" for record in caplog.records)
    assert not loops.names


async def test_the_pause_grows_and_starts_small_again_after_a_long_run(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    runs_s = iter([0.0, 0.0, 0.0, 100.0, 0.0])

    async def loop() -> None:
        now[0] += next(runs_s, 0.0)
        raise ZeroDivisionError

    loops = BackgroundLoops(Metrics(), pause_s=0.001, settled_s=50.0, clock=lambda: now[0])
    with caplog.at_level(logging.ERROR):
        task = loops.start("short", loop)
        await until(lambda: len(caplog.records) >= 5)
        await end(task)
    pauses = [record.args[1] for record in caplog.records[:5]]  # type: ignore[index]
    assert pauses == [0.001, 0.002, 0.004, 0.001, 0.002]


async def test_work_that_is_to_end_is_repeated_until_it_does_and_does_not_count_as_down() -> None:
    tries: list[int] = []

    async def work() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ZeroDivisionError

    async with group() as (loops, metrics):
        await asyncio.wait_for(loops.finish("retirement", work), 5)
        assert len(tries) == 3
        assert loops.names == loops.down == ()
        assert metrics.values(table.LOOP_FAILURES).get(("retirement",)) == 2
        assert metrics.values(table.LOOP_UP).get(("retirement",)) == 1


async def test_a_loop_that_turns_its_cancellation_into_an_error_ends_all_the_same() -> None:
    begun = asyncio.Event()

    async def loop() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("as a driver does that finds its connection gone") from None

    async with group() as (loops, _):
        task = loops.start("stubborn", loop)
        await begun.wait()
        await asyncio.wait_for(end(task), 3)
        assert task.cancelled()
