"""The grammar of a forced call takes objects alone, from every model's template, also where a tool is not strict."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

import xgrammar
from openai.types.responses import CustomTool, FunctionTool
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam
from vllm.tool_parsers import structural_tag_registry as registry
from xgrammar.structural_tag import JSONSchemaFormat
from xgrammar.testing import _is_grammar_accept_string

from amalgam.engine.cpu import patches
from amalgam.engine.object_arguments import ANY_OBJECT, bind_to_objects

FREE: dict[str, Any] = {"type": "object", "properties": {"when": {"type": "string", "pattern": "^(?=2)"}}}
ALIKE = sorted(registry.SUPPORTED_STRUCTURAL_TAG_MODELS - {"hy_v4"})
"""The one that is left out needs the tokenizer of its model."""


@pytest.fixture(autouse=True)
def bound() -> Iterator[None]:
    original = registry.get_model_structural_tag
    bind_to_objects()
    bind_to_objects()
    yield
    patches.put("vllm.tool_parsers.structural_tag_registry:get_model_structural_tag", original)


def chat_tool(**more: Any) -> ChatCompletionToolsParam:
    return ChatCompletionToolsParam(type="function", function={"name": "look", "parameters": FREE} | more)


def formats(node: Any) -> Iterator[JSONSchemaFormat]:
    if isinstance(node, JSONSchemaFormat):
        yield node
    elif hasattr(type(node), "model_fields"):
        for name in type(node).model_fields:
            yield from formats(getattr(node, name))
    elif isinstance(node, list | tuple):
        for one in node:
            yield from formats(one)


@pytest.mark.parametrize("model", ALIKE)
@pytest.mark.parametrize("strict", [None, False])
def test_a_forced_call_takes_objects_alone_whatever_the_parser(model: str, strict: bool | None) -> None:
    tag = registry.get_model_structural_tag(model, [chat_tool(strict=strict)], "required", False)
    assert tag is not None
    arguments = list(formats(tag.format))
    assert not any(form.json_schema is True and form.style == "json" for form in arguments)
    xgrammar.Grammar.from_structural_tag(json.dumps(tag.model_dump()))


def test_any_object_is_taken_and_no_other_value() -> None:
    grammar = xgrammar.Grammar.from_json_schema(json.dumps(ANY_OBJECT))
    for said in ("{}", '{"when": "2026"}', '{"a": {"b": [1, null]}, "c": 5}'):
        assert _is_grammar_accept_string(grammar, said), said
    for said in ('"text"', "[1]", "5", "null", "true"):
        assert not _is_grammar_accept_string(grammar, said), said


def test_a_strict_tool_keeps_its_schema_and_a_free_choice_its_freedom() -> None:
    tag = registry.get_model_structural_tag("hermes", [chat_tool(strict=True)], "required", False)
    assert [form.json_schema for form in formats(tag.format)] == [FREE, FREE]
    assert registry.get_model_structural_tag("hermes", [chat_tool()], "auto", False) is None
    assert registry.get_model_structural_tag("hermes", [chat_tool()], "none", False) is None


NOTHING: list[dict[str, Any]] = [
    {"type": "object", "properties": {}},
    {"type": "object", "properties": {}, "required": [], "additionalProperties": False, "title": "now", "$defs": {}},
]


@pytest.mark.parametrize("model", ALIKE)
@pytest.mark.parametrize("parameters", NOTHING, ids=["bare", "written out"])
def test_a_forced_tool_without_arguments_ends_at_once(model: str, parameters: dict[str, Any]) -> None:
    """Blanks between the braces would be all that a model may write, for as long as it has tokens."""
    tag = registry.get_model_structural_tag(model, [chat_tool(parameters=parameters, strict=True)], "required", False)
    assert tag is not None
    for form in formats(tag.format):
        if form.style == "json" and isinstance(form.json_schema, dict):
            grammar = xgrammar.Grammar.from_json_schema(json.dumps(form.json_schema))
            assert _is_grammar_accept_string(grammar, "{}")
            assert not _is_grammar_accept_string(grammar, "{ }")
    xgrammar.Grammar.from_structural_tag(json.dumps(tag.model_dump()))


@pytest.mark.parametrize("parameters", [
    {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}},
    {"type": "object", "properties": {}, "additionalProperties": True},
    {"type": "object", "properties": {"a": {"type": "string"}}},
    {"type": "object", "properties": {}, "patternProperties": {"^x": {}}},
    {"type": ["object", "null"], "properties": {}},
], ids=str)  # fmt: skip
def test_a_tool_that_may_have_arguments_keeps_its_schema(parameters: dict[str, Any]) -> None:
    tag = registry.get_model_structural_tag(
        "hermes", [chat_tool(parameters=parameters, strict=True)], "required", False
    )
    assert [form.json_schema for form in formats(tag.format)] == [parameters, parameters]


def test_a_forced_tool_of_free_text_has_one_string() -> None:
    patch = CustomTool(type="custom", name="apply_patch", description="Edits files.")
    tag = registry.get_model_structural_tag("hermes", [patch], "required", False)
    [schema, _] = [form.json_schema for form in formats(tag.format)]
    assert isinstance(schema, dict)
    assert list(schema["properties"]) == ["input"]
    function = FunctionTool(type="function", name="look", parameters=FREE, strict=False)
    assert registry.get_model_structural_tag("hermes", [patch, function], "auto", False) is None
