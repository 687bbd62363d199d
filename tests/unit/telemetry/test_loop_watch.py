import asyncio
from itertools import count

from amalgam.telemetry.loop_watch import watch_loop
from amalgam.telemetry.metric_spec import MetricSpec
from amalgam.telemetry.metric_table import LOOP_BUSY, LOOP_LATE
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.server_state import ServerState


async def test_each_step_counts_by_how_much_it_was_late_and_how_long_the_loop_worked() -> None:
    metrics = Metrics()
    wall, busy = count(0, 0.3), count(0, 0.07)
    task = asyncio.create_task(watch_loop(metrics, lambda: next(wall), lambda: next(busy), step_s=0.001))
    while metrics.distribution(LOOP_LATE).count() < 3:
        await asyncio.sleep(0.001)
    task.cancel()
    assert _beyond(metrics, LOOP_LATE, "0.25")
    assert not _beyond(metrics, LOOP_LATE, "0.5")
    assert _beyond(metrics, LOOP_BUSY, "0.05")
    assert not _beyond(metrics, LOOP_BUSY, "0.1")


async def test_a_loop_that_stands_still_is_seen_by_the_clocks_of_this_machine() -> None:
    metrics = Metrics()
    task = asyncio.create_task(watch_loop(metrics, step_s=0.001))
    await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.3
    while loop.time() < until:
        pass
    await asyncio.sleep(0.01)
    task.cancel()
    assert _beyond(metrics, LOOP_LATE, "0.25")


def _beyond(metrics: Metrics, spec: MetricSpec, bound: str) -> bool:
    """Whether a value above ``bound`` was counted."""
    page = metrics.scrape(ServerState()).text().decode()
    counts = {}
    for line in page.splitlines():
        if line.startswith(f"{spec.name}_bucket"):
            counts[line.split('le="')[1].split('"')[0]] = float(line.rsplit(" ", 1)[1])
    return counts["+Inf"] > counts[bound]
