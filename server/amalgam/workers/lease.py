"""The lease on a job while it is built: renewed during the build, which ends where the lease is gone."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from amalgam.domain.job import Job
from amalgam.domain.messages import JobProgressed
from amalgam.errors import AmalgamError, Unavailable
from amalgam.registry.jobs import JobRegistry
from amalgam.workers.server_line import say

logger = logging.getLogger(__name__)

STALLED: Final = 70
"""A worker that ends itself because its build stands still has this exit code."""
_SAY_PERIOD_S: Final = 0.05
_RENEW_PERIOD_S: Final = 1.0


@dataclass(slots=True)
class Watch:
    """What a thread that builds and the loop that keeps its lease know of each other; each field has one writer."""

    stop: threading.Event = field(default_factory=threading.Event)
    done: int = 0
    total: int = 0
    moved_at: float = field(default_factory=time.monotonic)
    said_at: float = 0.0

    leased_until: float = 0.0
    """The job is ours for certain until then, by the monotonic clock."""

    def lease_end(self) -> float:
        """`leased_until`, as it is now."""
        return self.leased_until

    def stopped(self) -> bool:
        """Whether the build is to end. Asked between batches, so the asking shows that the build is alive."""
        self.moved_at = time.monotonic()
        return self.stop.is_set()

    def reporter(self, job: Job, loop: asyncio.AbstractEventLoop) -> Callable[[int, int], None]:
        """Takes (done, total) in the computing thread; the server hears of it now and then."""

        def on_progress(done: int, total: int) -> None:
            self.done, self.total, self.moved_at = done, total, time.monotonic()
            if self.moved_at - self.said_at >= _SAY_PERIOD_S or done == total:
                self.said_at = self.moved_at
                news = JobProgressed(job_id=job.id, attempt=job.attempts, done=done, total=total)
                loop.call_soon_threadsafe(partial(say, news))

        return on_progress


class Leases:
    """Renews leases.

    Args:
        jobs: the queue.
        lease_s: how long a lease is, seconds.
        stall_s: a build without progress for so long ends with its process, seconds: nothing within it can stop it.
        leave: ends the process at once, with an exit code.
    """

    def __init__(
        self, jobs: JobRegistry, lease_s: float, stall_s: float, leave: Callable[[int], object] = os._exit
    ) -> None:
        self._jobs = jobs
        self._lease_s = lease_s
        self._stall_s = stall_s
        self._leave = leave

    @asynccontextmanager
    async def kept(self, job: Job, watch: Watch) -> AsyncIterator[None]:
        """Renew the lease on ``job`` while the block runs."""
        watch.leased_until = time.monotonic() + self._lease_s
        keeper = asyncio.create_task(self.keep(job, watch))
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def renew(self, job: Job, progress: dict[str, int] | None = None) -> None:
        """Renew it once.

        Raises:
            LeaseLost: the job is another's by now, or cancelled.
        """
        await self._jobs.heartbeat(job.id, job.fencing_token, lease_s=self._lease_s, progress=progress)

    async def keep(self, job: Job, watch: Watch) -> None:
        """Renew it until this is cancelled; tell ``watch`` to stop where it cannot be renewed."""
        while True:
            await asyncio.sleep(min(_RENEW_PERIOD_S, self._lease_s / 3))
            if time.monotonic() - watch.moved_at > self._stall_s:
                logger.error("job_stalled job=%s", job.id)
                self._leave(STALLED)
            if watch.stop.is_set():
                continue
            asked_at = time.monotonic()
            try:
                await self.renew(job, {"modules_done": watch.done, "modules_total": watch.total})
                watch.leased_until = asked_at + self._lease_s
            except Unavailable:
                # The lease is longer than most outages; where it is not, the next renewal is refused.
                continue
            except Exception as error:
                # Without its lease the build is for nothing, whatever took it.
                if not isinstance(error, AmalgamError):
                    logger.exception("lease_failed job=%s", job.id)
                watch.stop.set()
