"""Bodies and answers of sweeps on the admin plane."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amalgam.api.admin.evaluation_models import (
    MAX_LABEL,
    MAX_TOKENS,
    TASK_PATTERN,
    CellView,
    EvaluationView,
    ItemBody,
    SweepMetricName,
    cell_views,
)
from amalgam.api.admin.kit import NO_NUL, Body, NewName
from amalgam.domain.evaluation import MAX_ITEMS, MAX_TARGETS
from amalgam.domain.recipe import Recipe, RecipeInput
from amalgam.domain.search import Axis, Range, Standing
from amalgam.services.sweeps import Search, SweepReport

_MAX_VALUES = 64
_Adapter = Annotated[str, Field(min_length=1, max_length=256, pattern=NO_NUL)]
_Number = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
_Numbers = Annotated[tuple[_Number, ...], Field(min_length=1, max_length=_MAX_VALUES)]
_Density = Annotated[float, Field(gt=0, le=1)]
_Rank = Literal["auto"] | Annotated[int, Field(ge=1, le=512)]


class RangeBody(Range):
    """Numbers between two, drawn evenly; of random searches alone."""


_Axis = _Numbers | RangeBody


class SearchBody(Body):
    """What is tried. An axis that the method has no use for is left out of that candidate."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        json_schema_extra={
            "examples": [
                {"kind": "grid", "weights": {"sql": [0.7, 1.0], "json": [0.3, 0.5]}},
                {
                    "kind": "random",
                    "trials": 24,
                    "seed": 7,
                    "methods": ["task_arithmetic", "ties"],
                    "weights": {"sql": {"low": 0.3, "high": 1.2}, "json": {"low": 0.2, "high": 1.0}},
                    "density": [0.2, 0.5, 1.0],
                },
                {"kind": "weights", "trials": 48, "seed": 7, "budget_s": 300},
            ]
        },
    )

    kind: Literal["grid", "random", "weights"] = Field(
        default="grid",
        description="every combination; some of them by chance; or weights, each round drawn around the best so far, "
        "of the first of `methods`, and with it no other axis",
    )
    trials: int = Field(default=16, ge=1, le=MAX_TARGETS, description="most candidates, but of a grid")
    budget_s: float = Field(
        default=300.0, gt=0, le=86_400, allow_inf_nan=False, description="longest search for weights, seconds"
    )
    seed: int = Field(default=0, ge=0, lt=1 << 53, description="seed of the draws, and of methods of chance")
    methods: tuple[Annotated[str, Field(max_length=64)], ...] = Field(
        default=("task_arithmetic",), min_length=1, max_length=_MAX_VALUES, description="names of the merge methods"
    )
    spaces: tuple[Annotated[str, Field(max_length=32)], ...] = Field(
        default=(),
        max_length=8,
        description="spaces for methods that are defined there; left out: the method's default",
    )
    weights: dict[_Adapter, _Axis] = Field(
        default={}, max_length=16, description="weights of each adapter; left out: 1"
    )
    density: Annotated[tuple[_Density, ...], Field(max_length=_MAX_VALUES)] | RangeBody = ()
    lambda_: Annotated[tuple[_Number, ...], Field(max_length=_MAX_VALUES)] | RangeBody = Field(
        default=(), alias="lambda", description="scale of the result"
    )
    rank: tuple[_Rank, ...] = Field(
        default=(), max_length=_MAX_VALUES, description="rank of the result; left out: auto"
    )

    @model_validator(mode="after")
    def _of_weights(self) -> Self:
        axes = (self.weights, self.density, self.lambda_, self.rank, self.spaces[1:], self.methods[1:])
        if self.kind == "weights" and any(axes):
            raise ValueError("a search for weights has one method, at most one space, and no other axis")
        return self

    def recipe(self, adapters: Iterable[str]) -> Recipe:
        """The recipe at which a search for weights begins."""
        inputs = tuple(RecipeInput(adapter=name) for name in dict.fromkeys(adapters))
        return Recipe(method=self.methods[0], space=next(iter(self.spaces), None), inputs=inputs, seed=self.seed)

    def search(self) -> Search:
        """The search as the service has it."""
        assert self.kind != "weights", "see WeightOrder"
        weights: dict[str, Axis] = dict(self.weights)
        return Search(
            self.kind, self.methods, self.spaces, weights, self.density, self.lambda_, self.rank, self.trials, self.seed
        )


class SweepTaskBody(Body):
    """Whose score the candidates are measured against, and by what."""

    adapter: _Adapter = Field(description="the task's own adapter; every candidate is merged from all of these")
    metric: SweepMetricName = "exact_match"


class SweepBody(Body):
    """Tasks with their adapters, items of each, and a search."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "tasks": {"sql": {"adapter": "sql"}, "json": {"adapter": "json", "metric": "json_equal"}},
                    "items": [
                        {"task": "sql", "messages": [{"role": "user", "content": "…"}], "reference": "SELECT 1"},
                        {"task": "json", "messages": [{"role": "user", "content": "…"}], "reference": "{}"},
                    ],
                    "search": {"kind": "grid", "weights": {"sql": [0.7, 1.0], "json": [0.3, 0.5]}},
                }
            ]
        },
    )

    label: str = Field(default="", max_length=MAX_LABEL, pattern=NO_NUL)
    tasks: dict[Annotated[str, Field(pattern=TASK_PATTERN)], SweepTaskBody] = Field(min_length=1, max_length=16)
    items: tuple[ItemBody, ...] = Field(min_length=1, max_length=MAX_ITEMS)
    search: SearchBody
    max_tokens: int = MAX_TOKENS


class PromoteBody(Body):
    """Which candidate becomes which adapter."""

    name: NewName
    candidate: str | None = Field(
        default=None, min_length=1, max_length=1024, description="its expression or its target; left out: the winner",
        examples=[None],
    )  # fmt: skip
    set_default: bool = True


class CandidateView(BaseModel):
    """One candidate and how it did."""

    target: int = Field(description="its place among the targets", examples=[2])
    model: str = Field(description="what to put into a request's model to try it", examples=["0.5*json@1 + sql@1"])
    point: dict[str, Any] = Field(examples=[{"method": "task_arithmetic", "weight:sql": 1.0, "weight:json": 0.5}])
    retention: dict[str, float | None] = Field(
        description="score of each task over that of the task's own adapter; null until all is measured, and where "
        "that adapter scores 0",
        examples=[{"sql": 0.93, "json": 1.0}],
    )
    worst: float | None = Field(description="the smallest retention", examples=[0.93])
    mean: float | None = Field(examples=[0.965])
    on_front: bool = Field(description="whether no other is as good in worst and mean and better in one")


class SweepReportView(BaseModel):
    """A sweep, as far as it is measured."""

    evaluation: EvaluationView
    search: dict[str, Any] = Field(description="the search as it was asked for", examples=[{"kind": "grid"}])
    candidates: tuple[CandidateView, ...] = Field(description="the best first; those not known yet last")
    winner: int | None = Field(description="target with the largest worst, then mean, retention", examples=[2])
    table: tuple[CellView, ...] = Field(description="every mean, of single adapters too")

    @classmethod
    def of(cls, report: SweepReport) -> "SweepReportView":
        """The view of ``report``."""
        ordered = sorted(report.standings, key=_rank)
        return cls(
            evaluation=EvaluationView.of(report.evaluation),
            search=dict(report.plan.asked),
            candidates=tuple(_candidate(report, one) for one in ordered),
            winner=report.best.target if report.best is not None else None,
            table=cell_views(report.evaluation, report.cells),
        )


def _rank(one: Standing) -> tuple[bool, float, float, int]:
    return one.worst is None, -(one.worst or 0.0), -(one.mean or 0.0), one.target


def _candidate(report: SweepReport, one: Standing) -> CandidateView:
    return CandidateView(
        target=one.target,
        model=report.evaluation.targets[one.target].pinned,
        point=dict(report.plan.points[one.target - report.plan.first_candidate]),
        retention=dict(one.retention),
        worst=one.worst,
        mean=one.mean,
        on_front=one.target in report.front,
    )
