"""Work that runs alongside requests for as long as the server does. None of it ends unseen.

A loop that raises or returns is logged with its traceback, counted, and started again after a pause that doubles from
failure to failure. From its failure until it has run for a while again it is *down*, which readiness tells. One that
waits for an engine that does not start ends with it.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from amalgam.errors.engine import EngineStartFailed
from amalgam.errors.internal import LoopReturned
from amalgam.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

PAUSE_S: Final = 1.0
"""It lies between a failure and the next start."""
MAX_PAUSE_S: Final = 30.0
SETTLED_S: Final = 3.0
"""A loop that was started again and has run for so long counts as up. Longer than any loop waits before it works."""
_STOP_S: Final = 5.0
"""A driver that reports its own error where it was cancelled is cancelled again after so long."""

Loop = Callable[[], Awaitable[object]]


@dataclass(slots=True, eq=False)
class _Entry:
    name: str
    loop: Loop
    is_task: bool
    """It tells whether the loop may end: a piece of work that is repeated until it succeeds."""
    task: "asyncio.Task[None] | None" = None
    is_down: bool = False


class BackgroundLoops:
    """The group of them.

    Args:
        metrics: told of failures, and which loops run.
        pause_s: between a failure and the next start, seconds; doubled from failure to failure.
        settled_s: see `SETTLED_S`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        pause_s: float | None = None,
        settled_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._pause_s = PAUSE_S if pause_s is None else pause_s
        self._settled_s = SETTLED_S if settled_s is None else settled_s
        self._clock = clock
        self._entries: dict[int, _Entry] = {}
        self._numbers = itertools.count()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the loops that run or are to run, in order of their start."""
        return tuple(entry.name for entry in self._entries.values() if not entry.is_task)

    @property
    def unfinished(self) -> tuple[str, ...]:
        """The names of the pieces of work that have not come to their end."""
        return tuple(entry.name for entry in self._entries.values() if entry.is_task)

    @property
    def down(self) -> tuple[str, ...]:
        """The names of the loops that failed and have not run for a while since."""
        return tuple(entry.name for entry in self._entries.values() if entry.is_down and not entry.is_task)

    def start(self, name: str, loop: Loop) -> "asyncio.Task[None]":
        """Run ``loop`` for as long as the returned task is not cancelled.

        Args:
            name: for log and metric; one word, the same in every process.
            loop: called for every start; it is to run for ever.
        """
        return self._enter(_Entry(name, loop, is_task=False))

    def finish(self, name: str, work: Loop) -> "asyncio.Task[None]":
        """Run ``work`` until it has come to its end once, again where it fails; it never counts as `down`."""
        return self._enter(_Entry(name, work, is_task=True))

    def _enter(self, entry: _Entry) -> "asyncio.Task[None]":
        number = next(self._numbers)
        self._entries[number] = entry
        self._metrics.loop_started(entry.name)
        entry.task = asyncio.create_task(self._keep(entry), name=entry.name)
        entry.task.add_done_callback(lambda _: self._entries.pop(number, None))
        return entry.task

    async def _keep(self, entry: _Entry) -> None:
        pause_s = self._pause_s
        while True:
            began = self._clock()
            settling = asyncio.get_running_loop().call_later(self._settled_s, self._settle, entry)
            try:
                await entry.loop()
                if entry.is_task:
                    return
                raise LoopReturned(f"the loop {entry.name} returned")
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
                # Something that it waited for was cancelled, not the loop: it has failed like any other.
                failure: BaseException = LoopReturned(f"what the loop {entry.name} waited for was cancelled")
            except EngineStartFailed:
                # The engine's own log has the reason, and this process ends over it, or `/livez` says that it should.
                return
            except Exception as error:
                failure = error
            finally:
                settling.cancel()
            if self._clock() - began >= self._settled_s:
                pause_s = self._pause_s
            entry.is_down = True
            self._metrics.loop_failed(entry.name, is_down=not entry.is_task)
            logger.error("loop_failed loop=%s restart_in_s=%.1f", entry.name, pause_s, exc_info=failure)
            # An error that came in the place of a cancellation does not undo it.
            if _is_cancelled():
                raise asyncio.CancelledError
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _settle(self, entry: _Entry) -> None:
        if entry.is_down:
            entry.is_down = False
            logger.info("loop_recovered loop=%s", entry.name)
        self._metrics.loop_up(entry.name)

    async def stop(self) -> None:
        """End everything."""
        await end(*(entry.task for entry in self._entries.values() if entry.task is not None))


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end(*tasks: "asyncio.Task[None]") -> None:
    """Cancel ``tasks`` and wait for their end, however often one takes its cancellation for an error of its own."""
    while left := {task for task in tasks if not task.done()}:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_STOP_S)
