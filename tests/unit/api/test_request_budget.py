from typing import Any

import pytest

from amalgam.api.fields.by_endpoint import check_fields
from amalgam.api.fields.pattern_cost import PatternCost, pattern_cost
from amalgam.api.fields.request_budget import (
    MAX_DETOKENIZED,
    MAX_LOGPROB_ENTRIES,
    MAX_PARTS_TOGETHER,
    MAX_TOKEN_IDS,
    body_limit,
    bounded_answer,
)
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused

CONTEXT = 2048
WORDS = "word " * 1000


def check(endpoint: Endpoint, body: dict[str, Any], context_tokens: int | None = CONTEXT) -> None:
    check_fields(endpoint, body, 50_000, context_tokens)


def strings(pattern: str, count: int = 1) -> dict[str, Any]:
    schema = {"type": "object", "properties": {f"k{i}": {"type": "string", "pattern": pattern} for i in range(count)}}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def tool(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema} | more}


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
PATTERN = {"type": "string", "pattern": "^.{1,1000}$"}
TOO_MUCH: list[tuple[Endpoint, dict[str, Any], str]] = [
    ("completions", {"prompt": [WORDS] * 16, "prompt_logprobs": 20}, "prompt_logprobs"),
    ("completions", {"prompt": [[1] * 1000] * 16, "prompt_logprobs": 1}, "prompt_logprobs"),
    ("completions", {"prompt": [1] * 1000, "prompt_logprobs": 1, "n": 16}, "prompt_logprobs"),
    ("completions", {"prompt": [1] * 1000, "echo": True, "logprobs": 1, "n": 16, "max_tokens": 1}, "echo"),
    ("completions", {"prompt": [WORDS] * 4, "echo": True, "logprobs": 5, "max_tokens": 1}, "echo"),
    ("completions", {"prompt": ["a"] * 4, "n": 16, "logprobs": 20, "max_tokens": 64}, "logprobs"),
    ("completions", {"prompt": "a", "logprobs": 20, "max_tokens": 800}, "logprobs"),
    ("chat_completions", CHAT | {"n": 16, "logprobs": True, "top_logprobs": 20, "max_tokens": 100}, "top_logprobs"),
    ("chat_completions", {"messages": [{"role": "user", "content": WORDS}], "prompt_logprobs": 20}, "prompt_logprobs"),
    ("chat_completions",
    {"messages": [{"role": "user", "content": [{"type": "text", "text": WORDS}]}], "prompt_logprobs": 20},
    "prompt_logprobs"),
    ("completions", {"prompt": [[1] * 1025] * 128}, "prompt"),
    ("completions", {"prompt": [[1] * (MAX_TOKEN_IDS // 64 + 1)] * 64}, "prompt"),
    ("completions", {"prompt": "a" * (CONTEXT * 32 + 1)}, "prompt"),
    ("completions", {"prompt": ["a", "a" * (CONTEXT * 32 + 1)]}, "prompt"),
    ("tokenize", {"prompt": "a" * (CONTEXT * 32 + 1)}, "prompt"),
    ("detokenize", {"tokens": [1] * (MAX_DETOKENIZED + 1)}, "tokens"),
    ("embeddings", {"input": [[1] * 65] * 2048}, "input"),
    ("chat_completions",
    {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 1000}] * 9}, "messages"),
    ("chat_completions",
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}] * 128}] * 65}, "messages"),
    ("chat_completions", CHAT | strings("^(((a|b){1,50}c){1,50}d){1,50}$"), "response_format"),
    ("chat_completions", CHAT | strings(r"^(\w*\s*){1,50}$"), "response_format"),
    ("chat_completions", CHAT | strings("^.{1,1000}$", 3), "response_format"),
    ("chat_completions", CHAT | strings("^(.{1,10},){1,10}$"), "response_format"),
    ("chat_completions", CHAT | {"structured_outputs": {"regex": "((a{1,99}){1,99}){1,99}"}}, "structured_outputs"),
    ("chat_completions", CHAT | {"tools": [tool(PATTERN)] * 3, "tool_choice": "required"}, "tools"),
    ("chat_completions", CHAT | {"tools": [tool(PATTERN, strict=True)] * 3}, "tools"),
    ("messages", CHAT | {"tools": [{"name": "f", "input_schema": PATTERN}] * 3, "tool_choice": {"type": "any"}},
    "tools"),
]  # fmt: skip
HARMLESS: list[tuple[Endpoint, dict[str, Any]]] = [
    ("completions", {"prompt": WORDS, "prompt_logprobs": 5}),
    ("completions", {"prompt": [WORDS] * 4, "echo": True, "logprobs": 1, "max_tokens": 1}),
    ("completions", {"prompt": "a", "logprobs": 20}),
    ("completions", {"prompt": ["a"] * 32, "logprobs": 20}),
    ("chat_completions", CHAT | {"logprobs": True, "top_logprobs": 20, "n": 16}),
    ("completions", {"prompt": "a", "logprobs": 20, "max_tokens": 100, "n": 4}),
    ("completions", {"prompt": "a", "logprobs": 20, "stream": True}),
    ("chat_completions", CHAT | {"logprobs": True}),
    ("chat_completions", CHAT | {"logprobs": True, "top_logprobs": 20, "max_tokens": 290}),
    ("chat_completions", CHAT | {"prompt_logprobs": 20}),
    ("completions", {"prompt": [[1] * 2048] * 64}),
    ("embeddings", {"input": ["a few words of text"] * 2048}),
    ("detokenize", {"tokens": [1] * MAX_DETOKENIZED}),
    ("tokenize", {"prompt": "a" * 60_000}),
    ("chat_completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 8}] * 1000}),
    ("chat_completions", CHAT | strings(r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}$", 2)),
    ("chat_completions", CHAT | strings(r"^[\w.+-]+@[\w-]+\.[a-z]{2,10}$", 2)),
    ("chat_completions", CHAT | strings(r"^(\d{1,3}\.){3}\d{1,3}$", 3)),
    ("chat_completions", CHAT | strings("^.{1,500}$", 4)),
    ("chat_completions", CHAT | {"structured_outputs": {"regex": r"(\w+\s?){1,10}"}}),
    ("chat_completions", CHAT | {"tools": [tool(PATTERN)] * 30}),
    ("chat_completions", CHAT | {"tools": [tool({"properties": {"a": {"type": "string"}}})] * 128}
    | {"tool_choice": "required"}),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "body", "param"), TOO_MUCH)
def test_what_is_too_much_together_is_refused_on_the_field_to_lower(
    endpoint: Endpoint, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(FieldRefused) as caught:
        check(endpoint, body)
    assert caught.value.param == param
    assert len(caught.value.message) < 250


@pytest.mark.parametrize(("endpoint", "body"), HARMLESS)
def test_what_people_send_passes(endpoint: Endpoint, body: dict[str, Any]) -> None:
    check(endpoint, body)


def test_log_probabilities_may_fill_a_long_context_once() -> None:
    body = {"prompt": "a", "logprobs": 0, "max_tokens": 4 * MAX_LOGPROB_ENTRIES}
    check("completions", body, 4 * MAX_LOGPROB_ENTRIES)
    with pytest.raises(FieldRefused):
        check("completions", body | {"logprobs": 1}, 4 * MAX_LOGPROB_ENTRIES)


@pytest.mark.parametrize(
    ("endpoint", "body", "limit"),
    [
        ("chat_completions", {"logprobs": True, "top_logprobs": 5}, {"max_completion_tokens": 1024}),
        ("chat_completions", {"logprobs": True, "top_logprobs": 20, "n": 16}, {"max_completion_tokens": 18}),
        ("chat_completions", {"logprobs": True}, {}),
        ("chat_completions", {"logprobs": True, "top_logprobs": 5, "stream": True}, {}),
        ("chat_completions", {"logprobs": True, "top_logprobs": 5, "max_tokens": 7}, {}),
        ("chat_completions", {"top_p": 1}, {}),
        ("responses", {"include": ["message.output_text.logprobs"], "top_logprobs": 5, "stream": True},
        {"max_output_tokens": 1024}),
        ("responses", {"top_logprobs": 5}, {}),
        ("completions", {"logprobs": 5}, {}),
        ("messages", {"max_tokens": 5}, {}),
    ],
)  # fmt: skip
def test_an_answer_of_unsaid_length_that_tells_log_probabilities_gets_the_limit_that_fits(
    endpoint: Endpoint, body: dict[str, Any], limit: dict[str, int]
) -> None:
    assert bounded_answer(endpoint, body, CONTEXT) == body | limit
    if limit:
        check(endpoint, ({"input": "a"} if endpoint == "responses" else CHAT) | body | limit)


def test_those_of_a_prompt_have_one_limit_however_long_the_context() -> None:
    """They are written in one step of the loop, whose time does not grow with the model."""
    for context in (None, 2048, 1 << 17):
        check("completions", {"prompt": [1] * (1 << 10), "prompt_logprobs": 15}, context)
        with pytest.raises(FieldRefused):
            check("completions", {"prompt": [[1] * (1 << 10)] * 17, "prompt_logprobs": 0}, context)


def test_where_the_context_is_unknown_texts_have_their_own_limit_only() -> None:
    check("completions", {"prompt": "a" * (1 << 20)}, None)
    with pytest.raises(FieldRefused):
        check("completions", {"prompt": "a" * ((1 << 22) + 1)}, None)


def test_many_parts_are_counted_over_all_messages() -> None:
    parts = [{"type": "text", "text": ""}] * 1024
    full = [{"role": "user", "content": parts}] * (MAX_PARTS_TOGETHER // 1024)
    check("chat_completions", {"messages": full})
    with pytest.raises(FieldRefused):
        check("chat_completions", {"messages": [*full, {"role": "user", "content": [{"type": "text", "text": ""}]}]})


def test_the_body_follows_the_context_and_never_passes_the_general_limit() -> None:
    assert body_limit("chat_completions", 2048, 4 << 20) == 256 << 10
    assert body_limit("chat_completions", 32_768, 4 << 20) == 1 << 20
    assert body_limit("chat_completions", 1 << 20, 4 << 20) == 4 << 20
    assert body_limit("completions", 2048, 4 << 20) == 1 << 20
    assert body_limit("embeddings", 2048, 4 << 20) == 4 << 20
    assert body_limit("completions", 2048, 1 << 16) == 1 << 16
    assert body_limit("chat_completions", None, 4 << 20) == 4 << 20


@pytest.mark.parametrize(
    ("expression", "copies", "nested"),
    [
        ("", 0, 0), ("abc", 3, 0), ("a?b*c+", 3, 0), ("a{10}", 10, 0), ("a{2,10}", 10, 0), ("a{3,}", 3, 0),
        ("(ab){5}", 10, 0), ("(a{5}b){5}", 30, 30), ("(a+)*", 1, 1), ("((a+)*)*", 1, 1), ("(a*)?", 1, 0),
        ("(?:[a-z]+,)*", 2, 5), ("(.+){9}", 9, 72), (r"(\w+|\S+)*", 2, 12), (r"\(a+\)*", 3, 0), ("[(a+)*]{7}", 7, 0),
        ("[]a]{2}", 2, 0), ("[^]a]{2}b{2}", 4, 0), ("a{x}b", 5, 0), ("(a{9}", 9, 0), ("a)b", 3, 0), ("{5}a", 1, 0),
        ("((((((a{999}){999}){999}){999}){999}){999}){999}", 1 << 30, 1 << 30), ("a|b|c", 3, 0), (r"a\{5}", 4, 0),
    ],
)  # fmt: skip
def test_repetitions_are_written_out(expression: str, copies: int, nested: int) -> None:
    assert pattern_cost(expression) == PatternCost(copies, nested)
