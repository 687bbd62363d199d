"""Sweeps: which candidates a search tries, and which of them nothing else beats; the same for the same seed."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amalgam.domain.evolution import Evolution
from amalgam.errors.evaluations import InvalidSweep

MAX_COMBINATIONS: Final = 4096
"""It bounds a grid, before those that mean the same are counted once."""
WEIGHT_AXIS: Final = "weight:"
"""The axis of an adapter's weight begins with it."""
_DRAWS_PER_TRIAL: Final = 20
_DIGITS: Final = 4

Choice = bool | int | float | str
Point = Mapping[str, Choice]
"""It has a value for each axis that matters to the candidate."""


class Range(BaseModel):
    """Numbers between two, drawn evenly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float = Field(ge=-100, le=100)
    high: float = Field(ge=-100, le=100)

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


Axis = Sequence[Choice] | Range


@dataclass(frozen=True, slots=True)
class Standing:
    """How one candidate did."""

    target: int
    retention: Mapping[str, float | None]
    """It maps a task to its score over that of the task's own adapter; None where that one scores 0, or nothing was
    measured."""
    worst: float | None
    """It is the smallest retention; None where one is unknown."""
    mean: float | None


class SweepTask(BaseModel):
    """Whose score on a task is the measure, and by which metric."""

    model_config = ConfigDict(frozen=True)

    adapter: int
    """It is its place among the targets."""
    metric: str


class SweepPlan(BaseModel):
    """What a sweep keeps beside its evaluation: the targets from ``first_candidate`` on are the candidates."""

    model_config = ConfigDict(frozen=True)

    tasks: Mapping[str, SweepTask]
    first_candidate: int
    points: tuple[Mapping[str, Choice], ...]
    """It has those of each candidate."""
    asked: Mapping[str, Any]
    """It is the search as it was asked for."""
    evolution: Evolution | None = None
    """A search has it whose candidates follow from those before."""

    def own(self, target: int) -> frozenset[str]:
        """The tasks whose own adapter the target is."""
        return frozenset(task for task, measure in self.tasks.items() if measure.adapter == target)


def grid(axes: Mapping[str, Axis], matters: Callable[[str, Point], bool]) -> list[Point]:
    """Every combination, in order, each that means the same once.

    Args:
        axes: name -> values; those named first vary slowest.
        matters: whether an axis says something, given the values of the axes before it.

    Raises:
        InvalidSweep: an axis is a range, or there are more than ``MAX_COMBINATIONS``.
    """
    for name, axis in axes.items():
        if isinstance(axis, Range):
            raise InvalidSweep(f"{name!r} is a range, which a grid has no values of; list some, or search at random")
    lists = [list(axis) for axis in axes.values() if not isinstance(axis, Range)]
    size = math.prod(len(values) for values in lists)
    if size > MAX_COMBINATIONS:
        raise InvalidSweep(f"the grid has {size} combinations, of at most {MAX_COMBINATIONS}; search at random")
    points = (_point(dict(zip(axes, values, strict=True)), matters) for values in itertools.product(*lists))
    return list({tuple(point.items()): point for point in points}.values())


def draw(axes: Mapping[str, Axis], matters: Callable[[str, Point], bool], trials: int, seed: int) -> list[Point]:
    """Up to ``trials`` different combinations, drawn evenly and independently; fewer where there are no more."""
    # Not a secret: the same seed gives the same candidates.
    chance = random.Random(seed)  # noqa: S311
    found: dict[tuple[tuple[str, Choice], ...], Point] = {}
    for _ in range(trials * _DRAWS_PER_TRIAL):
        point = _point({name: _drawn(axis, chance) for name, axis in axes.items()}, matters)
        found.setdefault(tuple(point.items()), point)
        if len(found) == trials:
            break
    return list(found.values())


def _drawn(axis: Axis, chance: random.Random) -> Choice:
    if isinstance(axis, Range):
        return round(axis.low + (axis.high - axis.low) * chance.random(), _DIGITS)
    return axis[int(chance.random() * len(axis))]


def _point(values: Mapping[str, Choice], matters: Callable[[str, Point], bool]) -> Point:
    kept: dict[str, Choice] = {}
    for name, value in values.items():
        if matters(name, kept):
            kept[name] = value
    return kept


def standing(target: int, scores: Mapping[str, tuple[float | None, float | None]], *, logs: frozenset[str]) -> Standing:
    """Retention of one candidate.

    Args:
        target: its place among the targets.
        scores: task -> (its score, the score of the task's own adapter); None where nothing was measured.
        logs: tasks whose scores are logarithms; their retention is the ratio of what they are logarithms of.
    """
    retention = {task: _retention(mine, own, is_log=task in logs) for task, (mine, own) in scores.items()}
    known = [value for value in retention.values() if value is not None]
    if not known or len(known) < len(retention):
        return Standing(target, retention, None, None)
    return Standing(target, retention, min(known), math.fsum(known) / len(known))


def _retention(mine: float | None, own: float | None, *, is_log: bool) -> float | None:
    if mine is None or own is None:
        return None
    if is_log:
        return math.exp(min(mine - own, 100.0))
    return None if own == 0 else mine / own


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Places of the points that no other is at least as good as everywhere and better somewhere; more is better."""
    return [at for at, point in enumerate(points) if not any(_beats(other, point) for other in points)]


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def winner(standings: Sequence[Standing]) -> Standing | None:
    """The largest worst retention, then the largest mean, then the first; None where nothing is known of any."""
    known = [one for one in standings if one.worst is not None]
    return max(known, key=lambda one: (one.worst or 0.0, one.mean or 0.0, -one.target), default=None)
