"""A search for weights as it is asked for: from a recipe and items of each input to the sweep that is queued."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from amalgam.domain.adapter import VersionRef
from amalgam.domain.answer_metrics import ANSWER_METRICS, KEPT, KEPT_LIKELIHOOD, LOG_LIKELIHOOD, given
from amalgam.domain.evaluation import MAX_TARGETS, Evaluation, EvaluationDraft, EvaluationItem, EvaluationTarget
from amalgam.domain.evaluation_table import Cell
from amalgam.domain.evolution import Evolution, Tried, first_weights, next_round
from amalgam.domain.recipe import Recipe
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.search import SweepPlan, SweepTask
from amalgam.domain.tenant import BUILT_IN_TENANT
from amalgam.errors.evaluations import InvalidSweep, MetricNotApplicable
from amalgam.merge.methods import Weights, method
from amalgam.services.evaluations import EvaluationService
from amalgam.services.weight_search import expression_at, point_of, weights_of

MAX_WEIGHTS: Final = 16
"""The weights of at most so many inputs are searched at once."""


@dataclass(frozen=True, slots=True)
class WeightOrder:
    """A search for weights as it is asked for."""

    label: str
    recipe: Recipe
    """Every input is the own adapter of a task; its weights are where the search begins."""
    tasks: Mapping[str, tuple[str, str]]
    """It maps a task to (its own adapter, as the recipe names it, and the metric that counts)."""
    items: tuple[EvaluationItem, ...]
    candidates: int
    budget_s: float
    seed: int
    max_tokens: int
    asked: Mapping[str, Any]
    """It is the search as it came, to be shown again."""
    scopes: Scopes = EVERYTHING
    tenant: str = BUILT_IN_TENANT
    key_id: str = ""


async def weight_sweep(evaluations: EvaluationService, order: WeightOrder) -> EvaluationDraft:
    """The sweep with its first candidates.

    Raises:
        InvalidSweep: a recipe whose weights are not to be searched, or items of no task.
        MetricNotApplicable: an item without what its task's metric needs.
        ModelNotFound, NotInScope, and what `Blends.resolve` refuses: an adapter, or a candidate.
    """
    _require_weights(order.recipe)
    _require_items(order)
    adapters = [entry.adapter for entry in order.recipe.inputs]
    if len(adapters) + order.candidates > MAX_TARGETS:
        raise InvalidSweep(f"{order.candidates} candidates beside {len(adapters)} adapters are more than {MAX_TARGETS}")
    singles = [await evaluations.find(adapter, order.scopes, order.tenant) for adapter in adapters]
    recipe = order.recipe.pin(dict(zip(adapters, map(_version, singles), strict=True)))
    kept = recipe.model_dump(mode="json", exclude_defaults=True)
    search = Evolution(recipe=kept, candidates=order.candidates, seed=order.seed, budget_s=order.budget_s)
    first = next_round((), (), first_weights(recipe), order.seed, order.candidates)
    plan = SweepPlan(
        tasks={
            task: SweepTask(adapter=adapters.index(adapter), metric=metric)
            for task, (adapter, metric) in order.tasks.items()
        },
        first_candidate=len(singles),
        points=tuple(point_of(recipe, weights) for weights in first),
        asked=order.asked,
        evolution=search,
    )
    tried = [await evaluations.find(expression_at(search, weights), order.scopes, order.tenant) for weights in first]
    return EvaluationDraft(
        kind="sweep",
        label=order.label,
        targets=(*singles, *tried),
        items=order.items,
        metrics=tuple(dict.fromkeys((*(metric for _, metric in order.tasks.values()), KEPT))),
        max_tokens=order.max_tokens,
        search=plan.model_dump(mode="json"),
        tenant=order.tenant,
        key_id=order.key_id,
        calls=len(order.items) * (1 + order.candidates),
    )


def finished(evaluation: Evaluation, plan: SweepPlan, cells: Sequence[Cell]) -> list[Tried]:
    """The candidates that were measured to the end, as the search judges them."""
    if plan.evolution is None:
        return []
    recipe = Recipe.model_validate(plan.evolution.recipe)
    means = {(cell.target, cell.task, cell.metric): (cell.mean, cell.count) for cell in cells}

    def graded(target: int, task: str, metric: str) -> float | None:
        pairs = [means.get((target, task, name), (0.0, 0)) for name in (metric, KEPT_LIKELIHOOD)]
        is_whole = all(count == evaluation.tasks[task] for _, count in pairs)
        return sum(mean for mean, _ in pairs) / 2 if is_whole else None

    found = []
    for target in range(plan.first_candidate, len(evaluation.targets)):
        kept = [1.0] * plan.first_candidate
        for task, measure in plan.tasks.items():
            mine, own = (graded(at, task, measure.metric) for at in (target, measure.adapter))
            if mine is None or not own:
                break
            kept[measure.adapter] = min(kept[measure.adapter], mine / own)
        else:
            weights = weights_of(plan.points[target - plan.first_candidate], recipe)
            found.append(Tried(target, weights, tuple(kept)))
    return found


def _version(single: EvaluationTarget) -> VersionRef:
    ref = VersionRef.parse(single.pinned)
    if ref is None:
        raise InvalidSweep(f"{single.model!r} is no version of an adapter, so that it has no weight to search")
    return ref


def _require_weights(recipe: Recipe) -> None:
    if len(recipe.inputs) < 2 or len(recipe.inputs) > MAX_WEIGHTS:
        raise InvalidSweep(
            f"weights are searched of 2 to {MAX_WEIGHTS} inputs, and the recipe has {len(recipe.inputs)}"
        )
    if method(recipe.method).weights is Weights.NONE:
        raise InvalidSweep(f"the method {recipe.method!r} has no use for weights; take another one")
    for entry in recipe.inputs:
        if isinstance(entry.weight, tuple) or entry.weight <= 0:
            raise InvalidSweep(f"the weight of {entry.adapter!r} has to be one number above 0, where the search begins")


def _require_items(order: WeightOrder) -> None:
    """Every input is some task's, and every item has what the metric of its task needs."""
    strange = sorted({item.task for item in order.items} - order.tasks.keys())
    if strange:
        raise InvalidSweep(f"items are of the task {strange[0]!r}, which 'tasks' does not describe")
    for task, (_, name) in order.tasks.items():
        if name == LOG_LIKELIHOOD:
            raise InvalidSweep(f"the metric of the task {task!r} has to be a share of items, or 'kept'")
        metric = ANSWER_METRICS[name]
        mine = [item for item in order.items if item.task == task]
        if not mine or any(given(metric, item.reference, item.pattern) is None for item in mine):
            raise MetricNotApplicable(name, f"a {metric.needs}", task)
    owners = {adapter for adapter, _ in order.tasks.values()}
    lacking = [entry.adapter for entry in order.recipe.inputs if entry.adapter not in owners]
    if lacking:
        raise InvalidSweep(f"{lacking[0]!r} is the own adapter of no task, so that nothing says what is kept of it")
