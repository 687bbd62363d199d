"""Means, comparisons, and the sign test."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amalgam.domain.evaluation import Measurement
from amalgam.domain.evaluation_table import Cell, compare, mean_table, refusals, sign_test


def test_means_are_by_target_task_and_metric_and_errors_count_apart() -> None:
    measured = [
        Measurement(target=1, item=0, values={"contains": 1.0}),
        Measurement(target=0, item=2, values={"contains": 0.0}),
        Measurement(target=0, item=0, values={"contains": 1.0, "regex": 0.0}),
        Measurement(target=0, item=1, values={"contains": 0.0}),
        Measurement(target=1, item=1, error_code="model_not_found"),
    ]
    assert mean_table(["a", "a", "b"], measured) == (
        Cell(0, "a", "contains", 0.5, 2),
        Cell(0, "a", "regex", 0.0, 1),
        Cell(0, "b", "contains", 0.0, 1),
        Cell(1, "a", "contains", 1.0, 1),
    )
    assert refusals(measured) == {(1, "model_not_found"): 1}


def test_a_comparison_counts_items_that_both_have() -> None:
    before = {0: {"m": 0.0}, 1: {"m": 1.0}, 2: {"m": 0.0}, 3: {"m": 1.0}}
    after = {0: {"m": 1.0}, 1: {"m": 1.0, "n": 1.0}, 2: {"m": 1.0}}
    [row] = compare(["t"] * 4, before, after)
    assert (row.task, row.metric, row.count, row.wins, row.losses) == ("t", "m", 3, 2, 0)
    assert (row.baseline, row.candidate) == pytest.approx((1 / 3, 1))
    assert row.difference == pytest.approx(2 / 3)
    assert row.p_value == 0.5


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 500), st.integers(0, 500))
def test_the_sign_test(wins: int, losses: int) -> None:
    p_value = sign_test(wins, losses)
    assert 0 <= p_value <= 1
    assert p_value == sign_test(losses, wins)
    assert sign_test(max(wins, losses) + 1, min(wins, losses)) <= p_value


def test_the_sign_test_by_hand() -> None:
    assert sign_test(0, 0) == sign_test(3, 3) == 1
    assert sign_test(5, 0) == 2 / 32
    assert sign_test(9, 1) == pytest.approx(2 * (1 + 10) / 1024)
    assert math.isfinite(sign_test(2000, 0))
