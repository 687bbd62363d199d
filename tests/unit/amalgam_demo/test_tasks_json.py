"""Equality of JSON by value: strict in types and keys, free in layout."""

import json
from typing import Any

import pytest

from amalgam_demo.json_equality import parse_json, same_json
from amalgam_demo.task_item import TaskItem
from amalgam_demo.tasks import generate
from amalgam_demo.tasks_json import score

REFERENCE = '{"pet": {"name": "Ziggy", "age": 3}, "tags": ["a", "b"], "paid": true, "price": 2.5, "note": null}'
ITEM = TaskItem("json", "test", "any", "any", frozenset(), "any", REFERENCE)


@pytest.mark.parametrize(
    "answer",
    [
        REFERENCE,
        json.dumps(json.loads(REFERENCE), indent=4),
        json.dumps(json.loads(REFERENCE), sort_keys=True),
        REFERENCE.replace("2.5", "2.50").replace("3", "3.0"),
        f"  ```json\n{REFERENCE}\n```  ",
    ],
)
def test_layout_and_the_order_of_keys_are_free(answer: Any) -> None:
    assert score(ITEM, answer)


@pytest.mark.parametrize(
    "answer",
    [
        REFERENCE.replace('"paid"', '"extra": 1, "paid"'),
        REFERENCE.replace(', "note": null', ""),
        REFERENCE.replace("true", "1"),
        REFERENCE.replace("true", '"true"'),
        REFERENCE.replace("3", '"3"'),
        REFERENCE.replace('["a", "b"]', '["b", "a"]'),
        REFERENCE.replace('["a", "b"]', '["a", "b", "b"]'),
        REFERENCE.replace("Ziggy", "ziggy"),
        REFERENCE.replace('"age": 3', '"age": 3, "age": 3'),
        REFERENCE.replace("2.5", "NaN"),
        REFERENCE[:-1],
        f"{REFERENCE} Done.",
        f"[{REFERENCE}]",
        "[" * 100_000,
        "",
    ],
)
def test_everything_else_is_wrong(answer: Any) -> None:
    assert not score(ITEM, answer)


def test_numbers_and_booleans_do_not_mix() -> None:
    assert same_json(1, 1.0)
    assert not same_json(True, 1)
    assert not same_json(0, False)
    assert not same_json(None, False)
    assert not same_json([], {})
    with pytest.raises(ValueError, match="twice"):
        parse_json('{"a": 1, "a": 1}')


def test_the_answer_can_be_read_off_the_text() -> None:
    """Every string of the reference stands in the prompt, so the task is reading, not guessing."""
    for item in generate("json", "test", 200, seed=1):
        for value in leaves(json.loads(item.reference)):
            if isinstance(value, str) and "-" not in value:
                assert value in item.prompt or value.capitalize() in item.prompt, (value, item.prompt)
            if isinstance(value, int) and not isinstance(value, bool):
                assert str(value) in item.prompt or f"{value:,}" in item.prompt


def test_both_answers_of_a_choice_occur_and_null_occurs() -> None:
    values = [value for item in generate("json", "train", 400, seed=2) for value in leaves(json.loads(item.reference))]
    assert 0.3 < values.count(True) / (values.count(True) + values.count(False)) < 0.7
    assert values.count(None) > 5


def leaves(value: Any) -> Any:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]
