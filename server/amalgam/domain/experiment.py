"""Experiments on aliases: what is asked for, what was seen, and what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.feedback import OutcomeName
from amalgam.domain.sequential import Interval, Sample, difference_interval, interval, is_above, is_below

MAX_SHADOWS: Final = 4
RISK: Final = 0.05
"""It is the risk of a wrong end, where nobody says another."""
MOST_OUTCOMES: Final = 1_000_000

Assignment = Literal["request", "user", "key"]
"""It names what always meets the same target: nothing, so that each request draws anew; a ``user``; or a key."""
ExperimentState = Literal["running", "ended", "stopped"]
Verdict = Literal["better", "worse", "not_better", "undecided", "guard_errors", "guard_latency", "stopped", "replaced"]
"""It tells why an experiment ended: a candidate is better than the control; all are worse, or not better by as much as
matters; there were as many outcomes as it may have; a guard spoke; somebody stopped it; or somebody changed the alias.
"""

Share = Annotated[float, Field(ge=0, lt=1)]
Risk = Annotated[float, Field(gt=0, le=0.5)]


class Guard(BaseModel):
    """How much worse than the control a candidate may be before it is taken out."""

    model_config = ConfigDict(frozen=True)

    most_above: Share
    """It is a share of the requests above the control's."""


class LatencyGuard(Guard):
    """The same of slow requests."""

    slow_ms: int = Field(ge=1, le=3_600_000)
    """A request that takes longer is slow."""


class ExperimentSpec(BaseModel):
    """What an operator asks for."""

    model_config = ConfigDict(frozen=True)

    control: str
    """This target stays where nothing better is found; every other target of the alias is a candidate."""
    metric: OutcomeName | None = None
    """The feedback of this name decides; None: guards alone watch."""
    higher_is_better: bool = True
    minimum_effect: float = Field(default=0.02, gt=0, lt=1)
    """A difference of the means below it does not matter."""
    risk: Risk = RISK
    """It is the risk of ever naming a candidate better, or worse, that is not; shared by all candidates."""
    most_outcomes: int | None = Field(default=None, ge=1, le=MOST_OUTCOMES)
    """All targets together have at most so many; then it ends undecided. None: it goes on until it is decided."""
    promote: bool = False
    """It tells whether the alias means the winner alone once there is one."""
    assignment: Assignment = "request"
    errors: Guard | None = None
    latency: LatencyGuard | None = None
    shadows: tuple[str, ...] = Field(default=(), max_length=MAX_SHADOWS)
    """They get a copy of requests, and never answer."""


class Carried(BaseModel):
    """What an alias carries of its experiment: as much as a request needs to know."""

    model_config = ConfigDict(frozen=True)

    id: str
    assignment: Assignment = "request"
    slow_ms: int | None = None
    shadows: tuple[str, ...] = ()


class TargetCounts(BaseModel):
    """What was seen of one target."""

    model_config = ConfigDict(frozen=True)

    outcomes: int = 0
    total: float = 0.0
    """It is the sum of the outcomes."""
    requests: int = 0
    errors: int = 0
    slow: int = 0

    @property
    def outcome(self) -> Sample:
        """The feedback that decides."""
        return Sample(self.outcomes, self.total)

    @property
    def failed(self) -> Sample:
        """Requests that the server did not answer."""
        return Sample(self.requests, float(self.errors))

    @property
    def slowed(self) -> Sample:
        """Requests that took too long."""
        return Sample(self.requests, float(self.slow))


NOTHING: Final = TargetCounts()


class Ending(BaseModel):
    """How an experiment ended."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    winner: str | None = None
    """It names what is better, or stays; None where nothing was decided."""
    removed: tuple[str, ...] = ()
    """A guard took these candidates out."""
    changes_alias: bool = False
    """It tells whether the alias means something else for it."""


class Experiment(BaseModel):
    """One experiment."""

    model_config = ConfigDict(frozen=True)

    id: str
    alias: str
    candidates: tuple[str, ...]
    spec: ExperimentSpec
    state: ExperimentState
    ending: Ending | None = None
    counts: Mapping[str, TargetCounts] = Field(default_factory=dict)
    """By target, shadows among them, it has what was seen up to now, or up to its end."""
    created_at: datetime
    ended_at: datetime | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The control, then the candidates."""
        return (self.spec.control, *self.candidates)

    def of(self, target: str) -> TargetCounts:
        """What was seen of ``target``."""
        return self.counts.get(target, NOTHING)


@dataclass(frozen=True, slots=True)
class ExperimentPage:
    """One page of experiments in order of the aliases' names."""

    items: tuple[Experiment, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one target stands.

    Attributes:
        target: as the alias names it.
        mean: of its outcomes; None before the first.
        interval: of the mean.
        difference: of the mean and the control's; None of the control and of shadows.
        more_errors: of the share of errors and the control's; None as well where no guard watches them.
        more_slow: the same of slow requests.
    """

    target: str
    mean: float | None
    interval: Interval
    difference: Interval | None
    more_errors: Interval | None = None
    more_slow: Interval | None = None


def standings(experiment: Experiment) -> Sequence[Standing]:
    """Every target, the control first, then candidates, then shadows."""
    found = []
    for target in (*experiment.targets, *experiment.spec.shadows):
        seen = experiment.of(target).outcome
        against = _against_control(experiment, target) if target in experiment.candidates else (None, None, None)
        found.append(Standing(target, seen.mean, interval(seen, experiment.spec.risk), *against))
    return found


def _against_control(experiment: Experiment, target: str) -> tuple[Interval, Interval | None, Interval | None]:
    """Differences of a candidate from the control: of the mean, and of what the guards watch."""
    spec, risk = experiment.spec, _risk(experiment)
    usual, seen = experiment.of(spec.control), experiment.of(target)
    return (
        difference_interval(usual.outcome, seen.outcome, risk),
        None if spec.errors is None else difference_interval(usual.failed, seen.failed, risk),
        None if spec.latency is None else difference_interval(usual.slowed, seen.slowed, risk),
    )


def judge(experiment: Experiment) -> Ending | None:
    """How the experiment ends by what was seen; None: it goes on. Asked as often as one likes: see `sequential`."""
    return _guarded(experiment) or _decided(experiment)


def _risk(experiment: Experiment) -> float:
    """The risk of one candidate: together they are wrong no more often than one alone might be."""
    return experiment.spec.risk / max(1, len(experiment.candidates))


def _guarded(experiment: Experiment) -> Ending | None:
    spec, risk = experiment.spec, _risk(experiment)
    control = experiment.of(spec.control)
    for verdict, guard in (("guard_errors", spec.errors), ("guard_latency", spec.latency)):
        if guard is None:
            continue
        is_errors = verdict == "guard_errors"
        usual = control.failed if is_errors else control.slowed
        removed = []
        for candidate in experiment.candidates:
            counts = experiment.of(candidate)
            seen = counts.failed if is_errors else counts.slowed
            if is_above(usual, seen, guard.most_above, risk):
                removed.append(candidate)
        if removed:
            said: Verdict = "guard_errors" if is_errors else "guard_latency"
            return Ending(verdict=said, removed=tuple(removed), changes_alias=True)
    return None


def _decided(experiment: Experiment) -> Ending | None:
    spec = experiment.spec
    if spec.metric is None or not experiment.candidates:
        return None
    better = [name for name in experiment.candidates if _is_better(experiment, name)]
    if better:
        best = max(better, key=lambda name: _value(experiment, name))
        return Ending(verdict="better", winner=best, changes_alias=spec.promote)
    if all(_is_no_better(experiment, name) for name in experiment.candidates):
        are_worse = all(_is_worse(experiment, name) for name in experiment.candidates)
        verdict: Verdict = "worse" if are_worse else "not_better"
        return Ending(verdict=verdict, winner=spec.control, changes_alias=spec.promote)
    seen = sum(experiment.of(name).outcomes for name in experiment.targets)
    if spec.most_outcomes is not None and seen >= spec.most_outcomes:
        return Ending(verdict="undecided", winner=spec.control, changes_alias=spec.promote)
    return None


def _value(experiment: Experiment, candidate: str) -> float:
    """Its mean, the better the higher."""
    mean = experiment.of(candidate).outcome.mean or 0.0
    return mean if experiment.spec.higher_is_better else -mean


def _pair(experiment: Experiment, candidate: str) -> tuple[Sample, Sample]:
    """The lower and the higher mean, were the candidate better."""
    control, seen = experiment.of(experiment.spec.control).outcome, experiment.of(candidate).outcome
    return (control, seen) if experiment.spec.higher_is_better else (seen, control)


def _is_better(experiment: Experiment, candidate: str) -> bool:
    return is_above(*_pair(experiment, candidate), 0.0, _risk(experiment))


def _is_worse(experiment: Experiment, candidate: str) -> bool:
    return is_below(*_pair(experiment, candidate), 0.0, _risk(experiment))


def _is_no_better(experiment: Experiment, candidate: str) -> bool:
    """Worse, or better by less than matters."""
    return is_below(*_pair(experiment, candidate), experiment.spec.minimum_effect, _risk(experiment))
