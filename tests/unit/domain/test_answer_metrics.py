"""Metrics: what each takes for right, and what it does not."""

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amalgam.api.admin.evaluation_models import MetricName, SweepMetricName
from amalgam.domain import answer_metrics
from amalgam.domain.answer_metrics import ANSWER_METRICS, contains, exact_match, json_equal, json_valid

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_the_api_takes_the_names_of_the_table() -> None:
    assert get_args(SweepMetricName) == tuple(ANSWER_METRICS)
    assert get_args(MetricName) == tuple(name for name in ANSWER_METRICS if name != "kept")


def test_texts() -> None:
    assert exact_match(" 4\n", "4") == 1
    assert exact_match("4.", "4") == exact_match("A", "a") == 0
    assert contains("it is 4.", " 4 ") == 1
    assert contains("it is", "4") == 0


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_json_equals_itself_however_it_is_written(value: object) -> None:
    compact, wide = json.dumps(value, separators=(",", ":")), json.dumps(value, indent=3, sort_keys=True)
    assert json_valid(wide) == json_equal(wide, compact) == 1
    assert json_equal(json.dumps([value]), compact) == 0


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ('{"a": 1, "b": [1.0]}', '{"b": [1], "a": 1.0}', True),
        ("[1, 2]", "[2, 1]", False),
        ("[1]", "[1, 1]", False),
        ("true", "1", False),
        ("0", "false", False),
        ("null", "0", False),
        ('{"a": null}', "{}", False),
        ('"1"', "1", False),
        ("1", "1 1", False),
        ("```json\n1\n```", "1", False),
    ],
)
def test_json_values(one: str, other: str, *, equal: bool) -> None:
    assert json_equal(one, other) == json_equal(other, one) == equal


@pytest.mark.parametrize("text", ["", "NaN", "-Infinity", "{", "{'a': 1}", "[1,]", "[" * 100_000, "9" * 5000])
def test_what_is_no_json(text: str) -> None:
    assert json_valid(text) == json_equal(text, text) == 0


def test_a_metric_applies_where_an_item_has_what_it_needs() -> None:
    def applying(reference: str | None, pattern: str | None) -> set[str]:
        applies = {m.name for m in ANSWER_METRICS.values() if answer_metrics.given(m, reference, pattern) is not None}
        assert "kept" in applies
        return applies - {"kept"}

    assert applying(None, None) == {"json_valid"}
    assert applying(None, "a") == {"json_valid", "regex"}
    assert applying("SELECT", None) == {"json_valid", "exact_match", "contains", "log_likelihood"}
    assert applying("{}", None) - applying("SELECT", None) == {"json_equal"}
