"""Merges: from a recipe to a version. Names are pinned at submission, refusals come before anything is queued."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from amalgam.domain.adapter import AdapterHeader, AdapterVersion, VersionRef, is_name
from amalgam.domain.diagnostics import MergeForecast
from amalgam.domain.fit_forecast import ReadingNeeds
from amalgam.domain.job import FINAL_STATES, Job, JobPage, JobRequest
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.skill_probe import ProbeOrder, SkillProbe
from amalgam.domain.stored_bytes import StoredBy
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import ArtifactDamaged, InvalidName, NameReserved
from amalgam.errors.jobs import JobStateConflict
from amalgam.errors.merging import MissingInput
from amalgam.errors.reported import ReportedError
from amalgam.errors.requests import ModelNotFound
from amalgam.errors.skills import ProbeRefused
from amalgam.errors.tenants import NotInScope
from amalgam.merge import plan as planning
from amalgam.merge.plan import MergePlan
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.services.catalog import Catalog
from amalgam.services.job_feed import JobFeed
from amalgam.services.publish import Publisher
from amalgam.services.worker_link import WorkerLink
from amalgam.services.worker_reports import WorkerReports
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.peft_folder import read_peft_folder
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

logger = logging.getLogger(__name__)

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
        worker: WorkerLink,
        reports: WorkerReports,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._registry = registry
        self._jobs = jobs
        self._store = store
        self._catalog = catalog
        self._publisher = publisher
        self._clock = clock
        self._metrics = metrics
        self._worker = worker
        self.reports = reports
        self._changed = asyncio.Condition()

    @property
    def feed(self) -> JobFeed:
        """What those who follow a job are told by."""
        return self.reports.feed

    async def plan(self, recipe: Recipe, *, exports: bool = False, scopes: Scopes = EVERYTHING) -> MergePlan:
        """Pin the recipe's names and refuse what cannot be merged, from headers alone.

        Args:
            recipe: With names of this server.
            exports: Whether the result goes into a checkpoint, which has no largest rank.
            scopes: What the recipe may name; what its names mean has to be in scope too.

        Raises:
            ModelNotFound, MissingInput, NotInScope: an input.
            errors.merging: what the recipe asks for.
        """
        pinned, versions = await self._catalog.found(lambda: self._pin(recipe, scopes), must_ask=True)
        try:
            headers = await asyncio.to_thread(self._headers, versions)
        except ArtifactDamaged:
            # Its files may be gone because it is.
            await self._catalog.require_live(versions.values(), scopes)
            raise
        bases = {ref: version.base_fingerprint for ref, version in versions.items()}
        limit = planning.UNLIMITED_RANK if exports else self._catalog.base.max_lora_rank
        return planning.plan(pinned, headers, max_rank=limit, bases=bases)

    async def pinned_probe(self, recipe: Recipe, probe: ProbeOrder) -> SkillProbe:
        """``probe`` for the exact versions that ``recipe`` names now.

        Raises:
            ProbeRefused: prompts that do not fit the inputs. MissingInput: an input.
        """
        return probe.pinned(recipe, await self._catalog.found(lambda: self._refs(recipe), must_ask=True))

    async def forecast(self, recipe: Recipe, budget_s: float) -> MergeForecast:
        """What the merge would give and take: the worker runs it, as far as the time goes, and writes nothing.

        Args:
            recipe: Pinned, as `plan` returns it.
            budget_s: Seconds of computing.

        Raises:
            WorkerUnavailable: the worker does not run, or does not answer.
            ReportedError: what only tensors can tell, such as NaN in an input.
        """
        return await self._worker.forecast(recipe, budget_s)

    async def reading_needs(self) -> ReadingNeeds:
        """What the worker needs to read prompts with the base model. Raises as `forecast`."""
        return await self._worker.reading_needs()

    async def submit(
        self,
        name: str,
        recipe: Recipe,
        *,
        set_default: bool,
        scopes: Scopes = EVERYTHING,
        probe: ProbeOrder | None = None,
        stored_by: StoredBy | None = None,
    ) -> MergeAnswer:
        """Queue the merge, or answer with the live version or job of the same recipe under this name.

        Args:
            name: Of the adapter.
            recipe: With names of this server.
            set_default: Whether the name means the result at once.
            probe: What the result is asked before it is published.
            stored_by: Whose bytes the result counts as; None: the server's own.

        Raises:
            StorageSpent: the result would not fit into a limit of whose it will be. Besides, as `request`.
        """
        request = await self.request(
            name, recipe, set_default=set_default, scopes=scopes, probe=probe, stored_by=stored_by
        )
        return await self.queue(request)

    async def queue(self, request: JobRequest) -> MergeAnswer:
        """Have the worker build what `request` has made. Raises StorageSpent."""
        submission = await self._jobs.submit(request)
        if submission.created:
            self._worker.wake()
        return MergeAnswer(submission.version, submission.job)

    async def request(
        self,
        name: str,
        recipe: Recipe,
        *,
        set_default: bool,
        scopes: Scopes = EVERYTHING,
        probe: ProbeOrder | None = None,
        stored_by: StoredBy | None = None,
    ) -> JobRequest:
        """What `submit` would queue.

        Raises:
            InvalidName, NameReserved: the name. ProbeRefused: the probe. Besides, as `plan`.
        """
        if not is_name(name):
            raise InvalidName(name)
        if name in self._catalog.base.names:
            raise NameReserved(name)
        plan = await self.plan(recipe, scopes=scopes)
        # After the plan, which refuses inputs that are out of scope.
        asked = None if probe is None else await self.pinned_probe(recipe, probe)
        if asked is not None and (moved := sorted(asked.prompts.keys() - set(plan.recipe.adapters))):
            raise ProbeRefused(f"{moved[0]} is a newer version than was planned with; send the request again")
        versions = await self.versions_of(plan.recipe)
        return JobRequest(
            kind="merge",
            name=name,
            recipe=plan.recipe.model_dump(mode="json"),
            recipe_digest=plan.recipe.digest(),
            set_default=set_default,
            input_digests=tuple(version.digest for version in versions),
            probe=asked,
            stored_by=stored_by,
            output_bytes=plan.output_bytes,
        )

    def wake_worker(self) -> None:
        """A job may be built that waited."""
        self._worker.wake()

    async def fail(self, job_id: str, error: AmalgamError) -> None:
        """End a job that nobody holds with the values of ``error``; one that has ended meanwhile stays as it is."""
        try:
            job = await self._jobs.fail(job_id, code=error.code, status=error.status, message=error.message)
        except JobStateConflict as ended:
            logger.info("job_ended_before job=%s reason=%s", job_id, ended)
            return
        self._metrics.job_ended(job.kind, "failed")
        await self._announce()

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
                    # Another replica's worker may finish it unheard: look again now and then.
                    await asyncio.wait_for(self._changed.wait(), min(left_s, 1.0))
                except TimeoutError:
                    continue

    async def version_of(self, job: Job) -> AdapterVersion:
        """The version that a published job made.

        Raises:
            ReportedError: the job failed or was cancelled; carries its code and status.
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

    async def count_live(self) -> dict[tuple[str, str], int]:
        """How many unfinished merges and exports there are, by kind and state."""
        return await self._jobs.count_live()

    async def publish_loop(self, period_s: float = 1.0) -> None:
        """Publish what is built and free what dead workers hold, when told and every ``period_s`` seconds, for ever."""
        try:
            while True:
                self.reports.expect()
                try:
                    await self._mind_worker()
                    await self._publisher.publish_built()
                except AmalgamError as error:
                    logger.warning("publishing_delayed reason=%s", error)
                await self._announce()
                await self.reports.wait(period_s)
        finally:
            await self._publisher.close()

    async def _mind_worker(self) -> None:
        """Free the jobs of dead workers, and end ours where it holds a job that it stopped renewing."""
        for name in self.reports.ended_workers:
            freed = await self._jobs.abandon(name)
            self.reports.freed(name)
            if freed:
                logger.warning("worker_died worker=%s jobs=%s", name, ",".join(freed))
                self._worker.wake()
        ours = self._worker.name
        if ours is not None and await self._jobs.is_overdue(ours, grace_s=_OVERDUE_S):
            logger.error("lease_not_renewed process=merge_worker")
            self._worker.kill()

    async def _announce(self) -> None:
        self.feed.look()
        async with self._changed:
            self._changed.notify_all()

    async def versions_of(self, recipe: Recipe) -> tuple[AdapterVersion, ...]:
        """The versions that a pinned recipe names, in its order.

        Raises:
            MissingInput: one was deleted since it was pinned.
        """

        def named(ref: str) -> AdapterVersion:
            version = self._catalog.version(ref)
            if version is None:
                raise MissingInput(ref)
            return version

        return await self._catalog.found(lambda: tuple(map(named, recipe.adapters)))

    def _refs(self, recipe: Recipe) -> dict[str, str]:
        """The exact version of every adapter that a recipe names, by its spelling there."""
        one = {name: Recipe(inputs=(RecipeInput(adapter=name),)) for name in recipe.adapters}
        return {name: self._pin(alone, EVERYTHING)[0].adapters[0] for name, alone in one.items()}

    def _pin(self, recipe: Recipe, scopes: Scopes) -> tuple[Recipe, dict[str, AdapterVersion]]:
        refs: dict[str, VersionRef] = {}
        versions: dict[str, AdapterVersion] = {}
        for adapter in recipe.adapters:
            try:
                target = self._catalog.resolve(adapter, scopes)
            except ModelNotFound as error:
                raise MissingInput(adapter) from error
            if target.version is None:
                raise MissingInput(adapter)
            if not scopes.version(target.version.ref):
                # An alias: recipe and lineage name exact versions.
                raise NotInScope(f"what {adapter!r} means, which the recipe would name", param="inputs")
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
        ReportedError: the job failed or was cancelled; carries its code and status.
    """
    if job.state in ("failed", "cancelled"):
        if job.error is None:
            raise ReportedError(f"Job {job.id} was cancelled.", code="job_cancelled", status=409)
        raise job.error.as_error()
