"""Fits: a merge job whose worker reads its inputs' prompts first, or that waits while a sweep searches its weights."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from amalgam.domain.answer_metrics import KEPT
from amalgam.domain.evaluation import CANCELLABLE, Evaluation, EvaluationItem, digest_of_items
from amalgam.domain.fit import FitOrder, FitRecord, ReadingFit, fit_digest
from amalgam.domain.fit_forecast import FitForecast
from amalgam.domain.job import Job, JobRequest
from amalgam.domain.recipe import Recipe
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.search import SweepPlan
from amalgam.domain.skill_probe import MAX_PROMPTS, ProbeOrder
from amalgam.domain.stored_bytes import StoredBy
from amalgam.domain.tenant import BUILT_IN_TENANT
from amalgam.errors import AmalgamError
from amalgam.errors.evaluations import EvaluationNotFound, EvaluationStateConflict, InvalidSweep
from amalgam.errors.fits import FitRefused, FitStopped, FitUnfinished
from amalgam.errors.skills import ProbeRefused
from amalgam.merge.plan import MergePlan
from amalgam.registry.fit_jobs import FitJobRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.services.evaluations import EvaluationService
from amalgam.services.merges import MergeAnswer, MergeService
from amalgam.services.sweeps import SweepReport, SweepService
from amalgam.services.weight_search import weights_of
from amalgam.services.weight_sweeps import WeightOrder, finished

logger = logging.getLogger(__name__)

_LOOK_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class FittedMerge:
    """A merge with a fit, as it is asked for."""

    name: str
    recipe: Recipe
    fit: FitOrder
    set_default: bool
    probe: ProbeOrder | None
    """Without one, the merge is asked the prompts of its fit."""
    required: float | None
    scopes: Scopes = EVERYTHING
    tenant: str = BUILT_IN_TENANT
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What a merge with a fit would do."""

    plan: MergePlan
    """It is that of the merge itself, by the weights that are given."""
    digest: str
    """It names what is asked for."""
    fit: FitForecast


class FitService:
    """Submits merges that are fitted, and lets those be built whose searches for weights end.

    Args:
        evaluations: what sweeps are.
        sweeps: search.
        merges: build.
        jobs: all jobs.
        waiting: jobs that wait for a search.
        reads: whether workers have the files of the base model, and read prompts with it.
    """

    def __init__(
        self,
        evaluations: EvaluationService,
        sweeps: SweepService,
        merges: MergeService,
        jobs: JobRegistry,
        waiting: FitJobRegistry,
        *,
        reads: bool = False,
    ) -> None:
        self._evaluations = evaluations
        self._sweeps = sweeps
        self._merges = merges
        self._jobs = jobs
        self._waiting = waiting
        self._reads = reads

    async def submit(self, order: FittedMerge) -> MergeAnswer:
        """Queue the merge, and the search that it waits for if any, or answer with the live job of the very same.

        Raises:
            FitRefused: prompts that do not fit the inputs, or weights that cannot be searched.
            Besides, as `MergeService.submit` and `SweepService.search_weights`.
        """
        fit = order.fit
        request, given, record = await self._asked(order)
        if record.method == "iteris":
            return await self._merges.queue(replace(request, reading=self._reading(fit, given)))
        if (live := await self._waiting.find_live(order.name, request.recipe_digest)) is not None:
            return MergeAnswer(None, live)
        # Before anything is measured for it.
        await self._jobs.require_storage(request)
        recipe = Recipe.model_validate(request.recipe)
        sweep = await self._search(order, recipe, _tasked(given), await self._metrics(order))
        return await self._queue(replace(request, fit=record.model_copy(update={"sweep": sweep.id})), sweep)

    async def plan(self, order: FittedMerge, *, asks_worker: bool) -> FitPlan:
        """What `submit` would do, and what it will take; nothing is queued, read or searched.

        Args:
            order: As for `submit`.
            asks_worker: Whether the worker is asked what it has room for.

        Raises:
            WorkerUnavailable: the worker does not answer. Besides, as `submit`.
        """
        request, given, record = await self._asked(order)
        plan = await self._merges.plan(order.recipe, scopes=order.scopes)
        reads = record.method == "iteris"
        if reads:
            # What `submit` refuses is refused here too.
            self._reading(order.fit, given)
        needs = await self._merges.reading_needs() if reads and asks_worker else None
        counts = {ref: len(items) for ref, items in given.items()}
        return FitPlan(plan, request.recipe_digest, FitForecast.of(record, counts, needs))

    async def _asked(
        self, order: FittedMerge
    ) -> tuple[JobRequest, Mapping[str, tuple[EvaluationItem, ...]], FitRecord]:
        """The job, less what its worker reads or its search finds; the prompts by exact version; what is asked for."""
        fit = order.fit
        request, given = await self._pinned(order)
        recipe = Recipe.model_validate(request.recipe)
        lacking = [entry.adapter for entry in recipe.inputs if entry.adapter not in given]
        if lacking:
            raise FitRefused(f"{lacking[0]} has no prompts, so that nothing says what is kept of it; add some")
        method = fit.method or ("weights" if _bare(fit, given) or not self._reads else "iteris")
        record = FitRecord(
            method=method,
            by=fit.by,
            prompts_digest=digest_of_items(_tasked(given)),
            seed=fit.seed,
            max_tokens=fit.max_tokens,
            candidates=fit.candidates if method == "weights" else None,
            budget_s=fit.budget_s,
        )
        digest = fit_digest(request.recipe_digest, record)
        return replace(request, recipe_digest=digest, fit=record), given, record

    def _reading(self, fit: FitOrder, given: Mapping[str, tuple[EvaluationItem, ...]]) -> ReadingFit:
        """What the worker reads.

        Raises:
            FitRefused: no worker has the base model's files, or an item has no answer that could be read.
        """
        if not self._reads:
            raise FitRefused('the server has no files of the base model to read prompts with; send "method": "weights"')
        if bare := _bare(fit, given):
            raise FitRefused(f"an item of {bare[0]} has no reference, which is read as its answer; add it")
        return ReadingFit(items=given, labelled=fit.by == "items", max_tokens=fit.max_tokens, budget_s=fit.budget_s)

    async def _pinned(self, order: FittedMerge) -> tuple[JobRequest, Mapping[str, tuple[EvaluationItem, ...]]]:
        """The merge as it would be queued, and the items of the fit by exact version."""
        fit = order.fit
        probe = order.probe or ProbeOrder(
            {name: _questions(items) for name, items in fit.prompts.items()}, fit.max_tokens, order.required
        )
        try:
            request = await self._merges.request(
                order.name,
                order.recipe,
                set_default=order.set_default,
                scopes=order.scopes,
                probe=probe,
                stored_by=StoredBy(order.tenant, order.key_id),
            )
            pinned = await self._merges.pinned_probe(order.recipe, ProbeOrder(fit.prompts, fit.max_tokens, None))
        except ProbeRefused as error:
            if order.probe is not None:
                raise
            raise FitRefused(error.reason) from error
        return request, pinned.prompts

    async def _queue(self, request: JobRequest, sweep: Evaluation) -> MergeAnswer:
        submission = await self._jobs.submit(request)
        if not submission.created:
            # Another request of the very same was a moment earlier.
            await self._evaluations.cancel(sweep.id)
        return MergeAnswer(submission.version, submission.job)

    async def _metrics(self, order: FittedMerge) -> dict[str, str]:
        """The metric of every input, by its exact version."""
        if order.fit.by == "kept":
            return {}
        found: dict[str, str] = {}
        for name, metric in order.fit.metrics.items():
            one = ProbeOrder({name: order.fit.prompts.get(name, ())}, order.fit.max_tokens, None)
            found |= dict.fromkeys((await self._merges.pinned_probe(order.recipe, one)).prompts, metric)
        return found

    async def _search(
        self, order: FittedMerge, recipe: Recipe, items: tuple[EvaluationItem, ...], metrics: dict[str, str]
    ) -> Evaluation:
        fit = order.fit
        plain = KEPT if fit.by == "kept" else "exact_match"
        wanted = WeightOrder(
            label=f"weights of {order.name}"[:128],
            recipe=recipe,
            tasks={e.adapter: (e.adapter, metrics.get(e.adapter, plain)) for e in recipe.inputs},
            items=items,
            candidates=fit.candidates,
            budget_s=fit.budget_s,
            seed=fit.seed,
            max_tokens=fit.max_tokens,
            asked={"kind": "weights", "trials": fit.candidates, "seed": fit.seed, "budget_s": fit.budget_s},
            scopes=order.scopes,
            tenant=order.tenant,
            key_id=order.key_id,
        )
        try:
            return await self._sweeps.search_weights(wanted)
        except InvalidSweep as error:
            raise FitRefused(error.message.rstrip(".")) from error

    async def loop(self) -> None:
        """Let merges be built whose searches have ended, for ever."""
        while True:
            try:
                for job in await self._waiting.waiting():
                    await self._settle(job)
            except AmalgamError as error:
                logger.warning("fits_delayed reason=%s", error)
            await asyncio.sleep(_LOOK_PERIOD_S)

    async def _settle(self, job: Job) -> None:
        """Whatever became of the search, or of the job meanwhile."""
        assert job.waits_for is not None
        if not job.is_live:
            await self._stop(job.waits_for)
            await self._waiting.forget_search(job.id)
            return
        try:
            found = await self._found(job, job.waits_for)
            if found is None:
                return
            recipe, fit = found
            if await self._waiting.found(job.id, recipe.model_dump(mode="json"), recipe.digest(), fit) is not None:
                self._merges.wake_worker()
        except (FitStopped, FitUnfinished) as error:
            logger.error("job_failed job=%s code=%s reason=%s", job.id, error.code, error)
            await self._merges.fail(job.id, error)

    async def _found(self, job: Job, sweep_id: str) -> tuple[Recipe, FitRecord] | None:
        """The recipe with the weights that were found; None while they are searched.

        Raises:
            FitStopped, FitUnfinished: nothing is found any more.
        """
        try:
            evaluation = await self._evaluations.get(sweep_id)
        except EvaluationNotFound as error:
            raise FitStopped(sweep_id, "was deleted") from error
        if evaluation.state in ("queued", "running"):
            return None
        if evaluation.state != "done":
            reason = "" if evaluation.error is None else f": {evaluation.error.message.rstrip('.')}"
            raise FitStopped(sweep_id, f"is {evaluation.state}{reason}")
        return _best(job, await self._sweeps.report(sweep_id))

    async def _stop(self, sweep_id: str) -> None:
        try:
            if (await self._evaluations.get(sweep_id)).state in CANCELLABLE:
                await self._evaluations.cancel(sweep_id)
        except (EvaluationNotFound, EvaluationStateConflict) as error:
            logger.info("fit_search_ended sweep=%s reason=%s", sweep_id, error)


def _best(job: Job, report: SweepReport) -> tuple[Recipe, FitRecord]:
    plan: SweepPlan = report.plan
    tried = {one.target: one for one in finished(report.evaluation, plan, report.cells)}
    if report.best is None or report.best.target not in tried or plan.evolution is None:
        raise FitUnfinished(report.evaluation.id)
    best = tried[report.best.target]
    recipe = Recipe.model_validate(job.recipe)
    weights = weights_of(plan.points[best.target - plan.first_candidate], recipe)
    names = [entry.adapter for entry in recipe.inputs]
    record = FitRecord.model_validate(job.fit).model_copy(
        update={
            "tried": len(plan.points),
            "weights": dict(zip(names, weights, strict=True)),
            "kept": {name: round(kept, 4) for name, kept in zip(names, best.kept, strict=True)},
        }
    )
    return plan.evolution.at(weights), record


def _bare(fit: FitOrder, given: Mapping[str, tuple[EvaluationItem, ...]]) -> list[str]:
    """Inputs with an item that has no answer which could be read in place of the input's own."""
    if fit.by == "kept":
        return []
    return sorted(ref for ref, items in given.items() if any(not item.reference for item in items))


def _tasked(given: Mapping[str, tuple[EvaluationItem, ...]]) -> tuple[EvaluationItem, ...]:
    """All items, each with the input that it is of."""
    return tuple(item.model_copy(update={"task": ref}) for ref, its in given.items() for item in its)


def _questions(items: tuple[EvaluationItem, ...]) -> tuple[EvaluationItem, ...]:
    """What a probe takes of them; what is wanted as an answer is no part of the question."""
    return tuple(item.model_copy(update={"reference": None, "pattern": None}) for item in items[:MAX_PROMPTS])
