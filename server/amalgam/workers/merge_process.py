"""The life of the merge process: opened on a registry, awake while its server is there."""

import asyncio
import contextlib
import logging
import math
import os
from pathlib import Path
from typing import Final

from amalgam.domain.clock import new_id
from amalgam.domain.messages import WorkerNamed
from amalgam.errors import AmalgamError
from amalgam.errors.registry import RegistryUnavailable
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.jobs import JobRegistry
from amalgam.registry.kept_objects import KeptObjectRegistry
from amalgam.services.adapter_files import open_store
from amalgam.services.patience import patiently
from amalgam.settings import Settings
from amalgam.workers.lease import Leases
from amalgam.workers.merge_build import MergeBuilder
from amalgam.workers.merge_worker import MergeWorker
from amalgam.workers.server_line import ServerWatch, input_watched, say

logger = logging.getLogger(__name__)

_IDLE_PERIOD_S: Final = 1.0
_NICE: Final = 10
_OOM_SCORE: Final = 500
"""Where memory runs out, Linux is to end the worker and not the engine beside it."""


async def run_worker(settings: Settings) -> None:
    """Serve the queue until standard input ends; a job in work is finished first."""
    os.nice(_NICE)
    with contextlib.suppress(OSError):
        await asyncio.to_thread(Path("/proc/self/oom_score_adj").write_text, str(_OOM_SCORE))
    name = f"{os.uname().nodename}-{new_id().removeprefix('job-')[:12]}"
    wake, ended = asyncio.Event(), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        database = await _registry_opened(settings, stack)
        if database is None:
            return
        objects = KeptObjectRegistry(database, database.clock) if settings.storage.bucket else None
        builder = await asyncio.to_thread(MergeBuilder, settings, await open_store(settings, objects))
        jobs = JobRegistry(database, database.clock, new_id)
        leases = Leases(jobs, settings.merging.job_lease_s, settings.merging.job_stall_s)
        registry = AdapterRegistry(database, database.clock)
        worker = MergeWorker(name, settings, registry, jobs, builder, leases)
        say(WorkerNamed(name=name))
        async with input_watched(worker.answer, wake, ended):
            await _work(worker, wake, ended)


async def _work(worker: MergeWorker, wake: asyncio.Event, ended: asyncio.Event) -> None:
    while not ended.is_set():
        wake.clear()
        try:
            while await worker.run_one():
                continue
        except AmalgamError as error:
            logger.warning("job_claim_failed reason=%s", error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), _IDLE_PERIOD_S)


async def _registry_opened(settings: Settings, stack: contextlib.AsyncExitStack) -> Database | None:
    """The registry, waited for where it is away and closed with ``stack``; None where the server went meanwhile."""
    server = ServerWatch()

    async def opened() -> Database:
        opening = Database.open(settings.storage.registry_url, answer_timeout_s=settings.storage.database_timeout_s)
        return await stack.enter_async_context(opening)

    try:
        return await patiently(opened, lambda: 0.0 if server.is_gone() else math.inf)
    except RegistryUnavailable:
        return None
