"""Chats as clients keep them and send them again, in the one spelling that vLLM reads."""

import json
from typing import Any

import pytest

from amalgam.api.fields.by_endpoint import check_fields
from amalgam.api.fields.plain_chats import plain_choice, plain_message, plain_tool
from amalgam.errors.requests import FieldRefused

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
NESTED = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
DUMPED: dict[str, Any] = {
    "role": "assistant", "content": None, "refusal": None, "audio": None, "function_call": None, "name": None,
    "annotations": None, "tool_calls": [{"id": "1", "type": "function", "index": None,
                                         "function": {"name": "f", "arguments": "{}"}}],
}  # fmt: skip


def test_nulls_are_as_if_they_were_not_there() -> None:
    assert plain_message(DUMPED) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    said = {"role": "assistant", "content": "a", "tool_calls": None, "name": None}
    assert plain_message(said) == {"role": "assistant", "content": "a"}
    assert DUMPED["name"] is None, "the client's own body is not changed"


def test_a_tool_that_gave_nothing_gave_an_empty_text() -> None:
    assert plain_message({"role": "tool", "tool_call_id": "1", "content": None})["content"] == ""
    assert plain_message({"role": "user", "content": None}) == {"role": "user"}
    assert plain_message({"role": "assistant", "content": None})["content"] is None


@pytest.mark.parametrize("arguments", [{"a": [1]}, {}, None])
def test_arguments_that_are_an_object_become_its_text(arguments: Any) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    [plain] = plain_message({"role": "assistant", "content": "", "tool_calls": [call]})["tool_calls"]
    assert plain["type"] == "function"
    assert json.loads(plain["function"]["arguments"]) == (arguments or {})


@pytest.mark.parametrize("message", [
    {"role": "user", "content": "a"}, {"role": "assistant", "content": "a", "tool_calls": []}, 5, None, "a",
    {"role": "assistant", "tool_calls": [5]}, {"role": "assistant", "tool_calls": "x"},
    {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]},
])  # fmt: skip
def test_what_is_plain_or_no_message_stays(message: Any) -> None:
    assert plain_message(message) == message


@pytest.mark.parametrize("tool", [
    {"type": "function", "name": "f", "parameters": SCHEMA}, {"name": "f", "input_schema": SCHEMA}, NESTED,
    {"type": "custom", "name": "f", "input_schema": SCHEMA},
])  # fmt: skip
def test_functions_of_any_dialect_are_those_of_a_chat(tool: dict[str, Any]) -> None:
    assert plain_tool(tool) == NESTED


NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(("choice", "plain"), [
    ("auto", "auto"), ("any", "required"), ({"type": "any"}, "required"), ({"type": "auto"}, "auto"),
    ({"type": "none"}, "none"), ({"type": "tool", "name": "f"}, NAMED), ({"type": "function", "name": "f"}, NAMED),
    (NAMED, NAMED), ("f", "f"), ({"type": "custom"}, {"type": "custom"}), ({"type": 5}, {"type": 5}),
])  # fmt: skip
def test_choices_of_any_dialect_are_those_of_a_chat(choice: Any, plain: Any) -> None:
    assert plain_choice(choice) == plain


def test_a_choice_where_there_is_nothing_to_choose_is_left_away() -> None:
    for choice in ("auto", "none", {"type": "auto"}):
        assert check_fields("chat_completions", {"tool_choice": choice}).body == {}
    assert check_fields("chat_completions", {"tool_choice": "required"}).body == {"tool_choice": "required"}


def test_a_forced_tool_of_another_dialect_is_bound_as_one_of_a_chat() -> None:
    body = {"tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "tool", "name": "f"}}
    checked = check_fields("chat_completions", body).body
    assert checked["tool_choice"] == NAMED
    assert checked["tools"][0]["function"]["strict"] is True


def test_words_of_the_responses_dialect_that_vllm_does_not_know_are_left_out_and_named() -> None:
    asked = {"include": ["web_search_call.action.sources", "reasoning.encrypted_content"], "service_tier": "fast"}
    checked = check_fields("responses", asked)
    assert checked.body == {"include": ["reasoning.encrypted_content"]}
    assert checked.ignored == ["service_tier", "include.web_search_call.action.sources"]


@pytest.mark.parametrize("change", [{"type": ""}, {"type": None}, {"id": None}], ids=str)
def test_what_clients_leave_empty_in_a_call_is_as_absent(change: dict[str, Any]) -> None:
    call = {"id": "call_look", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = {"role": "assistant", "content": None, "tool_calls": [call | change]}
    body = check_fields("chat_completions", {"model": "m", "messages": [said]}).body
    assert body["messages"][0]["tool_calls"] == [call]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"id": 5}, "id of each of tool_calls must be a text"), ({"type": "zz"}, "must be of type function")],
    ids=str,
)
def test_what_vllm_would_find_out_while_it_fills_the_template_is_refused_before(
    change: dict[str, Any], words: str
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    with pytest.raises(FieldRefused, match=words):
        check_fields(
            "chat_completions", {"model": "m", "messages": [{"role": "assistant", "tool_calls": [call | change]}]}
        )
    blocks = [{"type": "tool_use", "id": 5, "name": "look", "input": {}}]
    with pytest.raises(FieldRefused, match="must be a text"):
        check_fields("chat_completions", {"model": "m", "messages": [{"role": "assistant", "content": blocks}]})


def test_a_function_whose_type_is_null_is_a_function() -> None:
    tool = {"type": None, "function": {"name": "look", "parameters": {}}}
    assert plain_tool(tool) == {**tool, "type": "function"}
