import math
from typing import Any

import pytest

from amalgam.api.field_checks import MAX_NESTING, MAX_PROMPTS
from amalgam.api.fields import FIELDS, MAX_CHOICES, MAX_LOGPROBS, check_fields
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"prompt": "hi"}
VOCABULARY = 100


def refusal(endpoint: Endpoint, body: dict[str, Any]) -> FieldRefused:
    with pytest.raises(FieldRefused) as caught:
        check_fields(endpoint, body, VOCABULARY)
    return caught.value


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def message(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


BOUNDS: list[tuple[Endpoint, str, list[Any], list[Any]]] = [
    ("chat_completions", "n", [1, MAX_CHOICES], [0, -1, MAX_CHOICES + 1, 10**400, 1.0, True, "1", [1]]),
    ("chat_completions", "temperature", [0, 2, 0.7], [-0.01, 2.01, 10**400, "1", True, math.nan, math.inf]),
    ("chat_completions", "top_p", [0.5, 1], [-1, 1.5, "x"]),
    ("chat_completions", "top_k", [-1, 0, 50], [-2, 1 << 21, 1.5]),
    ("chat_completions", "seed", [-(1 << 63), (1 << 63) - 1], [1 << 63, -(1 << 63) - 1, 0.5]),
    ("chat_completions", "max_tokens", [1, 1 << 20], [0, -1, (1 << 20) + 1, 1e3]),
    ("chat_completions", "max_completion_tokens", [1], [0, 1 << 40]),
    ("chat_completions", "min_tokens", [0, 5], [-1, 1 << 40]),
    ("chat_completions", "logprobs", [True, False], [1, 5, "true"]),
    ("chat_completions", "prompt_logprobs", [0, MAX_LOGPROBS], [-1, MAX_LOGPROBS + 1]),
    ("chat_completions", "stop", ["a", ["a"] * 16], ["", ["a"] * 17, "a" * 257, [1], [""], {"a": 1}]),
    ("chat_completions", "stop_token_ids", [[], [0, 99], [1] * 64], [[100], [-1], [1] * 65, [True], ["1"], 5]),
    ("chat_completions", "logit_bias", [{}, {"0": 1, "99": -100}],
    [{"100": 1}, {"a": 1}, {"1": 101}, {"-1": 1}, {"²": 1}, {"1" * 11: 1}, {"9" * 5000: 1},
    {str(i): 0 for i in range(1025)}, []]),
    ("chat_completions", "frequency_penalty", [-2, 2], [-2.1, 2.1]),
    ("chat_completions", "repetition_penalty", [0.01, 10], [0, -1, 11]),
    ("chat_completions", "user", ["x" * 256], ["x" * 257, 1]),
    ("chat_completions", "metadata", [{"a": deep(10)}], [deep(MAX_NESTING + 1)]),
    ("chat_completions", "stream", [True], [1, "true"]),
    ("chat_completions", "tool_choice", ["auto", {"type": "function", "function": {"name": "f"}}], [deep(40)]),
    ("completions", "logprobs", [0, MAX_LOGPROBS], [-1, MAX_LOGPROBS + 1, True]),
    ("completions", "prompt", ["a", ["a"] * MAX_PROMPTS, [1, 99], [[1], [2, 3]]],
    [[], ["a"] * (MAX_PROMPTS + 1), [100], [-1], [[100]], [[]], [""], ["a", 1], [1, "a"], [[1], "a"], [True],
    [[True]], [None], {"a": 1}, 7, [deep(3)]]),
    ("completions", "suffix", ["a"], ["a" * ((1 << 16) + 1)]),
    ("detokenize", "tokens", [[], [1, 99]], [[100], [1.5], "1"]),
    ("tokenize", "prompt", ["a"], [["a"], "a" * ((1 << 22) + 1)]),
    ("embeddings", "input", ["a", ["a"], [1], [[1]]], [["a"] * 65, [100], [[100]]]),
    ("embeddings", "dimensions", [1], [0]),
    ("responses", "input", ["a", [{"role": "user", "content": "a"}]], [[], 5, [{"type": "mcp_call"}], [deep(40)]]),
    ("responses", "include", [["message.output_text.logprobs"]], [["a"] * 17, ["a" * 65], [1]]),
    ("responses", "max_output_tokens", [1], [0]),
    ("messages", "stop_sequences", [["a"]], [["a"] * 17]),
    ("messages", "system", ["a", [{"type": "text", "text": "a"}]],
    [[{"type": "image", "source": {"url": "http://x"}}], 5]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("endpoint", "field", "taken", "refused"), BOUNDS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_each_field_has_its_bounds(endpoint: Endpoint, field: str, taken: list[Any], refused: list[Any]) -> None:
    for value in [None, *taken]:
        check_fields(endpoint, {field: value}, VOCABULARY)
    for value in refused:
        error = refusal(endpoint, {field: value})
        assert error.param == field
        assert error.status == 400
        assert len(error.message) < 200, "the value is not repeated"


def test_every_field_of_every_endpoint_refuses_something() -> None:
    monsters = ["x" * (1 << 23), -1e300, 10**400, deep(1000), [[deep(40)]] * 100]
    for endpoint, table in FIELDS.items():
        for field in table:
            assert any(_is_refused(endpoint, field, monster) for monster in monsters), (endpoint, field)


def _is_refused(endpoint: Endpoint, field: str, value: Any) -> bool:
    try:
        check_fields(endpoint, {field: value})
    except FieldRefused:
        return True
    return False


@pytest.mark.parametrize(
    "field",
    [
        "chat_template", "chat_template_kwargs", "kv_transfer_params", "ec_transfer_params", "cache_salt", "priority",
        "use_beam_search", "best_of", "length_penalty", "mm_processor_kwargs", "media_io_kwargs", "mm_payload",
        "vllm_xargs",
        "prompt_embeds", "documents", "request_id", "session_id", "truncate_prompt_tokens", "logprob_token_ids",
        "allowed_token_ids", "bad_words", "logits_processors", "guided_regex", "guided_json", "background",
        "previous_response_id", "repetition_detection", "thinking_token_budget",
    ],
)  # fmt: skip
def test_what_is_not_in_the_tables_is_refused_by_name_whatever_it_holds(field: str) -> None:
    for endpoint in FIELDS:
        for value in (None, False, 1, "x", {}):
            error = refusal(endpoint, {field: value})
            assert error.param == field
            assert "not a field" in error.message


def test_a_monstrous_name_is_shortened() -> None:
    error = refusal("completions", {"x\n\u202e" * 10_000: 1})
    assert len(error.message) < 400
    assert error.message.isascii()


def test_fields_that_bound_each_other() -> None:
    assert refusal("completions", {"prompt": ["a"] * 9, "n": 8}).param == "n"
    assert refusal("completions", {"prompt": [[1]] * 9, "n": 8}).param == "n"
    check_fields("completions", {"prompt": ["a"] * 8, "n": 8})
    check_fields("completions", {"prompt": [1] * 90, "n": 8}, VOCABULARY)
    for longest in ("max_tokens", "max_completion_tokens"):
        assert refusal("chat_completions", {"min_tokens": 6, longest: 5}).param == "min_tokens"
        check_fields("chat_completions", {"min_tokens": 5, longest: 5})
    assert refusal("completions", {"stream_options": {"include_usage": True}}).param == "stream_options"
    assert refusal("completions", {"stream_options": {"x": True}, "stream": True}).param == "stream_options"
    assert refusal("completions", {"stream_options": {"include_usage": 1}, "stream": True}).param == "stream_options"
    check_fields("completions", {"stream_options": {"include_usage": True}, "stream": True})
    assert refusal("chat_completions", {"top_logprobs": 2, "logprobs": False}).param == "top_logprobs"


def test_without_a_known_vocabulary_ids_are_left_to_the_engine() -> None:
    check_fields("completions", {"prompt": [1 << 30]}, None)
    with pytest.raises(FieldRefused):
        check_fields("completions", {"prompt": [1 << 31]}, None)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}],
        [{"image_url": "http://169.254.169.254/"}],
        [{"type": "text", "text": "a"}, {"type": "input_audio", "input_audio": {}}],
        [{"type": "file", "file": {"file_id": "1"}}], [{"type": "video_url", "video_url": {"url": "file:///etc"}}],
        [{"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}],
        [{"type": "text"}], [{"type": "text", "text": 5}], [5], [None], {"text": "a"}, 5, ["a"] * 1025,
    ],
)  # fmt: skip
def test_messages_hold_text_and_nothing_that_would_be_fetched(content: Any) -> None:
    for endpoint in ("chat_completions", "messages", "tokenize"):
        assert refusal(endpoint, message(content)).param == "messages"
    assert refusal("responses", {"input": [{"type": "message", "role": "user", "content": content}]}).param == "input"
    assert refusal("responses", {"input": [{"type": "function_call_output", "output": content}]}).param == "input"


def test_textual_messages_pass() -> None:
    for content in ("a", None, ["a"], [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]):
        check_fields("chat_completions", message(content))
    check_fields(
        "messages", message([{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "a"}]}])
    )


@pytest.mark.parametrize(
    "messages",
    [
        [], "hi", [5], [{"content": "a"}], [{"role": 5}], [{"role": "x" * 33}],
        [{"role": "user", "content": "a"}] * 1025,
        [{"role": "assistant", "tool_calls": "x"}], [{"role": "assistant", "tool_calls": [5]}],
        [{"role": "assistant", "tool_calls": [{"function": {"arguments": "[" * 100_000}}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"arguments": "[" * 40 + "]" * 40}}]}],
    ],
)  # fmt: skip
def test_malformed_messages_are_refused(messages: Any) -> None:
    assert refusal("chat_completions", {"messages": messages}).param == "messages"


@pytest.mark.parametrize(
    "tools",
    [
        "x", [5], [{}], [{"type": "mcp", "server_url": "http://x"}], [{"type": "web_search"}], [{"type": "function"}],
        [{"type": "function", "function": {"name": 5}}], [{"type": "function", "function": {"name": "x" * 129}}],
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "string", "maxLength": 10**9}}}],
        [{"type": "function", "name": "f", "parameters": 5}], [{"name": "f", "input_schema": {"pattern": "a" * 600}}],
        [{"type": "function", "function": {"name": "f"}}] * 129, [deep(40)],
    ],
)  # fmt: skip
def test_tools_are_functions_with_bounded_schemas(tools: Any) -> None:
    for endpoint in ("chat_completions", "responses", "messages"):
        assert refusal(endpoint, {"tools": tools}).param == "tools"


def test_tools_of_each_dialect_pass() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    check_fields("chat_completions", {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]})
    check_fields("responses", {"tools": [{"type": "function", "name": "f", "parameters": schema}]})
    check_fields("messages", {"tools": [{"name": "f", "input_schema": schema}]})
