"""The merge process: claim a job, build or export it, hand over the bytes, repeat.

A crash, a hang or an exhausted memory here ends in a stated job and stops no token. The lease is renewed while a job
is built; a worker that lost it (paused for too long, say) is refused by the registry and drops its result. A build that
makes no progress cannot be stopped from within its process, so the process ends with it; the server starts another.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from amalgam.domain.adapter import AdapterVersion, VersionRef
from amalgam.domain.clock import new_id, utc_now
from amalgam.domain.export import ExportSpec
from amalgam.domain.job import Job, JobError
from amalgam.domain.recipe import Recipe
from amalgam.domain.version import VersionDraft
from amalgam.errors import AmalgamError, Unavailable
from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.exports import ExportsOff
from amalgam.errors.jobs import LeaseLost
from amalgam.errors.merging import MergeCancelled, OutOfMemory
from amalgam.exporter import ExportOrder, is_exported, record_export, stage_export
from amalgam.merge.build import BuildOptions, MergeOutcome, build_adapter
from amalgam.merge.rehearse import rehearse
from amalgam.merge.run import RunOptions
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.jobs import JobRegistry
from amalgam.settings import Settings
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.export_folders import ExportFolders
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import AdapterTensors, FolderSink, open_tensors

logger = logging.getLogger(__name__)

_IDLE_PERIOD_S = 1.0
_SAY_PERIOD_S: Final = 0.05
_NICE: Final = 10
_OOM_SCORE: Final = 500
"""Where memory runs out, Linux is to end the worker and not the engine beside it."""
_MAX_LINE_BYTES: Final = 32 << 20
_STALLED: Final = 70
"""Exit code of a worker that ends itself because its build stands still."""


@dataclass(frozen=True, slots=True)
class Built:
    """What the building thread hands back."""

    draft: VersionDraft
    timings: dict[str, float]


@dataclass(slots=True)
class Watch:
    """What the building thread and the loop know of each other."""

    stop: threading.Event = field(default_factory=threading.Event)
    done: int = 0
    total: int = 0
    moved_at: float = field(default_factory=time.monotonic)
    said_at: float = 0.0

    def stopped(self) -> bool:
        """Whether the build is to end. Asked between batches, so the asking shows that the build is alive."""
        self.moved_at = time.monotonic()
        return self.stop.is_set()


class MergeWorker:
    """Builds jobs of one queue, one at a time."""

    def __init__(
        self, name: str, settings: Settings, registry: AdapterRegistry, jobs: JobRegistry, store: AdapterStore
    ) -> None:
        self._name = name
        self._settings = settings
        self._registry = registry
        self._jobs = jobs
        self._store = store
        self._answering = asyncio.Lock()

    async def run_one(self) -> bool:
        """Build the next job; False where there was none."""
        job = await self._jobs.claim(
            self._name, lease_s=self._settings.job_lease_s, max_attempts=self._settings.job_max_attempts
        )
        if job is None:
            return False
        _say(job=job.id, kind=job.kind, state="running")
        try:
            if job.kind == "export":
                await self._export(job)
                return True
            built = await self._build(job)
            await self._jobs.finish_built(job.id, job.fencing_token, built.draft, built.timings)
            _say(job=job.id, kind=job.kind, state="built")
        except MergeCancelled:
            _say(job=job.id, kind=job.kind, state="cancelled")
        except LeaseLost as error:
            logger.warning("%s", error)
        except Exception as error:
            logger.exception("job %s failed", job.id)
            await self._fail(job, _failure(error))
        return True

    async def answer(self, asked: Mapping[str, Any]) -> None:
        """Answer a question of the server, beside the job in work; one question at a time."""
        # The time allowed runs from here, so a question that waited for another is answered no later.
        deadline = time.monotonic() + float(asked["budget_s"])
        try:
            recipe = Recipe.model_validate(asked["recipe"])
            versions = {ref: await self._version(ref) for ref in recipe.adapters}
            options = self._options(versions, asked.get("max_rank"))
            work = {"plan": self._rehearse, "rebuild": self._rebuild}[asked["kind"]]
            async with self._answering:
                said = await asyncio.to_thread(work, recipe, versions, options, lambda: time.monotonic() > deadline)
            _say(ask=asked["ask"], answer=said)
        except Exception as error:
            if not isinstance(error, AmalgamError):
                logger.exception("a question of the server failed")
            _say(ask=asked["ask"], error=_failure(error).model_dump())

    def _rehearse(
        self, recipe: Recipe, versions: Mapping[str, AdapterVersion], options: BuildOptions, is_over: Callable[[], bool]
    ) -> Any:
        sources = {ref: self._open(version) for ref, version in versions.items()}
        return rehearse(recipe, sources, options, is_over=is_over).model_dump(mode="json")

    def _rebuild(
        self, recipe: Recipe, versions: Mapping[str, AdapterVersion], options: BuildOptions, is_over: Callable[[], bool]
    ) -> Any:
        """Build it all again beside the store, and say only under which digest it would be stored."""
        began = time.monotonic()
        sources = {ref: self._open(version) for ref, version in versions.items()}
        with self._store.stage() as staging:
            build_adapter(recipe, sources, FolderSink(staging.folder), options, is_cancelled=is_over)
            return {"digest": self._store.digest(staging), "seconds": time.monotonic() - began}

    async def _fail(self, job: Job, why: JobError) -> None:
        try:
            await self._jobs.fail(
                job.id, code=why.code, status=why.status, message=why.message, token=job.fencing_token
            )
        except LeaseLost as error:
            logger.warning("%s", error)
        _say(job=job.id, kind=job.kind, state="failed")

    async def _build(self, job: Job) -> Built:
        """Build in a thread, renew the lease beside it, and stop the thread where the lease or the job is gone."""
        watch = Watch()
        async with self._lease_kept(job, watch):
            recipe = Recipe.model_validate(job.recipe)
            versions = {ref: await self._version(ref) for ref in recipe.adapters}
            return await asyncio.to_thread(self._compute, job, recipe, versions, watch, asyncio.get_running_loop())

    @asynccontextmanager
    async def _lease_kept(self, job: Job, watch: Watch) -> AsyncIterator[None]:
        keeper = asyncio.create_task(self._keep_lease(job, watch))
        try:
            yield
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _export(self, job: Job) -> None:
        """Write the checkpoint, give it its name, then record it. A start before this one may have come as far."""
        root, base = self._settings.export_root, self._settings.base_model
        if root is None or base is None:
            raise ExportsOff
        folders = ExportFolders(root)
        timings: dict[str, float] = {}
        if not await asyncio.to_thread(is_exported, folders, job):
            watch = Watch()
            async with self._lease_kept(job, watch):
                order = await self._export_order(job, base)
                report = self._reporter(job, watch, asyncio.get_running_loop())
                staging = await asyncio.to_thread(folders.stage)
                try:
                    timings = await asyncio.to_thread(stage_export, order, folders, staging, report, watch.stopped)
                    # Whoever lost the job meanwhile must not give out its name.
                    await self._jobs.heartbeat(job.id, job.fencing_token, lease_s=self._settings.job_lease_s)
                    await asyncio.to_thread(folders.publish, staging, job.name)
                finally:
                    await asyncio.to_thread(staging.close)
        if await record_export(self._jobs, folders, job, timings):
            _say(job=job.id, kind=job.kind, state="published", timings=timings)

    async def _export_order(self, job: Job, base: Path) -> ExportOrder:
        spec = ExportSpec.model_validate(job.recipe)
        versions = {ref: await self._version(ref) for ref in spec.recipe.adapters}
        sources = {ref: await asyncio.to_thread(self._open, version) for ref, version in versions.items()}
        recipes = {ref: version.lineage["recipe"] for ref, version in versions.items() if version.lineage}
        return ExportOrder(spec, sources, base, self._options(versions), recipes)

    def _reporter(self, job: Job, watch: Watch, loop: asyncio.AbstractEventLoop) -> Callable[[int, int], None]:
        """Takes (done, total) in the computing thread; the server hears of it now and then."""

        def on_progress(done: int, total: int) -> None:
            watch.done, watch.total, watch.moved_at = done, total, time.monotonic()
            if watch.moved_at - watch.said_at >= _SAY_PERIOD_S or done == total:
                watch.said_at = watch.moved_at
                loop.call_soon_threadsafe(partial(_say, job=job.id, progress=[job.attempts, done, total]))

        return on_progress

    async def _keep_lease(self, job: Job, watch: Watch) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._settings.job_lease_s / 3))
            if time.monotonic() - watch.moved_at > self._settings.job_stall_s:
                logger.error("job %s stands still; this worker ends with it", job.id)
                os._exit(_STALLED)
            if watch.stop.is_set():
                continue
            progress = {"modules_done": watch.done, "modules_total": watch.total}
            try:
                await self._jobs.heartbeat(
                    job.id, job.fencing_token, lease_s=self._settings.job_lease_s, progress=progress
                )
            except Unavailable:
                # The lease is longer than most outages; where it is not, the next renewal is refused.
                continue
            except AmalgamError:
                watch.stop.set()

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
        watch: Watch,
        loop: asyncio.AbstractEventLoop,
    ) -> Built:
        """The blocking part: read, merge, write, verify."""
        began = time.monotonic()
        sources = {ref: self._open(version) for ref, version in versions.items()}
        opened = time.monotonic()
        with self._store.stage() as staging:
            outcome = build_adapter(
                recipe,
                sources,
                FolderSink(staging.folder),
                self._options(versions),
                on_progress=self._reporter(job, watch, loop),
                is_cancelled=watch.stopped,
            )
            computed = time.monotonic()
            # What we wrote passes the same door as what others upload.
            header = read_peft_folder(staging.folder, None).require(staging.findings)
            stored = self._store.publish(staging)
        timings = {"read": opened - began, "merge": computed - opened, "write": time.monotonic() - computed}
        draft = _draft(job, outcome, stored.digest, stored.size_bytes, list(versions.values()))
        assert header.rank == draft.rank
        return Built(draft, timings)

    def _options(self, versions: Mapping[str, AdapterVersion], max_rank: int | None = None) -> BuildOptions:
        return BuildOptions(
            max_rank=max_rank or self._settings.max_lora_rank,
            run=RunOptions(
                device=self._settings.worker_device, max_workspace_bytes=self._settings.merge_workspace_bytes
            ),
            bases={ref: version.base_fingerprint for ref, version in versions.items()},
        )

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
    if is_out_of_memory(error):
        error = OutOfMemory()
    if isinstance(error, AmalgamError):
        return JobError(code=error.code, status=error.status, message=error.message)
    return JobError(code="internal_error", status=500, message="The merge failed. The worker's log says why.")


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the device or here; torch says the latter in words alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _say(**words: object) -> None:
    """One line to the server; of jobs the registry has the truth already."""
    sys.stdout.write(json.dumps(words, allow_nan=False) + "\n")
    sys.stdout.flush()


async def _watch_input(worker: MergeWorker, wake: asyncio.Event, ended: asyncio.Event) -> None:
    """An empty line wakes, an object asks; the end of the input, when the server is gone, ends."""
    reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
    answering: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        if line.strip():
            task = asyncio.create_task(worker.answer(json.loads(line)))
            answering.add(task)
            task.add_done_callback(answering.discard)
        else:
            wake.set()
    ended.set()
    wake.set()


async def run_worker(settings: Settings) -> None:
    """Serve the queue until standard input ends; a job in work is finished first."""
    os.nice(_NICE)
    with contextlib.suppress(OSError):
        await asyncio.to_thread(Path("/proc/self/oom_score_adj").write_text, str(_OOM_SCORE))
    name = f"{os.uname().nodename}-{new_id().removeprefix('job-')[:12]}"
    wake, ended = asyncio.Event(), asyncio.Event()
    store = await asyncio.to_thread(AdapterStore.open, settings.store)
    async with Database.open(settings.registry_url) as database:
        registry = AdapterRegistry(database, utc_now)
        worker = MergeWorker(name, settings, registry, JobRegistry(database, utc_now, new_id), store)
        _say(worker=name)
        watcher = asyncio.create_task(_watch_input(worker, wake, ended))
        while not ended.is_set():
            wake.clear()
            while await worker.run_one():
                continue
            try:
                await asyncio.wait_for(wake.wait(), _IDLE_PERIOD_S)
            except TimeoutError:
                continue
        watcher.cancel()
