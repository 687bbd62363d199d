"""The run of a search for weights: what is measured next, what is given up, and when there is nothing more to try."""

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from amalgam.domain.evaluation import Evaluation, EvaluationItem, EvaluationTarget, Measurement
from amalgam.domain.evolution import ELITE, Evolution, Tried, Weights, elite, first_weights, next_round
from amalgam.domain.expression import print_expression
from amalgam.domain.recipe import Recipe
from amalgam.domain.scopes import EVERYTHING
from amalgam.domain.search import WEIGHT_AXIS, Point, SweepPlan
from amalgam.merge.methods import method
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.services.inference import Inference
from amalgam.services.weight_board import Board

Pin = Callable[[str, str], Awaitable[EvaluationTarget]]
"""It tells what an expression means, for a tenant."""


class WeightSearches:
    """Opens searches.

    Args:
        registry: of evaluations.
        inference: what expressions mean.
        clock: monotonic seconds.
    """

    def __init__(
        self, registry: EvaluationRegistry, inference: Inference, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry
        self._inference = inference
        self._clock = clock

    async def open(self, sweep: Evaluation, items: Sequence[EvaluationItem], holder: str) -> "WeightSearch | None":
        """The search of ``sweep``, as far as it was measured; None where its targets are all known.

        Args:
            sweep: held by ``holder``.
            items: its items.
            holder: who measures.
        """
        plan = None if sweep.search is None else SweepPlan.model_validate(sweep.search)
        if plan is None or plan.evolution is None:
            return None
        search = WeightSearch(sweep, plan, items, self._registry, holder, self._pin, self._clock)
        for one in await self._registry.measured(sweep.id):
            search.note(one)
        return search

    async def _pin(self, expression: str, tenant: str) -> EvaluationTarget:
        target = await self._inference.found(lambda: self._inference.resolve(expression, EVERYTHING, tenant))
        pinned = target.recipe or target.engine_name
        return EvaluationTarget(model=expression, pinned=pinned, meaning=pinned)


class WeightSearch:
    """One search that runs here."""

    def __init__(
        self,
        sweep: Evaluation,
        plan: SweepPlan,
        items: Sequence[EvaluationItem],
        registry: EvaluationRegistry,
        holder: str,
        pin: Pin,
        clock: Callable[[], float],
    ) -> None:
        assert plan.evolution is not None
        self.sweep = sweep
        self._plan = plan
        self._evolution: Evolution = plan.evolution
        self._items = items
        self._board = Board(plan, items)
        self._order = in_turn(items)
        self._registry = registry
        self._holder = holder
        self._pin = pin
        self._clock = clock
        self._until = clock() + max(0.0, plan.evolution.budget_s - plan.evolution.spent_s)
        self._tried: dict[int, Tried] = {}

    def note(self, one: Measurement) -> None:
        """Something was measured."""
        self._board.note(one)

    def _measured_whole(self) -> tuple[Tried, ...]:
        """The candidates that are measured to the end; none while what they are compared with is not known.

        A call of an adapter may take longer than all calls of a candidate, and what the candidate keeps of half an
        adapter is another number than what it keeps in the end.
        """
        if not self._board.knows_the_inputs():
            return ()
        for target in range(self._plan.first_candidate, len(self.sweep.targets)):
            if target not in self._tried and self._board.is_complete(target):
                weights = weights_of(self._plan.points[target - self._plan.first_candidate], self._recipe)
                self._tried[target] = Tried(target, weights, self._board.kept(target))
        return tuple(self._tried.values())

    def missing(self) -> Iterator[tuple[int, int]]:
        """(target, item) that is worth measuring at the moment it is asked for: each adapter's own items first."""
        for target in range(len(self.sweep.targets)):
            own = self._plan.own(target) if target < self._plan.first_candidate else None
            for index in self._order:
                if own is None and (self._clock() > self._until or self._is_hopeless(target)):
                    break
                if not self._board.has(target, index) and (own is None or self._items[index].task in own):
                    yield target, index

    def _is_hopeless(self, target: int) -> bool:
        """Whether nothing that is measured still could bring the candidate among those that the search goes on from."""
        if target in self._board.refused:
            return True
        best = elite(self._measured_whole())
        return len(best) == ELITE and min(self._board.kept(target)) < min(best[-1].kept)

    async def extend(self) -> bool:
        """Lay out the next round; False where the time is over, or enough is tried, or nothing new is found.

        Raises:
            EvaluationStopped: it does not run here any more. Besides, what `Blends.resolve` refuses.
        """
        now, evolution = self._clock(), self._evolution
        known = [weights_of(point, self._recipe) for point in self._plan.points]
        room = evolution.candidates - len(known)
        if now > self._until or room <= 0:
            return False
        drawn = next_round(self._measured_whole(), known, first_weights(self._recipe), evolution.seed, room)
        if not drawn:
            return False
        targets = [await self._pin(expression_at(evolution, weights), self.sweep.tenant) for weights in drawn]
        points = (*self._plan.points, *(point_of(self._recipe, weights) for weights in drawn))
        spent = evolution.model_copy(update={"spent_s": evolution.budget_s - (self._until - now)})
        self._plan = self._plan.model_copy(update={"points": points, "evolution": spent})
        search = self._plan.model_dump(mode="json")
        self.sweep = await self._registry.extend(self.sweep.id, self._holder, (*self.sweep.targets, *targets), search)
        return True

    @property
    def _recipe(self) -> Recipe:
        return Recipe.model_validate(self._evolution.recipe)


def in_turn(items: Sequence[EvaluationItem]) -> list[int]:
    """Places of the items, one of each task in turn, so that a lost skill shows early."""
    places: Mapping[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        places[item.task].append(place)
    turns = [(turn, place) for group in places.values() for turn, place in enumerate(group)]
    return [place for _, place in sorted(turns)]


def expression_at(evolution: Evolution, weights: Weights) -> str:
    """What to put into a request's model to try the weights."""
    recipe = evolution.at(weights)
    expression = print_expression(recipe, always_seed=method(recipe.method).random)
    assert expression is not None, "a candidate has plain weights only"
    return expression


def point_of(recipe: Recipe, weights: Weights) -> Point:
    """A candidate as reports show it."""
    found: dict[str, bool | int | float | str] = {"method": recipe.method}
    return found | {f"{WEIGHT_AXIS}{e.adapter}": w for e, w in zip(recipe.inputs, weights, strict=True)}


def weights_of(point: Point, recipe: Recipe) -> Weights:
    """The weights of `point_of`."""
    return tuple(float(point[f"{WEIGHT_AXIS}{entry.adapter}"]) for entry in recipe.inputs)
