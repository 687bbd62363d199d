"""Forced tools: which are bound to their schemas, in every dialect, and which stay as they were sent."""

import json
from typing import Any

import pytest
import xgrammar

from amalgam.api.fields.by_endpoint import check_fields
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused

CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
HI = [{"role": "user", "content": "Hi"}]


def chat(choice: Any, schema: Any = CITY, **more: Any) -> tuple[Endpoint, dict[str, Any]]:
    function = {"name": "weather", "parameters": schema} | more
    return "chat_completions", {
        "messages": HI,
        "tool_choice": choice,
        "tools": [{"type": "function", "function": function}],
    }


def responses(choice: Any, schema: Any = CITY, **more: Any) -> tuple[Endpoint, dict[str, Any]]:
    tool = {"type": "function", "name": "weather", "parameters": schema} | more
    return "responses", {"input": "Hi", "tool_choice": choice, "tools": [tool]}


def messages(choice: Any, schema: Any = CITY, **more: Any) -> tuple[Endpoint, dict[str, Any]]:
    tool = {"name": "weather", "input_schema": schema} | more
    return "messages", {"messages": HI, "max_tokens": 4, "tool_choice": choice, "tools": [tool]}


def strictness(asked: tuple[Endpoint, dict[str, Any]]) -> Any:
    endpoint, body = asked
    [tool] = check_fields(endpoint, {"model": "m"} | body).body["tools"]
    return tool.get("function", tool).get("strict")


FORCED: list[tuple[Any, Any]] = [
    (chat, "required"),
    (chat, {"type": "function", "function": {"name": "weather"}}),
    (
        chat,
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"function": {"name": "weather"}}]}},
    ),
    (responses, "required"),
    (responses, {"type": "function", "name": "weather"}),
    (responses, {"type": "allowed_tools", "mode": "required", "tools": []}),
    (messages, {"type": "any"}),
    (messages, {"type": "tool", "name": "weather"}),
]
FREE: list[tuple[Any, Any]] = [
    (chat, "auto"),
    (chat, "none"),
    (chat, None),
    (chat, {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "weather"}}]}}),
    (responses, "auto"),
    (responses, {"type": "allowed_tools", "mode": "auto", "tools": []}),
    (messages, {"type": "auto"}),
    (messages, {"type": "none"}),
]


@pytest.mark.parametrize(("asked", "choice"), FORCED)
def test_a_forced_tool_is_strict_whatever_it_says(asked: Any, choice: Any) -> None:
    """Clients send ``false`` by themselves, and who does expects less than this."""
    assert strictness(asked(choice)) is True
    for said in (None, False, True):
        assert strictness(asked(choice, strict=said)) is True


@pytest.mark.parametrize(("asked", "choice"), FREE)
def test_a_tool_that_is_the_models_choice_stays_as_it_was_sent(asked: Any, choice: Any) -> None:
    assert strictness(asked(choice)) is None
    for said in (False, True):
        assert strictness(asked(choice, strict=said)) is said


@pytest.mark.parametrize("part", [
    {"type": "string", "pattern": "^(?=a)"},
    {"type": "object"},
    {"type": "object", "patternProperties": {"^x": {}}},
    {"type": "string", "format": "date"},
    {"allOf": [{"type": "string"}]},
    {"not": {"type": "string"}},
    {"anyOf": [{"type": "object"}, {"type": "null"}]},
    {"type": "array", "items": {"type": "object"}},
    {"type": "number", "minimum": 0, "exclusiveMinimum": True},
    {"type": "integer", "minimum": 0.5},
    {"type": ["integer", "null"], "exclusiveMaximum": 1.5},
    {"type": "integer", "minimum": 5, "maximum": 3},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4},
    {"type": "number", "minimum": 3, "exclusiveMaximum": 3},
    {"type": "integer", "minimum": 1e30},
    {"type": "number", "maximum": "3"},
    {"type": "number", "exclusiveMinimum": 1e-9},
], ids=str)  # fmt: skip
def test_a_schema_of_which_the_constraint_would_take_something_away_is_left_alone(part: dict[str, Any]) -> None:
    """An object without named keys may hold anything, and would come out empty."""
    schema = {"type": "object", "properties": {"value": part}}
    assert strictness(chat("required", schema)) is None
    assert strictness(chat("required", {"type": "object", "properties": {}, "$defs": {"v": part}})) is None


@pytest.mark.parametrize("part", [
    {"type": "object", "additionalProperties": True},
    {"type": "object", "additionalProperties": {"type": "string"}},
    {"type": ["string", "null"], "default": None, "title": "Value"},
    {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
    {"enum": ["a", "b"]},
    {"type": "array", "items": {"type": "string"}, "maxItems": 3},
    {"$ref": "#/$defs/city"},
    {"type": "integer", "exclusiveMinimum": -1000, "exclusiveMaximum": 1000},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
    {"type": "number", "minimum": 3, "maximum": 3},
    {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "null"}]},
], ids=str)  # fmt: skip
def test_what_pydantic_and_zod_write_is_bound(part: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"value": part}, "$defs": {"city": CITY}}
    assert strictness(chat("required", schema)) is True
    # The engine's constraint takes it, so that nobody is refused for a schema that was made strict here.
    xgrammar.Grammar.from_json_schema(json.dumps(schema))


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = {"type": "object", "properties": {"pattern": {"type": "string"}, "format": {"type": "string"}}}
    assert strictness(chat("required", schema)) is True


def test_the_clients_own_body_is_not_changed() -> None:
    endpoint, body = chat("required")
    check_fields(endpoint, {"model": "m"} | body)
    assert "strict" not in body["tools"][0]["function"]


def test_allowed_tools_of_a_chat_are_those_tools_and_their_mode() -> None:
    """vLLM reads that choice in the Responses dialect alone."""
    tools = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("a", "b", "c")]
    named = [{"type": "function", "function": {"name": "c"}}, {"type": "function", "function": {"name": "a"}}]
    for mode in ("auto", "required"):
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
        body = check_fields("chat_completions", {"messages": HI, "tools": tools, "tool_choice": choice}).body
        assert body["tool_choice"] == mode
        assert [tool["function"]["name"] for tool in body["tools"]] == ["a", "c"]
    for wrong in ({}, {"mode": "any", "tools": named}, {"mode": "auto", "tools": "c"}, {"mode": "auto", "tools": [5]}):
        choice = {"type": "allowed_tools", "allowed_tools": wrong}
        with pytest.raises(FieldRefused) as refused:
            check_fields("chat_completions", {"messages": HI, "tools": tools, "tool_choice": choice})
        assert refused.value.param == "tool_choice"


def test_anthropics_earlier_name_of_an_answers_schema_is_read() -> None:
    asked = {"type": "json_schema", "schema": CITY}
    body = check_fields("messages", {"messages": HI, "max_tokens": 4, "output_format": asked}).body
    assert body["output_config"] == {"format": asked}
    both = {"output_format": asked, "output_config": {"effort": "low"}}
    body = check_fields("messages", {"messages": HI, "max_tokens": 4} | both).body
    assert body["output_config"] == {"format": asked, "effort": "low"}
    assert "output_format" not in body
    for wrong in ({"type": "json_schema", "schema": 5}, "json"):
        with pytest.raises(FieldRefused):
            check_fields("messages", {"messages": HI, "max_tokens": 4, "output_format": wrong})
