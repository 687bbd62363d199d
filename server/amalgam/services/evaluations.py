"""Evaluations: what may be asked for, and what can be read of it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from amalgam.domain.alias import Alias
from amalgam.domain.answer_metrics import ANSWER_METRICS, given
from amalgam.domain.evaluation import (
    Evaluation,
    EvaluationDraft,
    EvaluationItem,
    EvaluationKind,
    EvaluationPage,
    EvaluationTarget,
    Measurement,
)
from amalgam.domain.evaluation_table import Cell, Comparison, compare, mean_table, refusals
from amalgam.domain.pattern import Pattern
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.tenant import BUILT_IN_TENANT
from amalgam.errors.evaluations import (
    EvaluationsDiffer,
    EvaluationTooLarge,
    MetricNotApplicable,
    TargetNotEvaluated,
)
from amalgam.errors.tenants import NotInScope
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.services.catalog import Catalog
from amalgam.services.inference import Inference
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

EXPORT_PAGE: Final = 200
"""So many measurements are read at once: reading more would keep streams of clients waiting."""


class EvaluationService:
    """Queues evaluations and reads their results.

    Args:
        registry: of evaluations.
        catalog: what names mean.
        inference: what expressions mean.
        max_calls: measurements of one evaluation.
        wake: tells who measures that there is something new.
        metrics: told of what is cancelled.
    """

    def __init__(
        self,
        registry: EvaluationRegistry,
        catalog: Catalog,
        inference: Inference,
        max_calls: int,
        wake: Callable[[], None],
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._registry = registry
        self._catalog = catalog
        self._inference = inference
        self._max_calls = max_calls
        self._wake = wake
        self._metrics = metrics

    async def find(self, model: str, scopes: Scopes = EVERYTHING, tenant: str = BUILT_IN_TENANT) -> EvaluationTarget:
        """Pin as `pin` does, with what another replica registered a moment ago."""
        return await self._inference.found(lambda: self.pin(model, scopes, tenant), must_ask=True)

    def pin(self, model: str, scopes: Scopes = EVERYTHING, tenant: str = BUILT_IN_TENANT) -> EvaluationTarget:
        """What ``model`` means now, for good; a weighted alias stays what it is.

        Args:
            model: as in a request.
            scopes: what whoever asks may know of; what an alias means has to be in scope too, because it is recorded.
            tenant: who asks.

        Raises:
            ModelNotFound, NotInScope: nothing of that name; of an expression besides, what `Blends.resolve` raises.
        """
        alias = self._catalog.alias(model, scopes)
        if alias is not None and not self._is_known(alias, scopes):
            raise NotInScope(f"what {alias.name!r} means, which an evaluation would name", param="targets")
        if alias is not None and len(alias.targets) > 1:
            return EvaluationTarget(model=model, pinned=alias.name, meaning=alias.meaning)
        target = self._inference.resolve(alias.targets[0].model if alias is not None else model, scopes, tenant)
        pinned = target.engine_name if target.version is not None else target.recipe or target.engine_name
        return EvaluationTarget(model=model, pinned=pinned, meaning=pinned)

    def _is_known(self, alias: Alias, scopes: Scopes) -> bool:
        """Whether all that an alias means, now and while it is measured, is in scope."""
        if len(alias.targets) > 1:
            return scopes.has_every_name
        return self._catalog.covers(alias.targets[0].model, scopes)

    async def submit(self, draft: EvaluationDraft) -> Evaluation:
        """Queue it.

        Raises:
            EvaluationTooLarge, MetricNotApplicable, InvalidPattern: what is asked for.
            TooManyEvaluations: how many wait.
        """
        if draft.total > self._max_calls:
            targets = max(len(draft.targets), -(-draft.total // len(draft.items)))
            raise EvaluationTooLarge(targets, len(draft.items), self._max_calls)
        await asyncio.to_thread(require_metrics, draft.metrics, draft.items)
        evaluation = await self._registry.create(draft)
        self._wake()
        return evaluation

    async def get(self, evaluation_id: str) -> Evaluation:
        """One. Raises EvaluationNotFound."""
        return await self._registry.get(evaluation_id)

    async def list(self, kind: EvaluationKind | None, limit: int, cursor: str | None) -> EvaluationPage:
        """A page, newest first."""
        return await self._registry.list(kind, limit=limit, cursor=cursor)

    async def cancel(self, evaluation_id: str) -> Evaluation:
        """Stop it; what was measured stays. Raises EvaluationNotFound, EvaluationStateConflict."""
        evaluation = await self._registry.cancel(evaluation_id)
        self._metrics.job_ended(evaluation.kind, "cancelled")
        self._wake()
        return evaluation

    async def resume(self, evaluation_id: str) -> Evaluation:
        """Go on with an interrupted or failed one. Raises EvaluationNotFound, EvaluationStateConflict."""
        evaluation = await self._registry.resume(evaluation_id)
        self._wake()
        return evaluation

    async def delete(self, evaluation_id: str) -> None:
        """Forget it. Raises EvaluationNotFound, EvaluationStateConflict."""
        await self._registry.delete(evaluation_id)

    async def count_live(self) -> dict[tuple[str, str], int]:
        """How many are queued or running, by kind and state."""
        return await self._registry.count_live()

    async def items(self, evaluation_id: str) -> tuple[EvaluationItem, ...]:
        """What is asked. Raises EvaluationNotFound."""
        return await self._registry.items(evaluation_id)

    async def table(self, evaluation_id: str) -> tuple[tuple[Cell, ...], Mapping[tuple[int, str], int]]:
        """Means so far by target, task and metric; and how many items ended with which code."""
        tasks = [item.task for item in await self._registry.items(evaluation_id)]
        measured = await self._measured(evaluation_id, None)
        return await asyncio.to_thread(mean_table, tasks, measured), refusals(measured)

    async def _measured(self, evaluation_id: str, target: int | None) -> Sequence[Measurement]:
        """All, without their answers."""
        found: list[Measurement] = []
        after = None
        while page := await self._registry.measured(evaluation_id, target=target, after=after, limit=EXPORT_PAGE):
            found += page
            after = (page[-1].target, page[-1].item)
        return found

    async def results(
        self, evaluation_id: str, *, target: int | None, after: tuple[int, int] | None, limit: int
    ) -> tuple[Measurement, ...]:
        """Measurements with their answers, in order of target and item. Raises EvaluationNotFound."""
        await self._registry.get(evaluation_id)
        return await self._registry.measured(evaluation_id, target=target, after=after, limit=limit, with_answers=True)

    async def compare(
        self, evaluation_id: str, baseline: str, candidate: str, other_id: str | None
    ) -> tuple[Comparison, ...]:
        """Two targets of one evaluation; or the baseline out of another one on the same items.

        Raises:
            EvaluationNotFound, EvaluationsDiffer.
            TargetNotEvaluated: by its ``model`` or its place.
        """
        evaluation = await self._registry.get(evaluation_id)
        other = evaluation if other_id is None else await self._registry.get(other_id)
        same = (evaluation.items_digest, evaluation.max_tokens) == (other.items_digest, other.max_tokens)
        if not same:
            raise EvaluationsDiffer(evaluation.id, other.id)
        tasks = [item.task for item in await self._registry.items(evaluation_id)]
        before = await self._measured(other.id, target_index(other, baseline))
        after = await self._measured(evaluation.id, target_index(evaluation, candidate))
        sides = [{one.item: one.values for one in side} for side in (before, after)]
        return await asyncio.to_thread(compare, tasks, *sides)


def target_index(evaluation: Evaluation, name: str) -> int:
    """The place of a target: by its number, by ``model`` as it was asked, or with exact versions.

    Raises:
        TargetNotEvaluated: there is no such target.
    """
    if name.isascii() and name.isdigit() and int(name[:9]) < len(evaluation.targets):
        return int(name[:9])
    for index, target in enumerate(evaluation.targets):
        if name in (target.model, target.pinned):
            return index
    raise TargetNotEvaluated(name, [target.model for target in evaluation.targets])


def require_metrics(metrics: Sequence[str], items: Sequence[EvaluationItem]) -> None:
    """Refuse patterns that cannot be searched for, and metrics that would measure nothing.

    Raises:
        InvalidPattern, MetricNotApplicable.
    """
    for pattern in {item.pattern for item in items if item.pattern is not None}:
        Pattern(pattern)
    for name in metrics:
        metric = ANSWER_METRICS[name]
        if all(given(metric, item.reference, item.pattern) is None for item in items):
            raise MetricNotApplicable(name, f"a {metric.needs}")
