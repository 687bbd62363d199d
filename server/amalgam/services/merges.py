"""Merges: from a recipe to a version. Names are pinned at submission, refusals come before anything is queued."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from amalgam.domain.adapter import AdapterHeader, AdapterVersion, VersionRef, is_name
from amalgam.domain.diagnostics import MergeForecast
from amalgam.domain.job import FINAL_STATES, Job, JobNews, JobPage, JobProgress, JobRequest
from amalgam.domain.recipe import Recipe
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import ArtifactDamaged, InvalidName, NameReserved
from amalgam.errors.jobs import JobFailed, WorkerUnavailable
from amalgam.errors.merging import MissingInput
from amalgam.errors.requests import ModelNotFound
from amalgam.merge import plan as planning
from amalgam.merge.plan import MergePlan
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.services.catalog import Catalog
from amalgam.services.job_feed import JobFeed
from amalgam.services.publish import Publisher
from amalgam.services.worker_link import WorkerLink
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.peft_folder import read_peft_folder
from amalgam.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_ASK_GRACE_S: Final = 10.0
"""A question waits for at most one batch of another, and for the worker's turn on a busy processor."""
_OVERDUE_S: Final = 2.0
"""A worker whose lease ended so long ago and that still holds the job does not run its loop any more."""


@dataclass(frozen=True, slots=True)
class MergeAnswer:
    """What a submission came to: a version that exists, or a job that will make one."""

    version: AdapterVersion | None
    job: Job | None


class MergeService:
    """Submits merges, follows their jobs, publishes what the worker built."""

    def __init__(
        self,
        registry: AdapterRegistry,
        jobs: JobRegistry,
        store: AdapterStore,
        catalog: Catalog,
        publisher: Publisher,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        self._registry = registry
        self._jobs = jobs
        self._store = store
        self._catalog = catalog
        self._publisher = publisher
        self._clock = clock
        self._metrics = metrics or Metrics()
        self.feed = JobFeed(jobs, clock)
        self._changed = asyncio.Condition()
        self._built = asyncio.Event()
        self._worker: WorkerLink | None = None
        self._dead_workers: set[str] = set()

    def attach(self, worker: WorkerLink) -> None:
        """The line to wake the worker by."""
        self._worker = worker

    async def plan(self, recipe: Recipe) -> MergePlan:
        """Pin the recipe's names and refuse what cannot be merged, from headers alone.

        Raises:
            ModelNotFound, MissingInput: an input.
            errors.merging: what the recipe asks for.
        """
        pinned, versions = self._pin(recipe)
        headers = await asyncio.to_thread(self._headers, versions)
        bases = {ref: version.base_fingerprint for ref, version in versions.items()}
        return planning.plan(pinned, headers, max_rank=self._catalog.base.max_lora_rank, bases=bases)

    async def forecast(self, recipe: Recipe, budget_s: float) -> MergeForecast:
        """What the merge would give and take: the worker runs it, as far as the time goes, and writes nothing.

        Args:
            recipe: Pinned, as `plan` returns it.
            budget_s: Seconds of computing.

        Raises:
            WorkerUnavailable: there is no worker to ask, or it does not answer.
            WorkerRefused: what only tensors can tell, such as NaN in an input.
        """
        if self._worker is None:
            raise WorkerUnavailable
        question = {"kind": "plan", "recipe": recipe.model_dump(mode="json"), "budget_s": budget_s}
        return MergeForecast.model_validate(await self._worker.ask(question, budget_s + _ASK_GRACE_S))

    async def submit(self, name: str, recipe: Recipe, *, set_default: bool) -> MergeAnswer:
        """Queue the merge, or answer with the live version or job of the same recipe under this name.

        Raises:
            InvalidName, NameReserved: the name. Besides, as `plan`.
        """
        if not is_name(name):
            raise InvalidName(name)
        if name == self._catalog.base.served_name:
            raise NameReserved(name)
        plan = await self.plan(recipe)
        versions = self.versions_of(plan.recipe)
        request = JobRequest(
            kind="merge",
            name=name,
            recipe=plan.recipe.model_dump(mode="json"),
            recipe_digest=plan.recipe.digest(),
            set_default=set_default,
            input_digests=tuple(version.digest for version in versions),
        )
        submission = await self._jobs.submit(request)
        if submission.created and self._worker is not None:
            self._worker.wake()
        return MergeAnswer(submission.version, submission.job)

    async def wait(self, job_id: str, timeout_s: float) -> Job:
        """The job once it is final, or as it is after ``timeout_s`` seconds."""
        deadline = self._clock() + timeout_s
        while True:
            job = await self._jobs.get(job_id)
            left_s = deadline - self._clock()
            if job.state in FINAL_STATES or left_s <= 0:
                return job
            async with self._changed:
                try:
                    # Another replica's worker may finish it without a word to us: look again now and then.
                    await asyncio.wait_for(self._changed.wait(), min(left_s, 1.0))
                except TimeoutError:
                    continue

    async def version_of(self, job: Job) -> AdapterVersion:
        """The version that a published job made.

        Raises:
            JobFailed: the job failed or was cancelled; carries its code and status.
        """
        raise_where_failed(job)
        assert job.version_number is not None
        return await self._registry.get_version(job.name, job.version_number)

    async def get(self, job_id: str) -> Job:
        """One job. Raises JobNotFound."""
        return await self._jobs.get(job_id)

    async def list(self, limit: int, cursor: str | None) -> JobPage:
        """A page of jobs, newest first."""
        return await self._jobs.list(limit=limit, cursor=cursor)

    async def cancel(self, job_id: str) -> Job:
        """Stop a queued or running job; the worker notices at its next module group."""
        job = await self._jobs.cancel(job_id)
        self._metrics.job_ended(job.kind, "cancelled")
        await self._announce()
        return job

    def hear(self, news: JobNews) -> None:
        """The worker's word: something changed. The registry says what."""
        if news.state in ("failed", "published"):
            # Of exports the worker says both; what it merged is published by the server.
            self._metrics.job_ended(news.kind, news.state, news.timings)
        self.feed.changed(news.job_id)
        self._built.set()

    def hear_progress(self, job_id: str, progress: JobProgress) -> None:
        """The worker's word on how far it is."""
        self.feed.hear_progress(job_id, progress)

    def worker_ended(self, name: str) -> None:
        """A worker of ours is gone: what it held is free at once, not only when its lease ends."""
        self._dead_workers.add(name)
        self._built.set()

    async def count_live(self) -> dict[tuple[str, str], int]:
        """How many unfinished merges and exports there are, by kind and state."""
        return await self._jobs.count_live()

    async def publish_loop(self, period_s: float = 1.0) -> None:
        """Publish what is built and free what dead workers hold, when told and every ``period_s`` seconds, for ever."""
        while True:
            self._built.clear()
            try:
                await self._mind_worker()
                await self._publisher.publish_built()
            except AmalgamError as error:
                logger.warning("what is built stays built for now: %s", error)
            await self._announce()
            try:
                await asyncio.wait_for(self._built.wait(), period_s)
            except TimeoutError:
                continue

    async def _mind_worker(self) -> None:
        """Free the jobs of dead workers, and end ours where it holds a job that it stopped renewing."""
        for name in tuple(self._dead_workers):
            freed = await self._jobs.abandon(name)
            self._dead_workers.discard(name)
            if freed and self._worker is not None:
                logger.warning("the worker %s died at work on %s", name, ", ".join(freed))
                self._worker.wake()
        worker = self._worker
        if worker is None or worker.name is None:
            return
        if await self._jobs.is_overdue(worker.name, grace_s=_OVERDUE_S):
            logger.error("the merge worker does not renew its lease; ending it")
            worker.kill()

    async def _announce(self) -> None:
        self.feed.look()
        async with self._changed:
            self._changed.notify_all()

    def versions_of(self, recipe: Recipe) -> tuple[AdapterVersion, ...]:
        """The versions that a pinned recipe names, in its order; right after `plan`, without an await in between."""
        return tuple(self._catalog.snapshot.versions[ref] for ref in recipe.adapters)

    def _pin(self, recipe: Recipe) -> tuple[Recipe, dict[str, AdapterVersion]]:
        refs: dict[str, VersionRef] = {}
        versions: dict[str, AdapterVersion] = {}
        for adapter in recipe.adapters:
            try:
                target = self._catalog.resolve(adapter)
            except ModelNotFound as error:
                raise MissingInput(adapter) from error
            if target.version is None:
                raise MissingInput(adapter)
            refs[adapter] = target.version.ref
            versions[str(target.version.ref)] = target.version
        return recipe.pin(refs), versions

    def _headers(self, versions: Mapping[str, AdapterVersion]) -> dict[str, AdapterHeader]:
        headers: dict[str, AdapterHeader] = {}
        for ref, version in versions.items():
            header = read_peft_folder(self._store.path(version.digest), None, scan_values=False).header
            if header is None:
                raise ArtifactDamaged(version.digest)
            headers[ref] = header
        return headers


def raise_where_failed(job: Job) -> None:
    """Let a job pass that has not ended badly.

    Raises:
        JobFailed: the job failed or was cancelled; carries its code and status.
    """
    if job.state in ("failed", "cancelled"):
        error = job.error
        if error is None:
            raise JobFailed(job.id, "job_cancelled", 409, f"Job {job.id} was cancelled.")
        raise JobFailed(job.id, error.code, error.status, error.message)
