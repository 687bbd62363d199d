"""The merge process: claim a job, build or export it, report the bytes, repeat.

A crash, a hang or an exhausted memory here ends in a stated job and stops no token. The lease is renewed while a job
is built; a worker that lost it (paused for too long, say) is refused by the registry and drops its result. A build that
makes no progress cannot be stopped from within its process, so the process ends with it; the server starts another.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from amalgam.domain.adapter import AdapterVersion, VersionRef
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.export import ExportSpec
from amalgam.domain.job import Job
from amalgam.domain.messages import (
    EnergyAnswer,
    EnergyQuestion,
    JobNews,
    NeedsAnswer,
    NeedsQuestion,
    PlanAnswer,
    PlanQuestion,
    RebuildAnswer,
    Refusal,
    WorkerAnswer,
    WorkerQuestion,
)
from amalgam.domain.recipe import Recipe
from amalgam.errors import AmalgamError
from amalgam.errors.exports import ExportsOff
from amalgam.errors.jobs import LeaseLost
from amalgam.errors.merge_run import MergeCancelled
from amalgam.errors.registry import RegistryUnavailable
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.services.patience import patiently
from amalgam.settings import Settings
from amalgam.store.export_folders import ExportFolders
from amalgam.workers.exporter import ExportOrder, is_exported, record_export, stage_export
from amalgam.workers.lease import Leases, Watch
from amalgam.workers.merge_build import Built, MergeBuilder, failure
from amalgam.workers.server_line import say

logger = logging.getLogger(__name__)


class MergeWorker:
    """Builds jobs of one queue, one at a time.

    Args:
        name: who it is, as jobs name it.
        settings: of this process.
        registry: adapters and their versions.
        jobs: the queue.
        builder: what computes.
        leases: what renews the lease on a job in work.
        retry_pause_s: between two calls of a registry that is away, seconds.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        registry: AdapterRegistry,
        jobs: JobRegistry,
        builder: MergeBuilder,
        leases: Leases,
        retry_pause_s: float = 0.5,
    ) -> None:
        self._name = name
        self._settings = settings
        self._registry = registry
        self._jobs = jobs
        self._builder = builder
        self._leases = leases
        self._patiently = partial(patiently, pause_s=retry_pause_s)
        self._answering = asyncio.Lock()

    async def run_one(self) -> bool:
        """Build the next job; False where there was none."""
        job = await self._jobs.claim(
            self._name, lease_s=self._settings.merging.job_lease_s, max_attempts=self._settings.merging.job_max_attempts
        )
        if job is None:
            return False
        _tell(job, "running")
        try:
            if job.kind == "export":
                await self._export(job)
                return True
            await self._merge(job)
            _tell(job, "built")
        except MergeCancelled:
            _tell(job, "cancelled")
        except (LeaseLost, RegistryUnavailable) as error:
            # The job is another's by now, or is left to the end of its lease.
            logger.warning("job_left job=%s reason=%s", job.id, error)
        except Exception as error:
            why = failure(error)
            logger.exception("job_failed job=%s code=%s", job.id, why.code)
            await self._fail(job, why)
        return True

    async def answer(self, asked: WorkerQuestion) -> None:
        """Answer a question of the server, during the job in work; one question at a time."""
        # The time allowed runs from here, so a question that waited for another is answered no later.
        deadline = time.monotonic() + asked.budget_s
        try:
            versions = {ref: await self._version(ref) for ref in _named(asked)}
            async with self._answering:
                say(await asyncio.to_thread(self._answer, asked, versions, deadline))
        except Exception as error:
            if not isinstance(error, AmalgamError):
                logger.exception("question_failed")
            say(Refusal(id=asked.id, error=failure(error)))

    def _answer(
        self,
        asked: WorkerQuestion,
        versions: dict[str, AdapterVersion],
        deadline: float,
    ) -> WorkerAnswer:
        def is_over() -> bool:
            return time.monotonic() > deadline

        if isinstance(asked, PlanQuestion):
            return PlanAnswer(id=asked.id, forecast=self._builder.rehearse(asked.recipe, versions, is_over))
        if isinstance(asked, NeedsQuestion):
            return NeedsAnswer(id=asked.id, needs=self._builder.reading_needs())
        if isinstance(asked, EnergyQuestion):
            found = self._builder.energies(versions, asked.prompts, is_over)
            return EnergyAnswer(id=asked.id, energies=tuple(map(tuple, found)))
        digest, seconds = self._builder.rebuild(asked.recipe, versions, asked.max_rank, is_over, asked.reading)
        return RebuildAnswer(id=asked.id, digest=digest, seconds=seconds)

    async def _fail(self, job: Job, why: ErrorReport) -> None:
        fail = partial(
            self._jobs.fail, job.id, code=why.code, status=why.status, message=why.message, token=job.fencing_token
        )
        ends_at = time.monotonic() + self._settings.merging.job_lease_s
        try:
            await self._patiently(fail, lambda: ends_at)
        except (LeaseLost, RegistryUnavailable) as error:
            logger.warning("job_end_untold job=%s reason=%s", job.id, error)
        _tell(job, "failed")

    async def _merge(self, job: Job) -> None:
        """Build in a thread and record it; renew the lease meanwhile, and stop where the lease or the job is gone."""
        watch = Watch()
        async with self._leases.kept(job, watch):
            recipe = Recipe.model_validate(job.recipe)
            versions = {ref: await self._pinned(ref, watch) for ref in recipe.adapters}
            report = watch.reporter(job, asyncio.get_running_loop())
            built = await asyncio.to_thread(self._builder.build, job, recipe, versions, report, watch.stopped)
            await self._patiently(partial(self._finish, job, built), watch.lease_end)

    async def _finish(self, job: Job, built: Built) -> None:
        """Record the result; done already where the answer to the first attempt was lost on its way."""
        try:
            await self._jobs.finish_built(job.id, job.fencing_token, built.draft, built.timings, built.fit)
        except LeaseLost:
            found = await self._jobs.get(job.id)
            # The server that publishes it has taken it under a token of its own by now.
            if found.state not in ("built", "publishing", "published") or found.attempts != job.attempts:
                raise

    async def _export(self, job: Job) -> None:
        """Write the checkpoint, give it its name, then record it. A start before this one may have come as far."""
        root, base = self._settings.exports.export_root, self._settings.exports.base_model
        if root is None or base is None:
            raise ExportsOff
        folders = ExportFolders(root)
        timings: dict[str, float] = {}
        if not await asyncio.to_thread(is_exported, folders, job):
            watch = Watch()
            async with self._leases.kept(job, watch):
                order = await self._export_order(job, base, watch)
                report = watch.reporter(job, asyncio.get_running_loop())
                staging = await asyncio.to_thread(folders.stage)
                try:
                    timings = await asyncio.to_thread(stage_export, order, folders, staging, report, watch.stopped)
                    # Whoever lost the job meanwhile must not give out its name.
                    await self._patiently(partial(self._leases.renew, job), watch.lease_end)
                    await asyncio.to_thread(folders.publish, staging, job.name)
                finally:
                    await asyncio.to_thread(staging.close)
        if await record_export(self._jobs, folders, job, timings):
            _tell(job, "published", timings)

    async def _export_order(self, job: Job, base: Path, watch: Watch) -> ExportOrder:
        spec = ExportSpec.model_validate(job.recipe)
        versions = {ref: await self._pinned(ref, watch) for ref in spec.recipe.adapters}
        sources = {ref: await asyncio.to_thread(self._builder.open, version) for ref, version in versions.items()}
        recipes = {ref: version.lineage["recipe"] for ref, version in versions.items() if version.lineage}
        return ExportOrder(spec, sources, base, self._builder.options(versions), recipes)

    async def _pinned(self, ref: str, watch: Watch) -> AdapterVersion:
        """`_version` for a job: an outage of the registry does not fail it."""
        return await self._patiently(partial(self._version, ref), watch.lease_end)

    async def _version(self, ref: str) -> AdapterVersion:
        """The pinned input, deleted since or not: the job keeps its files."""
        parsed = VersionRef.parse(ref)
        assert parsed is not None
        return await self._registry.get_pinned(parsed.name, parsed.number)


def _named(asked: WorkerQuestion) -> Sequence[str]:
    """The adapters that a question is about."""
    if isinstance(asked, NeedsQuestion):
        return ()
    return asked.adapters if isinstance(asked, EnergyQuestion) else asked.recipe.adapters


def _tell(job: Job, state: str, timings: dict[str, float] | None = None) -> None:
    say(JobNews(job.id, job.kind, state, timings or {}))
