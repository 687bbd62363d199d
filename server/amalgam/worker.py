"""The merge process: claim a job, build it, hand over the bytes, repeat.

A crash, a hang or an exhausted memory here ends in a stated job and stops no token. The lease is renewed while a job
is built; a worker that lost it (paused for too long, say) is refused by the registry and drops its result.
"""

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amalgam.domain.adapter import AdapterVersion, VersionRef
from amalgam.domain.clock import new_id, utc_now
from amalgam.domain.job import Job, JobError
from amalgam.domain.recipe import Recipe
from amalgam.domain.version import VersionDraft
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.jobs import LeaseLost
from amalgam.errors.merging import MergeCancelled
from amalgam.merge.build import BuildOptions, MergeOutcome, build_adapter
from amalgam.merge.run import RunOptions
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.jobs import JobRegistry
from amalgam.settings import Settings
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import AdapterTensors, FolderSink, open_tensors

logger = logging.getLogger(__name__)

_IDLE_PERIOD_S = 1.0
_NICE = 10


@dataclass(frozen=True, slots=True)
class Built:
    """What the building thread hands back."""

    draft: VersionDraft
    timings: dict[str, float]


class MergeWorker:
    """Builds jobs of one queue, one at a time."""

    def __init__(self, settings: Settings, registry: AdapterRegistry, jobs: JobRegistry, store: AdapterStore) -> None:
        self._settings = settings
        self._registry = registry
        self._jobs = jobs
        self._store = store
        self._name = f"{os.uname().nodename}-{os.getpid()}"

    async def run_one(self) -> bool:
        """Build the next job; False where there was none."""
        job = await self._jobs.claim(
            self._name, lease_s=self._settings.job_lease_s, max_attempts=self._settings.job_max_attempts
        )
        if job is None:
            return False
        _say(job.id, "running")
        try:
            built = await self._build(job)
            await self._jobs.finish_built(job.id, job.fencing_token, built.draft, built.timings)
            _say(job.id, "built")
        except MergeCancelled:
            _say(job.id, "cancelled")
        except LeaseLost as error:
            logger.warning("%s", error)
        except Exception as error:
            logger.exception("job %s failed", job.id)
            failure = _failure(error)
            await self._jobs.fail(
                job.id, code=failure.code, status=failure.status, message=failure.message, token=job.fencing_token
            )
            _say(job.id, "failed")
        return True

    async def _build(self, job: Job) -> Built:
        """Build in a thread, renew the lease beside it, and stop the thread where the lease or the job is gone."""
        stop = threading.Event()
        progress: dict[str, Any] = {}
        keeper = asyncio.create_task(self._keep_lease(job, stop, progress))
        try:
            recipe = Recipe.model_validate(job.recipe)
            versions = {ref: await self._version(ref) for ref in recipe.adapters}
            return await asyncio.to_thread(self._compute, job, recipe, versions, stop, progress)
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _keep_lease(self, job: Job, stop: threading.Event, progress: Mapping[str, Any]) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._settings.job_lease_s / 3))
            try:
                await self._jobs.heartbeat(
                    job.id, job.fencing_token, lease_s=self._settings.job_lease_s, progress=dict(progress)
                )
            except AmalgamError:
                stop.set()
                raise

    async def _version(self, ref: str) -> AdapterVersion:
        """The pinned input, deleted since or not: the job keeps its files."""
        parsed = VersionRef.parse(ref)
        assert parsed is not None
        return await self._registry.get_pinned(parsed.name, parsed.number)

    def _compute(
        self,
        job: Job,
        recipe: Recipe,
        versions: Mapping[str, AdapterVersion],
        stop: threading.Event,
        progress: dict[str, Any],
    ) -> Built:
        """The blocking part: read, merge, write, verify."""
        began = time.monotonic()
        sources = {ref: self._open(version) for ref, version in versions.items()}
        opened = time.monotonic()

        def on_progress(done: int, total: int) -> None:
            progress.update(modules_done=done, modules_total=total)

        options = BuildOptions(
            max_rank=self._settings.max_lora_rank,
            run=RunOptions(
                device=self._settings.worker_device, max_workspace_bytes=self._settings.merge_workspace_bytes
            ),
            bases={ref: version.base_fingerprint for ref, version in versions.items()},
        )
        with self._store.stage() as staging:
            outcome = build_adapter(
                recipe,
                sources,
                FolderSink(staging.folder),
                options,
                on_progress=on_progress,
                is_cancelled=stop.is_set,
            )
            computed = time.monotonic()
            # What we wrote passes the same door as what others upload.
            header = read_peft_folder(staging.folder, None).require(staging.findings)
            stored = self._store.publish(staging)
        timings = {"read": opened - began, "merge": computed - opened, "write": time.monotonic() - computed}
        draft = _draft(job, outcome, stored.digest, stored.size_bytes, list(versions.values()))
        assert header.rank == draft.rank
        return Built(draft, timings)

    def _open(self, version: AdapterVersion) -> AdapterTensors:
        folder = self._store.path(version.digest)
        header = read_peft_folder(folder, None, scan_values=False).header
        if header is None:
            raise ArtifactDamaged(version.digest)
        return open_tensors(folder, header, digest=version.digest)


def _draft(
    job: Job, outcome: MergeOutcome, digest: str, size_bytes: int, inputs: Sequence[AdapterVersion]
) -> VersionDraft:
    return VersionDraft(
        name=job.name,
        digest=digest,
        rank=outcome.rank,
        size_bytes=size_bytes,
        module_count=outcome.module_count,
        base_fingerprint=inputs[0].base_fingerprint,
        source="merge",
        recipe_digest=job.recipe_digest,
        lineage=outcome.lineage,
        warnings=outcome.warnings,
    )


def _failure(error: Exception) -> JobError:
    """The values of one of our errors; anything else is a fault of the server, whose log has the trace."""
    if isinstance(error, AmalgamError):
        return JobError(code=error.code, status=error.status, message=error.message)
    return JobError(code="internal_error", status=500, message="The merge failed. The worker's log says why.")


def _say(job_id: str, state: str) -> None:
    """One line to the server; the registry has the truth already."""
    sys.stdout.write(json.dumps({"job": job_id, "state": state}) + "\n")
    sys.stdout.flush()


async def _watch_input(wake: asyncio.Event, ended: asyncio.Event) -> None:
    """A byte wakes; the end of the input, when the server is gone, ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1):
        wake.set()
    ended.set()
    wake.set()


async def run_worker(settings: Settings) -> None:
    """Serve the queue until standard input ends; a job in work is finished first."""
    os.nice(_NICE)
    wake, ended = asyncio.Event(), asyncio.Event()
    store = await asyncio.to_thread(AdapterStore.open, settings.store)
    async with Database.open(settings.registry_url) as database:
        registry = AdapterRegistry(database, utc_now)
        worker = MergeWorker(settings, registry, JobRegistry(database, utc_now, new_id), store)
        watcher = asyncio.create_task(_watch_input(wake, ended))
        while not ended.is_set():
            wake.clear()
            while await worker.run_one():
                continue
            try:
                await asyncio.wait_for(wake.wait(), _IDLE_PERIOD_S)
            except TimeoutError:
                continue
        watcher.cancel()
