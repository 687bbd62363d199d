"""How long the event loop was busy with one thing: what stops it stops every stream and every probe.

A task wakes in short steps and asks two clocks: the wall, which sees everything that kept it from waking, and the
processor time of the loop's own thread, which sees only what the loop did, however busy the machine is.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from amalgam.telemetry.metric_table import LOOP_BUSY, LOOP_LATE
from amalgam.telemetry.metrics import Metrics

STEP_S: Final = 0.025
"""It lies between two wakings; a stall that is much shorter goes unseen."""


async def watch_loop(
    metrics: Metrics,
    wall: Callable[[], float] = time.monotonic,
    busy: Callable[[], float] = time.thread_time,
    step_s: float = STEP_S,
) -> None:
    """Observe each step of this thread's event loop, for ever.

    Args:
        metrics: where the seconds are counted.
        wall: a clock in seconds.
        busy: processor seconds of the calling thread.
        step_s: seconds between two wakings.
    """
    late, at_work = metrics.distribution(LOOP_LATE), metrics.distribution(LOOP_BUSY)
    while True:
        began, worked = wall(), busy()
        await asyncio.sleep(step_s)
        late.observe(max(0.0, wall() - began - step_s))
        at_work.observe(busy() - worked)
