"""Merges: from a recipe to a version. Names are pinned at submission, refusals come before anything is queued."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from amalgam.domain.adapter import AdapterHeader, AdapterVersion, VersionRef, is_name
from amalgam.domain.job import FINAL_STATES, LIVE_STATES, Job, JobPage, JobRequest
from amalgam.domain.recipe import Recipe
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import ArtifactDamaged, InvalidName, NameReserved
from amalgam.errors.jobs import JobFailed
from amalgam.errors.merging import MissingInput
from amalgam.errors.requests import ModelNotFound
from amalgam.merge import plan as planning
from amalgam.merge.plan import MergePlan
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.services.catalog import Catalog
from amalgam.services.publish import Publisher
from amalgam.services.worker_link import WorkerLink
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.peft_folder import read_peft_folder
from amalgam.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_LOOK_TIMEOUT_S: Final = 1.0
_LIVE_COUNTED: Final = 100


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
        self._changed = asyncio.Condition()
        self._built = asyncio.Event()
        self._worker: WorkerLink | None = None

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
        versions = [self._catalog.snapshot.versions[ref] for ref in plan.recipe.adapters]
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
        if job.state in ("failed", "cancelled"):
            error = job.error
            if error is None:
                raise JobFailed(job.id, "job_cancelled", 409, f"Job {job.id} was cancelled.")
            raise JobFailed(job.id, error.code, error.status, error.message)
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
        self._metrics.job_ended("cancelled")
        await self._announce()
        return job

    def hear(self, job_id: str, state: str) -> None:
        """The worker's word: something changed. The registry says what."""
        del job_id
        if state == "failed":
            self._metrics.job_ended("failed")
        self._built.set()

    async def live_jobs(self) -> dict[str, int] | None:
        """How many of the newest unfinished jobs are in each state; None where the registry does not answer in time."""
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                page = await self._jobs.list(states=LIVE_STATES, limit=_LIVE_COUNTED)
        except (AmalgamError, TimeoutError):
            return None
        counts = Counter(job.state for job in page.items)
        return {state: counts[state] for state in LIVE_STATES}

    async def publish_loop(self, period_s: float = 1.0) -> None:
        """Publish what is built, when told and every ``period_s`` seconds; runs until it is cancelled."""
        while True:
            self._built.clear()
            try:
                await self._publisher.publish_built()
            except AmalgamError as error:
                logger.warning("what is built stays built for now: %s", error)
            await self._announce()
            try:
                await asyncio.wait_for(self._built.wait(), period_s)
            except TimeoutError:
                continue

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

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
