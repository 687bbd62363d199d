"""Sweeps: a search over merges, each tried as a blend on the same items, and the best ones made to last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from amalgam.domain.answer_metrics import ANSWER_METRICS, LOG_LIKELIHOOD, given
from amalgam.domain.evaluation import MAX_TARGETS, Evaluation, EvaluationDraft, EvaluationItem, EvaluationTarget
from amalgam.domain.evaluation_table import Cell
from amalgam.domain.evolution import elite
from amalgam.domain.expression import parse_expression, print_expression
from amalgam.domain.recipe import Output, Recipe, RecipeInput
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.search import (
    WEIGHT_AXIS,
    Axis,
    Point,
    Standing,
    SweepPlan,
    SweepTask,
    draw,
    grid,
    pareto_front,
    standing,
    winner,
)
from amalgam.domain.stored_bytes import StoredBy
from amalgam.domain.tenant import BUILT_IN_TENANT
from amalgam.errors import AmalgamError
from amalgam.errors.evaluations import (
    EvaluationNotFound,
    EvaluationStateConflict,
    InvalidSweep,
    MetricNotApplicable,
    TargetNotEvaluated,
)
from amalgam.merge.methods import Space, Weights, method
from amalgam.services.evaluations import EvaluationService, target_index
from amalgam.services.merges import MergeAnswer, MergeService
from amalgam.services.weight_sweeps import WeightOrder, finished, weight_sweep

_METHOD_IN: Final = "method in space"
"""It is one axis, because not every method is defined in every space."""
_IN: Final = " in "


@dataclass(frozen=True, slots=True)
class Search:
    """What is tried: every combination of the axes, or some of them by chance."""

    kind: Literal["grid", "random"]
    methods: Sequence[str]
    spaces: Sequence[str]
    """They are for methods that are defined there."""
    weights: Mapping[str, Axis]
    """They are by adapter; one that is left out has weight 1."""
    density: Axis
    lambda_: Axis
    rank: Axis
    trials: int
    seed: int
    """It is that of the draws, and of methods of chance."""


@dataclass(frozen=True, slots=True)
class SweepOrder:
    """A sweep as it is asked for."""

    label: str
    tasks: Mapping[str, tuple[str, str]]
    """It maps a task to (its own adapter, the metric that counts)."""
    items: tuple[EvaluationItem, ...]
    search: Search
    asked: Mapping[str, Any]
    """It is the search as it came, to be shown again."""
    max_tokens: int
    scopes: Scopes = EVERYTHING
    """They cover what may be named."""
    tenant: str = BUILT_IN_TENANT
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """A sweep, as far as it is measured."""

    evaluation: Evaluation
    plan: SweepPlan
    cells: tuple[Cell, ...]
    standings: tuple[Standing, ...]
    """Every candidate has one, in order."""
    front: tuple[int, ...]
    """Nothing else beats these targets in worst and mean retention."""
    best: Standing | None


class SweepService:
    """Runs sweeps as evaluations whose targets are single adapters first, and then the candidates."""

    def __init__(self, evaluations: EvaluationService, merges: MergeService) -> None:
        self._evaluations = evaluations
        self._merges = merges

    async def search_weights(self, order: WeightOrder) -> Evaluation:
        """Queue a search whose candidates follow from those before. Raises as `weight_sweep`, and as `submit`."""
        return await self._evaluations.submit(await weight_sweep(self._evaluations, order))

    async def submit(self, order: SweepOrder) -> Evaluation:
        """Find the candidates and queue their evaluation.

        Raises:
            InvalidSweep: no candidates, or too many; or items of a task that was not described.
            UnknownMethod, and what `Blends.resolve` refuses: a candidate.
            Besides, as `EvaluationService.submit`.
        """
        _require_tasks(order)
        adapters = tuple(dict.fromkeys(adapter for adapter, _ in order.tasks.values()))
        singles = [await self._evaluations.find(adapter, order.scopes, order.tenant) for adapter in adapters]
        points, candidates = await self._candidates(order, adapters)
        plan = SweepPlan(
            tasks={
                task: SweepTask(adapter=adapters.index(adapter), metric=metric)
                for task, (adapter, metric) in order.tasks.items()
            },
            first_candidate=len(singles),
            points=tuple(points),
            asked=order.asked,
        )
        draft = EvaluationDraft(
            kind="sweep",
            label=order.label,
            targets=(*singles, *candidates),
            items=order.items,
            metrics=tuple(dict.fromkeys(metric for _, metric in order.tasks.values())),
            max_tokens=order.max_tokens,
            tenant=order.tenant,
            key_id=order.key_id,
            search=plan.model_dump(mode="json"),
        )
        return await self._evaluations.submit(draft)

    async def _candidates(
        self, order: SweepOrder, adapters: Sequence[str]
    ) -> tuple[list[Point], list[EvaluationTarget]]:
        """What to try; two spellings of one recipe are one candidate."""
        search = order.search
        unknown = sorted(search.weights.keys() - set(adapters))
        if unknown:
            raise InvalidSweep(f"weights are given for {unknown[0]!r}, which is no task's adapter")
        axes: dict[str, Axis] = {_METHOD_IN: _methods_in(search)}
        axes |= {f"{WEIGHT_AXIS}{name}": axis for name, axis in search.weights.items()}
        axes |= {"density": search.density, "lambda": search.lambda_, "rank": search.rank}
        axes = {name: axis for name, axis in axes.items() if not isinstance(axis, Sequence) or axis}
        tried = grid(axes, _matters) if search.kind == "grid" else draw(axes, _matters, search.trials, search.seed)
        if len(adapters) + len(tried) > MAX_TARGETS:
            raise InvalidSweep(f"it has {len(tried)} candidates beside {len(adapters)} adapters, of {MAX_TARGETS}")
        found: dict[str, tuple[Point, EvaluationTarget]] = {}
        for point in map(_plain, tried):
            target = await self._pin(_recipe(point, adapters, search.seed), point, order)
            found.setdefault(target.pinned, (point, target))
        return [point for point, _ in found.values()], [target for _, target in found.values()]

    async def _pin(self, recipe: Recipe, point: Point, order: SweepOrder) -> EvaluationTarget:
        expression = print_expression(recipe, always_seed=method(recipe.method).random)
        assert expression is not None, "a candidate has plain weights only"
        try:
            return await self._evaluations.find(expression, order.scopes, order.tenant)
        except AmalgamError as error:
            raise error.saying(f"Candidate {dict(point)}: {error.message}").at("search") from error

    async def report(self, sweep_id: str) -> SweepReport:
        """How the candidates did so far.

        Raises:
            EvaluationNotFound: no sweep of that id.
        """
        evaluation = await self._evaluations.get(sweep_id)
        if evaluation.kind != "sweep" or evaluation.search is None:
            raise EvaluationNotFound(sweep_id)
        plan = SweepPlan.model_validate(evaluation.search)
        cells, _ = await self._evaluations.table(sweep_id)
        standings = _standings(evaluation, plan, cells)
        known = [one for one in standings if one.worst is not None and one.mean is not None]
        front = pareto_front([(one.worst or 0.0, one.mean or 0.0) for one in known])
        chosen = tuple(known[at].target for at in front)
        best = winner(standings)
        if plan.evolution is not None:
            first = elite(finished(evaluation, plan, cells))
            best = next((one for one in standings if first and one.target == first[0].target), None)
        return SweepReport(evaluation, plan, cells, standings, chosen, best)

    async def promote(
        self,
        sweep_id: str,
        name: str,
        target: str | None,
        *,
        set_default: bool,
        scopes: Scopes = EVERYTHING,
        stored_by: StoredBy | None = None,
    ) -> MergeAnswer:
        """Make a candidate an adapter: an ordinary merge job of its recipe, on the versions that were measured.

        Args:
            sweep_id: of a sweep that is done.
            name: of the adapter.
            target: candidate, by place or expression; None: the best one.
            set_default: whether the name means the result at once.
            scopes: what the recipe may name.
            stored_by: whose bytes the adapter counts as; None: the server's own.

        Raises:
            EvaluationNotFound, TargetNotEvaluated.
            EvaluationStateConflict: it is not done, so that the best one is not known.
            Besides, as `MergeService.submit`.
        """
        report = await self.report(sweep_id)
        evaluation = report.evaluation
        if target is not None:
            index = target_index(evaluation, target)
        elif evaluation.state != "done" or report.best is None:
            raise EvaluationStateConflict(sweep_id, f"{evaluation.state} without a best candidate", "promoted")
        else:
            index = report.best.target
        if index < report.plan.first_candidate:
            raise TargetNotEvaluated(str(target), [t.model for t in evaluation.targets[report.plan.first_candidate :]])
        recipe = _as_merge(evaluation.targets[index].pinned)
        return await self._merges.submit(name, recipe, set_default=set_default, scopes=scopes, stored_by=stored_by)


def _as_merge(pinned: str) -> Recipe:
    """The recipe of a candidate; one that was a version already is that version as a merge of itself."""
    return parse_expression(pinned)


def _require_tasks(order: SweepOrder) -> None:
    """Every item is of a described task, and every task has items that its metric applies to."""
    strange = sorted({item.task for item in order.items} - order.tasks.keys())
    if strange:
        raise InvalidSweep(f"items are of the task {strange[0]!r}, which 'tasks' does not describe")
    for task, (_, name) in order.tasks.items():
        metric = ANSWER_METRICS[name]
        if not any(given(metric, i.reference, i.pattern) is not None for i in order.items if i.task == task):
            raise MetricNotApplicable(name, f"a {metric.needs}", task)


def _methods_in(search: Search) -> tuple[str, ...]:
    """Methods with each of the spaces that they are defined in; alone where that is none."""
    strange = sorted(set(search.spaces) - {str(space) for space in Space})
    if strange:
        raise InvalidSweep(f"there is no space {strange[0]!r}")
    found: list[str] = []
    for name in search.methods:
        fitting = [f"{name}{_IN}{space}" for space in search.spaces if space in method(name).spaces]
        found += fitting or [name]
    return tuple(found)


def _plain(point: Point) -> Point:
    """The point with method and space apart."""
    name, _, space = str(point[_METHOD_IN]).partition(_IN)
    head = {"method": name, "space": space} if space else {"method": name}
    return head | {axis: value for axis, value in point.items() if axis != _METHOD_IN}


def _matters(axis: str, point: Point) -> bool:
    """Whether an axis says something about a candidate whose method is known."""
    if axis in (_METHOD_IN, "rank"):
        return True
    spec = method(str(point[_METHOD_IN]).partition(_IN)[0])
    if axis.startswith(WEIGHT_AXIS):
        return spec.weights is not Weights.NONE
    names = {field.alias or name for name, field in spec.parameters.model_fields.items()}
    return axis in names


def _recipe(point: Point, adapters: Sequence[str], seed: int) -> Recipe:
    inputs = tuple(RecipeInput(adapter=name, weight=float(point.get(f"{WEIGHT_AXIS}{name}", 1.0))) for name in adapters)
    rank = point.get("rank", "auto")
    return Recipe(
        method=str(point["method"]),
        space=str(point["space"]) if "space" in point else None,
        inputs=inputs,
        parameters={name: point[name] for name in ("density", "lambda") if name in point},
        seed=seed,
        output=Output(rank="auto" if rank == "auto" else int(rank)),
    )


def _standings(evaluation: Evaluation, plan: SweepPlan, cells: Sequence[Cell]) -> tuple[Standing, ...]:
    # A mean counts once the target has been asked all: until then it is of other items than its own adapter's.
    counts = {(cell.target, cell.task, cell.metric): cell.count for cell in cells}
    means = {(cell.target, cell.task, cell.metric): cell.mean for cell in cells}
    logs = frozenset(task for task, measure in plan.tasks.items() if measure.metric == LOG_LIKELIHOOD)

    def pair(target: int, task: str) -> tuple[float | None, float | None]:
        measure = plan.tasks[task]
        own, mine = (measure.adapter, task, measure.metric), (target, task, measure.metric)
        if mine not in means or own not in means or counts[mine] != counts[own]:
            return None, None
        return means[mine], means[own]

    return tuple(
        standing(target, {task: pair(target, task) for task in plan.tasks}, logs=logs)
        for target in range(plan.first_candidate, len(evaluation.targets))
    )
