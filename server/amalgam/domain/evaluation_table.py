"""What measurements come to: means by target, task and metric, and whether two targets differ."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from amalgam.domain.evaluation import Measurement


@dataclass(frozen=True, slots=True)
class Cell:
    """The mean of one metric over one task's items, for one target."""

    target: int
    task: str
    metric: str
    mean: float
    count: int
    """It is the mean of so many items."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two targets on the same items, by one metric."""

    task: str
    metric: str
    baseline: float
    candidate: float
    difference: float
    """It is the difference of the means, candidate less baseline."""
    count: int
    """Both have a value for so many items."""
    wins: int
    """On so many items the candidate is better."""
    losses: int
    p_value: float
    """It is the exact two-sided sign test over wins and losses: how likely so uneven a split were if both were alike.
    """


def mean_table(tasks: Sequence[str], measured: Iterable[Measurement]) -> tuple[Cell, ...]:
    """Means in order of target, then task, then metric.

    Args:
        tasks: of each item.
        measured: in any order; measurements without values count nowhere.
    """
    values: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    for one in measured:
        for metric, value in one.values.items():
            values[one.target, tasks[one.item], metric].append(value)
    return tuple(
        Cell(*key, mean=math.fsum(found) / len(found), count=len(found)) for key, found in sorted(values.items())
    )


def refusals(measured: Iterable[Measurement]) -> dict[tuple[int, str], int]:
    """(target, error code) -> how many items ended so."""
    found: dict[tuple[int, str], int] = defaultdict(int)
    for one in measured:
        if one.error_code is not None:
            found[one.target, one.error_code] += 1
    return dict(found)


def compare(
    tasks: Sequence[str], baseline: Mapping[int, Mapping[str, float]], candidate: Mapping[int, Mapping[str, float]]
) -> tuple[Comparison, ...]:
    """Both on the items and metrics that both have, by task and metric.

    Args:
        tasks: of each item.
        baseline: item -> metric -> value. candidate: the same.
    """
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for item in baseline.keys() & candidate.keys():
        for metric in baseline[item].keys() & candidate[item].keys():
            pairs[tasks[item], metric].append((baseline[item][metric], candidate[item][metric]))
    return tuple(_compared(task, metric, pairs[task, metric]) for task, metric in sorted(pairs))


def _compared(task: str, metric: str, pairs: Sequence[tuple[float, float]]) -> Comparison:
    first, second = (math.fsum(side) / len(pairs) for side in zip(*pairs, strict=True))
    wins, losses = sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)
    p_value = sign_test(wins, losses)
    return Comparison(task, metric, first, second, second - first, len(pairs), wins, losses, p_value)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of ``wins`` against ``losses`` under a fair coin; 1 without either."""
    tosses = wins + losses
    ways = tail = 1
    for heads in range(1, min(wins, losses) + 1):
        ways = ways * (tosses - heads + 1) // heads
        tail += ways
    # Integers divide rightly also where both are beyond a float.
    return min(1.0, float(2 * tail / (1 << tosses)))
