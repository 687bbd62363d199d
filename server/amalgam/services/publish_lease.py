"""The lease on a built job while this server publishes it: of several servers, one loads, probes and counts it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from amalgam.domain.job import Job
from amalgam.domain.skill_probe import KeptRecord
from amalgam.errors import AmalgamError, Unavailable
from amalgam.errors.jobs import LeaseLost
from amalgam.registry.jobs import JobRegistry
from amalgam.services.patience import patiently

logger = logging.getLogger(__name__)

LEASE_S: Final = 10.0
"""A server that is silent for so long does not publish any more."""


class PublishLease:
    """One claimed job. Everything that is written about it goes by its fencing token.

    Args:
        jobs: where it is written.
        job: as it was claimed.
        lease_s: how long the lease is, seconds.
        clock: monotonic seconds.
    """

    def __init__(self, jobs: JobRegistry, job: Job, lease_s: float, clock: Callable[[], float]) -> None:
        self._jobs = jobs
        self.job = job
        self._lease_s = lease_s
        self._clock = clock
        self._until = clock() + lease_s

    async def renew_loop(self) -> None:
        """Renew it until this is cancelled, or until it is lost: what is written then is refused."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            asked_at = self._clock()
            try:
                await self._jobs.heartbeat(self.job.id, self.job.fencing_token, lease_s=self._lease_s)
            except Unavailable:
                continue
            except AmalgamError as error:
                logger.warning("publish_lease_lost job=%s reason=%s", self.job.id, error)
                return
            self._until = asked_at + self._lease_s

    async def publish(self, timings: Mapping[str, float], kept: KeptRecord | None = None) -> None:
        """The version serves, and the job has its end; tried while the registry is away and the lease lasts.

        Raises:
            LeaseLost: another server has the job.
            RegistryUnavailable: it was away until the lease ended.
            VersionNotFound: the version was deleted meanwhile.
        """
        publish = partial(self._jobs.publish, self.job.id, self.job.fencing_token, timings, kept)
        await patiently(publish, lambda: self._until)

    async def fail(self, code: str, status: int, message: str) -> bool:
        """End the job with an error's own values; False where another server has it by now.

        Raises:
            RegistryUnavailable: it was away until the lease ended.
        """
        token = self.job.fencing_token
        fail = partial(self._jobs.fail, self.job.id, code=code, status=status, message=message, token=token)
        try:
            await patiently(fail, lambda: self._until)
        except LeaseLost as error:
            logger.warning("publish_lease_lost job=%s reason=%s", self.job.id, error)
            return False
        return True

    async def give_back(self) -> None:
        """Let another server, or this one later, take the job at once; where that cannot be said, its lease ends."""
        try:
            await self._jobs.release(self.job.id, self.job.fencing_token)
        except AmalgamError as error:
            logger.warning("publish_not_given_back job=%s reason=%s", self.job.id, error)


@asynccontextmanager
async def claimed(
    jobs: JobRegistry,
    server: str,
    lease_s: float = LEASE_S,
    clock: Callable[[], float] = time.monotonic,
    *,
    probed: bool | None = None,
) -> AsyncIterator[PublishLease | None]:
    """The next built job under a lease that is renewed while the block runs; None where there is none.

    Args:
        jobs: the registry.
        server: who claims it.
        lease_s: how long the lease is, seconds.
        clock: monotonic seconds.
        probed: of those with a probe alone, or of those without; None: any.
    """
    job = await jobs.claim_built(server, lease_s=lease_s, probed=probed)
    if job is None:
        yield None
        return
    lease = PublishLease(jobs, job, lease_s, clock)
    keeper = asyncio.create_task(lease.renew_loop(), name=f"lease {job.id}")
    try:
        yield lease
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
