"""A search for weights goes the same way in whatever order its calls end, and where it is taken up again."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any, cast

from amalgam.domain.evaluation import Evaluation, EvaluationItem, EvaluationTarget, Measurement
from amalgam.domain.evolution import Evolution, Weights, first_weights, next_round
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.domain.search import SweepPlan, SweepTask
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.services.weight_search import WeightSearch, expression_at, point_of, weights_of

NAMES = ("sql", "json", "code")
OWN = len(NAMES)
ITEMS = tuple(EvaluationItem(task=name, prompt="x") for name in NAMES for _ in range(4))
RECIPE = Recipe(inputs=tuple(RecipeInput(adapter=f"{name}@1", weight=1.0) for name in NAMES))
EVOLUTION = Evolution(recipe=RECIPE.model_dump(mode="json"), candidates=18, seed=7, budget_s=60.0)
STEP = 0.2
"""Between two likelihoods, so that several candidates keep as much as each other."""


async def pin(expression: str, tenant: str = "default") -> EvaluationTarget:
    return EvaluationTarget(model=expression, pinned=expression, meaning=expression)


class Rows:
    """In the place of the registry: one sweep, and what was measured of it."""

    def __init__(self, sweep: Evaluation) -> None:
        self._take(sweep)
        self.measured: list[Measurement] = []

    async def extend(self, _: str, __: str, targets: Sequence[EvaluationTarget], search: dict[str, Any]) -> Evaluation:
        self._take(self.sweep.model_copy(update={"targets": tuple(targets), "search": search}))
        return self.sweep

    def _take(self, sweep: Evaluation) -> None:
        self.sweep = sweep
        self.plan = SweepPlan.model_validate(sweep.search)
        self.weights = [weights_of(point, RECIPE) for point in self.plan.points]

    def opened(self) -> WeightSearch:
        search = WeightSearch(self.sweep, self.plan, ITEMS, cast(EvaluationRegistry, self), "me", pin, lambda: 0.0)
        for one in sorted(self.measured, key=lambda one: (one.target, one.item)):
            search.note(one)
        return search


async def queued() -> Rows:
    weights = next_round((), (), first_weights(RECIPE), EVOLUTION.seed, EVOLUTION.candidates)
    plan = SweepPlan(
        tasks={name: SweepTask(adapter=at, metric="kept") for at, name in enumerate(NAMES)},
        first_candidate=OWN,
        points=tuple(point_of(RECIPE, one) for one in weights),
        asked={},
        evolution=EVOLUTION,
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    targets = [*NAMES, *(expression_at(EVOLUTION, one) for one in weights)]
    return Rows(
        Evaluation(
            id="one", kind="sweep", label="", metrics=("kept",), tasks=dict.fromkeys(NAMES, 4), max_tokens=1,
            targets=tuple([await pin(one) for one in targets]), items_digest="", state="running", done=0, total=0,
            search=plan.model_dump(mode="json"), created_at=now, updated_at=now,
        )
    )  # fmt: skip


def answered(rows: Rows, target: int, index: int) -> Measurement:
    """What the item comes to: always the same, whoever asks at whatever moment."""
    if target < OWN:
        values = {"kept": float(index % 4 > 0), "kept_likelihood": (0.9, 0.3, 0.7, 1.0)[index % 4]}
        return Measurement(target=target, item=index, values=values)
    weights = rows.weights[target - OWN]
    mine = weights[NAMES.index(ITEMS[index].task)]
    gap = mine - 0.25 * (sum(weights) - mine) - 0.2 * math.fsum(w * w for w in weights) - index % 4 / 9
    likelihood = round(math.exp(min(0.0, gap)) / STEP) * STEP
    return Measurement(target=target, item=index, values={"kept": float(gap >= 0), "kept_likelihood": likelihood})


async def worked_off(chance: Random, stopped_after: int | None = None) -> tuple[Weights, ...]:
    """Measure, four calls at a time of which some take long, until nothing is left; the weights that were tried."""
    rows = await queued()
    search = rows.opened()
    while True:
        shared = search.missing()
        running: list[tuple[int, int]] = []
        while True:
            while len(running) < 4 and (taken := next(shared, None)) is not None:
                running.append(taken)
            if not running:
                break
            target, index = running.pop(-1 if chance.random() < 0.9 else 0)
            one = answered(rows, target, index)
            rows.measured.append(one)
            search.note(one)
            if len(rows.measured) == stopped_after:
                search = rows.opened()
                shared, running = search.missing(), []
        if not await search.extend():
            return tuple(rows.weights)


async def test_the_same_candidates_are_tried_in_whatever_order_calls_end() -> None:
    ways = {await worked_off(Random(seed)) for seed in range(40)}
    assert len(ways) == 1
    assert len(ways.pop()) > 12


async def test_the_same_candidates_are_tried_where_another_run_goes_on() -> None:
    whole = await worked_off(Random(0))
    for after in range(2, 160, 9):
        assert await worked_off(Random(after), stopped_after=after) == whole
