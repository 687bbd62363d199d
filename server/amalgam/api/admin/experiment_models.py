"""Bodies and answers of experiments on the admin plane."""

from collections.abc import Callable
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from amalgam.api.admin.alias_models import MAX_REVISION
from amalgam.api.admin.kit import Body, Page, Timestamp
from amalgam.domain.alias import MAX_TARGET_LENGTH
from amalgam.domain.experiment import (
    MAX_SHADOWS,
    MOST_OUTCOMES,
    RISK,
    Assignment,
    Experiment,
    ExperimentSpec,
    ExperimentState,
    Guard,
    LatencyGuard,
    Standing,
    Verdict,
    standings,
)
from amalgam.domain.feedback import NAME_PATTERN, OutcomeSum
from amalgam.domain.sequential import Interval, Sample, interval

_MODEL: Final = r"^[^\x00]*[^\x00\s][^\x00]*$"
_Share = Annotated[
    float, Field(ge=0, lt=1, allow_inf_nan=False, description="share of requests, 0 to 1", examples=[0.02])
]
_Model = Annotated[str, Field(min_length=1, max_length=MAX_TARGET_LENGTH, pattern=_MODEL)]
Pair = tuple[float, float]


class GuardBody(Body):
    """A guard on errors."""

    most_above: _Share


class LatencyGuardBody(GuardBody):
    """A guard on slow requests."""

    slow_ms: int = Field(ge=1, le=3_600_000, description="a request that takes longer is slow", examples=[2000])


class ExperimentBody(Body):
    """An experiment, as an operator asks for it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "metric": "thumb",
                    "minimum_effect": 0.02,
                    "promote": True,
                    "errors": {"most_above": 0.02},
                    "latency": {"slow_ms": 2000, "most_above": 0.05},
                }
            ]
        },
    )

    control: _Model | None = Field(default=None, description="the target that stays; null: the one of the most weight")
    metric: str | None = Field(
        default=None, pattern=NAME_PATTERN, description="the name of the feedback that decides", examples=["thumb"]
    )
    higher_is_better: bool = True
    minimum_effect: float = Field(
        default=0.02, gt=0, lt=1, allow_inf_nan=False, description="a smaller difference of the means does not matter"
    )
    risk: float = Field(
        default=RISK,
        ge=1e-6,
        le=0.5,
        allow_inf_nan=False,
        description="probability of ever ending wrongly, however often one looks",
    )
    most_outcomes: int | None = Field(
        default=None,
        ge=1,
        le=MOST_OUTCOMES,
        strict=True,
        description="most outcomes of all targets; then it ends undecided",
    )
    promote: bool = Field(default=False, description="whether the alias means the winner alone at the end")
    assignment: Assignment = Field(default="request", description="what always meets the same target")
    errors: GuardBody | None = Field(default=None, description="guard that takes a candidate out that fails more often")
    latency: LatencyGuardBody | None = Field(
        default=None, description="guard that takes a candidate out that is slow more often"
    )
    shadows: tuple[_Model, ...] = Field(
        default=(),
        max_length=MAX_SHADOWS,
        description="models that get copies of requests and never answer",
        examples=[["sql@5"]],
    )
    revision: int | None = Field(
        default=None, ge=1, le=MAX_REVISION, description="revision of the alias that it is meant for", examples=[7]
    )

    def spec(self) -> ExperimentSpec:
        """What it asks for."""
        return ExperimentSpec(
            control=self.control or "",
            metric=self.metric,
            higher_is_better=self.higher_is_better,
            minimum_effect=self.minimum_effect,
            risk=self.risk,
            most_outcomes=self.most_outcomes,
            promote=self.promote,
            assignment=self.assignment,
            errors=None if self.errors is None else Guard(most_above=self.errors.most_above),
            latency=None if self.latency is None else LatencyGuard(**self.latency.model_dump()),
            shadows=self.shadows,
        )


class TargetView(BaseModel):
    """What was seen of one target."""

    model: str = Field(examples=["sql@4"])
    role: str = Field(description="control, candidate or shadow", examples=["candidate"])
    outcomes: int = Field(description="feedback that counts", examples=[412])
    mean: float | None = Field(description="mean of it, 0 to 1; null before the first", examples=[0.81])
    interval: Pair = Field(description="the mean is not outside of it, at the risk asked for", examples=[(0.76, 0.86)])
    difference: Pair | None = Field(
        description="interval of the mean less the control's; null but of candidates", examples=[(0.01, 0.14)]
    )
    more_errors: Pair | None = Field(
        description="interval of the share of errors less the control's, for the guard; null but of candidates",
        examples=[(-0.01, 0.004)],
    )
    more_slow: Pair | None = Field(
        description="interval of the share of slow requests less the control's, likewise", examples=[(-0.02, 0.03)]
    )
    requests: int = Field(description="requests that ended", examples=[5120])
    errors: int = Field(description="requests that the server did not answer", examples=[3])
    slow: int = Field(description="requests that took longer than slow_ms", examples=[41])


class GuardView(BaseModel):
    """A guard."""

    most_above: float = Field(examples=[0.02])
    slow_ms: int | None = Field(
        description="milliseconds from which on a request is slow; null of errors", examples=[2000]
    )


class ExperimentView(BaseModel):
    """An experiment as the API shows it."""

    id: str = Field(examples=["exp-5f0c2b9e7d1a4c3b8e6f9a0d"])
    alias: str = Field(examples=["support"])
    state: ExperimentState
    metric: str | None
    higher_is_better: bool
    minimum_effect: float
    risk: float
    most_outcomes: int | None
    promote: bool
    assignment: Assignment
    errors: GuardView | None
    latency: GuardView | None
    targets: tuple[TargetView, ...] = Field(description="the control, then candidates, then shadows")
    verdict: Verdict | None = Field(description="why it ended; null while it runs")
    winner: str | None = Field(description="what is better, or stays", examples=["sql@4"])
    removed: tuple[str, ...] = Field(description="candidates that a guard took out")
    changed_alias: bool = Field(description="whether the alias means something else for it")
    created_at: Timestamp
    ended_at: Timestamp | None

    @classmethod
    def of(cls, experiment: Experiment, shown: Callable[[str], str]) -> "ExperimentView":
        """The view of ``experiment``, with models as ``shown`` says them."""
        spec, ending = experiment.spec, experiment.ending
        same = {"metric", "higher_is_better", "minimum_effect", "risk", "most_outcomes", "promote", "assignment"}
        return cls(
            **spec.model_dump(include=same),
            id=experiment.id,
            alias=experiment.alias,
            state=experiment.state,
            errors=None if spec.errors is None else GuardView(most_above=spec.errors.most_above, slow_ms=None),
            latency=None if spec.latency is None else GuardView(**spec.latency.model_dump()),
            targets=tuple(_target(experiment, standing, shown) for standing in standings(experiment)),
            verdict=None if ending is None else ending.verdict,
            winner=None if ending is None or ending.winner is None else shown(ending.winner),
            removed=() if ending is None else tuple(map(shown, ending.removed)),
            changed_alias=ending is not None and ending.changes_alias,
            created_at=experiment.created_at,
            ended_at=experiment.ended_at,
        )


class ExperimentPageView(Page[ExperimentView]):
    """One page of experiments, by alias."""


class OutcomeView(BaseModel):
    """Feedback of one name about the answers of one target."""

    target: str = Field(examples=["sql@4"])
    version: str = Field(description="what answered", examples=["sql@4"])
    name: str = Field(examples=["thumb"])
    count: int = Field(examples=[412])
    mean: float = Field(examples=[0.81])
    interval: Pair = Field(description="the mean is not outside of it, at a risk of 5 %", examples=[(0.76, 0.86)])

    @classmethod
    def of(cls, found: OutcomeSum, shown: Callable[[str], str]) -> "OutcomeView":
        """The view of ``found``."""
        seen = Sample(found.count, found.total)
        mean = found.total / found.count
        pair = _pair(interval(seen, RISK))
        target, version = shown(found.target), shown(found.version)
        return cls(target=target, version=version, name=found.name, count=found.count, mean=mean, interval=pair)


class OutcomesView(BaseModel):
    """All feedback about an alias' answers that is kept."""

    data: tuple[OutcomeView, ...]


def _target(experiment: Experiment, standing: Standing, shown: Callable[[str], str]) -> TargetView:
    counts, name = experiment.of(standing.target), standing.target
    is_shadow = name in experiment.spec.shadows
    return TargetView(
        model=shown(name),
        role="shadow" if is_shadow else "control" if name == experiment.spec.control else "candidate",
        outcomes=counts.outcomes,
        mean=standing.mean,
        interval=_pair(standing.interval),
        difference=None if standing.difference is None else _pair(standing.difference),
        more_errors=None if standing.more_errors is None else _pair(standing.more_errors),
        more_slow=None if standing.more_slow is None else _pair(standing.more_slow),
        requests=counts.requests,
        errors=counts.errors,
        slow=counts.slow,
    )


def _pair(found: Interval) -> Pair:
    return found.low, found.high
