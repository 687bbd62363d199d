"""Searches and their winners."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amalgam.domain.search import Point, Range, Standing, draw, grid, pareto_front, standing, winner
from amalgam.errors.evaluations import InvalidSweep

POINTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12)


def always(axis: str, point: Point) -> bool:
    return True


def only_ties_has_density(axis: str, point: Point) -> bool:
    return axis != "density" or point["method"] == "ties"


def test_a_grid_tries_each_meaning_once() -> None:
    axes: dict[str, Any] = {"method": ["sum", "ties"], "density": [0.2, 0.5], "w": [1.0]}
    assert grid(axes, only_ties_has_density) == [
        {"method": "sum", "w": 1.0},
        {"method": "ties", "density": 0.2, "w": 1.0},
        {"method": "ties", "density": 0.5, "w": 1.0},
    ]


def test_a_grid_has_an_end_and_no_ranges() -> None:
    with pytest.raises(InvalidSweep, match=r"10\^?|100000000"):
        grid({str(n): list(range(10)) for n in range(8)}, always)
    with pytest.raises(InvalidSweep, match="range"):
        grid({"w": Range(low=0, high=1)}, always)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 1 << 53), st.lists(st.floats(-9, 9), min_size=1, max_size=4, unique=True))
def test_draws_are_different_within_bounds_and_the_same_for_a_seed(trials: int, seed: int, values: list[float]) -> None:
    axes: dict[str, Any] = {"method": ["sum", "ties"], "density": Range(low=0.25, high=0.5), "w": values}
    found = draw(axes, only_ties_has_density, trials, seed)
    assert found == draw(axes, only_ties_has_density, trials, seed)
    assert len({tuple(point.items()) for point in found}) == len(found) <= trials
    for point in found:
        assert point["w"] in values
        assert ("density" in point) is (point["method"] == "ties")
        assert 0.25 <= point.get("density", 0.3) <= 0.5  # type: ignore[operator]


def test_draws_end_where_there_is_no_more() -> None:
    assert len(draw({"w": [1, 2, 3]}, always, 50, seed=1)) == 3
    assert draw({"w": Range(low=0, high=1)}, always, 3, seed=1) != draw({"w": Range(low=0, high=1)}, always, 3, seed=2)


def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points)
    assert bool(front) is bool(points)
    for place, point in enumerate(points):
        beaten_by = [other for other in points if beats(other, point)]
        assert (place in front) is (not beaten_by)
        assert not beaten_by or any(beats(points[of], point) for of in front)


def test_retention_is_over_the_tasks_own_adapter() -> None:
    found = standing(4, {"sql": (0.45, 0.9), "json": (0.9, 0.6)}, logs=frozenset())
    assert found.retention == {"sql": 0.5, "json": pytest.approx(1.5)}
    assert found.worst == 0.5
    assert found.mean == pytest.approx(1.0)
    of_logs = standing(4, {"sql": (-1.0, -0.5)}, logs=frozenset({"sql"}))
    assert of_logs.worst == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize("pair", [(None, 0.5), (0.5, None), (0.5, 0.0)])
def test_a_candidate_is_unknown_while_one_task_is(pair: tuple[float | None, float | None]) -> None:
    found = standing(4, {"sql": pair, "json": (0.5, 0.5)}, logs=frozenset())
    assert found.retention == {"sql": None, "json": 1.0}
    assert (found.worst, found.mean) == (None, None)


def test_the_winner_has_the_best_worst_then_mean_then_comes_first() -> None:
    def of(target: int, worst: float | None, mean: float | None) -> Standing:
        return Standing(target, {}, worst, mean)

    assert winner([of(2, 0.5, 0.9), of(3, 0.6, 0.6), of(4, 0.6, 0.7), of(5, 0.6, 0.7), of(6, None, None)]) == of(
        4, 0.6, 0.7
    )
    assert winner([of(2, 0.0, 0.0)]) == of(2, 0.0, 0.0)
    assert winner([of(6, None, None)]) is None
