from typing import Any

import pytest

from amalgam.api.fields import constraints as bounds
from amalgam.api.fields.constraints import json_schema, regex, response_format, structured_outputs
from amalgam.errors.requests import FieldRefused


def properties(count: int, **schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"k{i}": {"type": "string"} | schema for i in range(count)}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


TAKEN = [
    True, {}, properties(bounds.MAX_PROPERTIES), properties(bounds.MAX_AUTOMATA, maxLength=20),
    {"enum": list(range(bounds.MAX_ENUM))}, {"type": "array", "maxItems": bounds.MAX_REPEAT, "minItems": 0},
    {"type": "string", "pattern": r"^[a-z]{2,5}-\d+$"}, {"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}},
    {"properties": {"pattern": {"type": "string"}, "maxLength": {"type": "integer"}, "enum": {}, "$ref": {}}},
    {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}, nested(20),
]  # fmt: skip
REFUSED: list[Any] = [
    None, 5, [], "x", nested(40), properties(bounds.MAX_PROPERTIES + 1),
    properties(bounds.MAX_AUTOMATA + 1, maxLength=2),
    properties(9, pattern="a+"), properties(17, minLength=1), {"enum": list(range(bounds.MAX_ENUM + 1))},
    {"anyOf": [{"type": "string"}] * (bounds.MAX_BRANCHES + 1)}, {"items": {"oneOf": [{}] * 33, "allOf": [{}] * 32}},
    {"maxLength": bounds.MAX_REPEAT + 1}, {"maxItems": 10**9}, {"minItems": -1}, {"a": [{"minProperties": 10**6}]},
    {"maximum": 1 << 63}, {"minimum": -(10**400)}, {"enum": [10**30]},
    {"const": "x" * (bounds.MAX_SCHEMA_CHARACTERS + 1)},
    {"a" * (bounds.MAX_SCHEMA_CHARACTERS + 1): 1}, {"examples": ["x" * 700] * 100},
    {"items": [{"x": [{}] * bounds.MAX_SCHEMA_NODES}]}, {"$ref": "http://169.254.169.254/x"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": ""}, {"$ref": 5}, {"items": {"pattern": "(a+)+" * 10}}, {"patternProperties": {"a" * 600: {}}},
    {"patternProperties": {f"{c}+": {} for c in "abcdefghi"}}, {"properties": {"x": {"pattern": "a{5000}"}}},
]  # fmt: skip


@pytest.mark.parametrize("schema", TAKEN)
def test_schemas_of_common_size_pass(schema: Any) -> None:
    json_schema("f", schema)


@pytest.mark.parametrize("schema", REFUSED)
def test_schemas_that_compile_for_ever_are_refused(schema: Any) -> None:
    with pytest.raises(FieldRefused) as caught:
        json_schema("f", schema)
    assert caught.value.param == "f"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    "expression",
    ["", "a|b", r"\d{3}-\w+", "a{1000}", r"\++\*\{9999999\}", "[a-z]{0,1000}", "a+" * bounds.MAX_QUANTIFIERS,
    "(a+)+$", r"\\+"],
)  # fmt: skip
def test_expressions_of_common_size_pass(expression: str) -> None:
    regex("f", expression)


@pytest.mark.parametrize(
    "expression",
    [
        "a" * 513, "a+" * (bounds.MAX_QUANTIFIERS + 1), "(a|aa|aaa)*" * 20, "a{1001}", "a{0,99999999999999999999}",
        "a{1001,}",
        "a\x00b", "a\nb", "\ud800", 5, None, ["a"], "(a?)" * 17, r"\\*" * 17,
    ],
)  # fmt: skip
def test_expressions_that_run_away_are_refused(expression: Any) -> None:
    with pytest.raises(FieldRefused):
        regex("f", expression)


@pytest.mark.parametrize(
    "value",
    [
        "json", 5, {}, {"type": "structural_tag"}, {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": 5},
        {"type": "json_schema", "json_schema": {"schema": {"maxLength": 10**9}}},
        {"type": "json_schema", "schema": {"maxItems": 10**9}}, {"type": "text", "x": nested(40)},
        {"type": ["json_schema"]},
    ],
)  # fmt: skip
def test_formats_are_bounded(value: Any) -> None:
    with pytest.raises(FieldRefused):
        response_format("response_format", value)


def test_formats_pass() -> None:
    for value in (
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}},
        {"type": "json_schema", "name": "x", "schema": {"type": "object"}},
    ):
        response_format("response_format", value)


@pytest.mark.parametrize(
    "value",
    [
        5, {"grammar": "root ::= 'a'"}, {"structural_tag": "{}"}, {"_backend": "outlines"},
        {"whitespace_pattern": ".*"},
        {"json": "{}"}, {"json": {"maxItems": 10**9}}, {"regex": "a{9999}"}, {"choice": []}, {"choice": "ab"},
        {"choice": [5]},
        {"choice": ["a"] * 1025}, {"choice": ["a" * 4096] * 5}, {"json_object": 1}, {"disable_any_whitespace": "x"},
    ],
)  # fmt: skip
def test_vllms_spelling_is_bounded(value: Any) -> None:
    with pytest.raises(FieldRefused):
        structured_outputs("structured_outputs", value)


def test_vllms_spelling_passes() -> None:
    for value in (
        {"json": {"type": "string"}},
        {"regex": "a+"},
        {"choice": ["a", "b"]},
        {"json_object": True},
        {"json": None},
    ):
        structured_outputs("structured_outputs", value)
