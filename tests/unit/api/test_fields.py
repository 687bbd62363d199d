import math
from typing import Any

import pytest

from amalgam.api.fields.by_endpoint import FIELDS, HONOURED, MAX_CHOICES, MAX_LOGPROBS, check_fields
from amalgam.api.fields.checks import MAX_NESTING, MAX_PROMPTS
from amalgam.api.fields.table import header_value
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
    ("chat_completions", "stop", ["a", ["a"] * 32, "", [""]], [["a"] * 33, "a" * 257, [1], {"a": 1}]),
    ("chat_completions", "stop_token_ids", [[], [0, 99], [1] * 64], [[100], [-1], [1] * 65, [True], ["1"], 5]),
    ("chat_completions", "logit_bias", [{}, {"0": 1, "99": -100}],
    [{"100": 1}, {"a": 1}, {"1": 101}, {"-1": 1}, {"²": 1}, {"1" * 11: 1}, {"9" * 5000: 1},
    {str(i): 0 for i in range(1025)}, []]),
    ("chat_completions", "frequency_penalty", [-2, 2], [-2.1, 2.1]),
    ("chat_completions", "repetition_penalty", [0.01, 10], [0, -1, 11]),
    ("chat_completions", "user", ["x" * 4096], ["x" * 4097, 1]),
    ("responses", "metadata", [{"a": deep(10)}], [deep(MAX_NESTING + 1)]),
    ("chat_completions", "stream", [True], [1, "true"]),
    ("chat_completions", "tool_choice", ["auto", {"type": "function", "function": {"name": "f"}}], [deep(40)]),
    ("completions", "logprobs", [0, MAX_LOGPROBS], [-1, MAX_LOGPROBS + 1, True]),
    ("completions", "prompt", ["a", ["a"] * MAX_PROMPTS, [1, 99], [[1], [2, 3]]],
    [[], ["a"] * (MAX_PROMPTS + 1), [100], [-1], [[100]], [[]], [""], ["a", 1], [1, "a"], [[1], "a"], [True],
    [[True]], [None], {"a": 1}, 7, [deep(3)]]),
    ("completions", "suffix", ["a"], ["a" * ((1 << 16) + 1)]),
    ("detokenize", "tokens", [[], [1, 99]], [[100], [1.5], "1"]),
    ("tokenize", "prompt", ["a"], [["a"], "a" * ((1 << 22) + 1)]),
    ("embeddings", "input", ["a", ["a"], [1], [[1]]], [["a"] * 2049, [100], [[100]]]),
    ("embeddings", "dimensions", [1], [0]),
    ("responses", "input", ["a", [{"role": "user", "content": "a"}]], [[], 5, [{"type": "compaction"}], [deep(40)]]),
    ("responses", "include", [["message.output_text.logprobs"]], [["a"] * 17, ["a" * 65], [1]]),
    ("responses", "max_output_tokens", [1], [0]),
    ("messages", "stop_sequences", [["a"]], [["a"] * 33]),
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
    for endpoint, table in HONOURED.items():
        for field in table:
            assert any(_is_refused(endpoint, field, monster) for monster in monsters), (endpoint, field)


def _is_refused(endpoint: Endpoint, field: str, value: Any) -> bool:
    try:
        check_fields(endpoint, {field: value})
    except FieldRefused:
        return True
    return False


DANGEROUS = (
    "chat_template", "kv_transfer_params", "ec_transfer_params", "cache_salt", "priority", "mm_processor_kwargs",
    "media_io_kwargs", "vllm_xargs", "documents", "use_beam_search", "logits_processors", "guided_regex", "guided_json",
    "background", "previous_response_id", "repetition_detection", "logprob_token_ids", "mcp_servers", "functions",
    "audio", "moderation", "web_search_options", "conversation", "container", "kv_hints",
)  # fmt: skip


@pytest.mark.parametrize("field", DANGEROUS)
def test_what_would_change_the_answer_is_refused_with_a_next_step(field: str) -> None:
    for endpoint in FIELDS:
        for value in (True, 2, "x", {"a": 1}, ["a"]):
            error = refusal(endpoint, {field: value})
            assert error.param == field
            assert "is not served here; " in error.message
        empty: tuple[Any, ...] = (None, False, "", {}, [])
        for nothing in empty:
            assert check_fields(endpoint, {field: nothing}).ignored == [], "it asks for nothing"


def test_values_that_mean_what_is_done_anyway_pass() -> None:
    check_fields("completions", {"best_of": 1})
    check_fields("chat_completions", {"modalities": ["text"], "function_call": "auto", "priority": 0})
    assert refusal("completions", {"best_of": 2}).param == "best_of"
    assert refusal("chat_completions", {"modalities": ["text", "audio"]}).param == "modalities"


SENT_BY_THEMSELVES = {
    "prompt_cache_key": "k", "safety_identifier": "u", "prompt_cache_retention": "24h", "verbosity": "low",
    "service_tier": "auto", "store": False, "metadata": {"a": "b"}, "length_penalty": 1.0, "betas": ["x"],
    "context_management": {"edits": []}, "request_id": "r",
}  # fmt: skip


@pytest.mark.parametrize("endpoint", ["chat_completions", "completions", "tokenize", "embeddings"])
def test_hints_to_other_services_are_taken_left_out_and_named(endpoint: Endpoint) -> None:
    checked = check_fields(endpoint, {"model": "m"} | SENT_BY_THEMSELVES)
    assert checked.body == {"model": "m"}
    assert sorted(checked.ignored) == sorted(SENT_BY_THEMSELVES)


def test_what_nobody_knows_is_taken_or_refused_as_the_server_is_told() -> None:
    for endpoint in FIELDS:
        assert check_fields(endpoint, {"brand_new": {"a": 1}}).ignored == ["brand_new"]
        with pytest.raises(FieldRefused, match="brand_new: is not a field this server knows"):
            check_fields(endpoint, {"brand_new": 1}, refuse_unknown=True)


def test_nested_keys_that_nobody_knows_are_harmless() -> None:
    message = {"role": "user", "content": "a", "brand_new": {"a": 1}, "cache_control": {"type": "ephemeral"}}
    tool = {"type": "function", "brand_new": 1, "function": {"name": "f", "brand_new": 2}}
    options = {"include_usage": True, "brand_new": 5}
    body = {"messages": [message], "tools": [tool], "stream": True, "stream_options": options}
    checked = check_fields("chat_completions", body, refuse_unknown=True)
    assert checked.body["stream_options"] == {"include_usage": True}
    assert checked.body["messages"] == [message]


@pytest.mark.parametrize(
    "value",
    [
        {"chat_template": "{{ 1 }}"}, {"tools": "x"}, {"conversation": "x"}, {"messages": 1},
        {"add_generation_prompt": 1},
        {"tokenize": True}, {"a": [1]}, {"a": {"b": 1}}, {"a": "x" * 1025}, {"a": 10**400}, {"a b": 1}, {"": 1},
        {"a" * 65: 1}, {f"k{i}": 1 for i in range(17)}, [], "x", 5,
    ],
)  # fmt: skip
def test_values_for_the_template_are_few_single_and_never_the_servers_own(value: Any) -> None:
    for endpoint in ("chat_completions", "responses", "messages", "tokenize"):
        assert refusal(endpoint, {"chat_template_kwargs": value}).param == "chat_template_kwargs"


def test_values_for_the_template_pass() -> None:
    values = {"enable_thinking": False, "thinking_budget": 5, "style": "short", "none": None, "share": 0.5}
    assert check_fields("chat_completions", {"chat_template_kwargs": values}).body == {"chat_template_kwargs": values}


def test_a_json_object_with_a_schema_is_that_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    checked = check_fields("chat_completions", {"response_format": {"type": "json_object", "schema": schema}})
    assert checked.body["response_format"]["type"] == "json_schema"
    assert checked.body["response_format"]["json_schema"]["schema"] == schema
    plain = {"response_format": {"type": "json_object"}}
    assert check_fields("chat_completions", plain).body == plain
    wild = {"response_format": {"type": "json_object", "schema": {"maxItems": 10**9}}}
    assert refusal("chat_completions", wild).param == "response_format"


def test_no_tools_are_as_none() -> None:
    for choice in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
        assert check_fields("chat_completions", {"tools": []} | choice).body == {}


FUNCTION = {"type": "function", "name": "shell", "parameters": {"type": "object"}}


def test_tools_that_would_run_here_are_left_out_and_named() -> None:
    others = [
        {"type": "local_shell"},
        {"type": "web_search"},
        {"type": "namespace", "name": "n", "tools": [FUNCTION]},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
    ]
    checked = check_fields("responses", {"tools": [FUNCTION, *others], "tool_choice": "auto"})
    assert [tool["type"] for tool in checked.body["tools"]] == ["function", "namespace", "custom"]
    assert checked.ignored == ["tools.local_shell", "tools.web_search", "tools.custom.format"]
    assert check_fields("responses", {"tools": others[:2], "tool_choice": "auto"}).body == {}
    theirs = {"name": "f", "input_schema": {"type": "object"}}
    searching = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    checked = check_fields("messages", {"tools": [theirs, searching]})
    assert checked.body["tools"] == [theirs]
    assert checked.ignored == ["tools.web_search_20250305"]


def test_a_choice_that_only_a_tool_of_the_server_could_meet_is_refused() -> None:
    searching = {"type": "web_search"}
    for tools, choice in (([searching], "required"), ([FUNCTION, searching], {"type": "web_search"})):
        error = refusal("responses", {"tools": tools, "tool_choice": choice})
        assert error.param == "tool_choice"
        assert "web_search" in error.message


def test_a_monstrous_name_is_shortened() -> None:
    monster = "x\n\u202e" * 10_000
    with pytest.raises(FieldRefused) as caught:
        check_fields("completions", {monster: 1}, refuse_unknown=True)
    assert len(caught.value.message) < 400
    assert caught.value.message.isascii()
    shown = header_value([monster, "a,b", *map(str, range(100))])
    assert len(shown) < 400
    assert shown.isascii()
    assert shown.isprintable()


def test_fields_that_bound_each_other() -> None:
    assert refusal("completions", {"prompt": ["a"] * 17, "n": 8}).param == "n"
    assert refusal("completions", {"prompt": [[1]] * 17, "n": 8}).param == "n"
    check_fields("completions", {"prompt": ["a"] * 16, "n": 8})
    assert refusal("completions", {"prompt": "a", "max_tokens": 0}).param == "max_tokens"
    check_fields("completions", {"prompt": "a", "max_tokens": 0, "echo": True})
    check_fields("completions", {"prompt": [1] * 90, "n": 8}, VOCABULARY)
    for longest in ("max_tokens", "max_completion_tokens"):
        assert refusal("chat_completions", {"min_tokens": 6, longest: 5}).param == "min_tokens"
        check_fields("chat_completions", {"min_tokens": 5, longest: 5})
    assert refusal("completions", {"stream_options": {"include_usage": True}}).param == "stream_options"
    assert refusal("completions", {"stream_options": {"include_usage": 1}, "stream": True}).param == "stream_options"
    check_fields("completions", {"stream_options": {"include_usage": True}, "stream": True})
    assert refusal("chat_completions", {"top_logprobs": 2, "logprobs": False}).param == "top_logprobs"
    both = {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}
    assert refusal("chat_completions", both).param == "structured_outputs"
    check_fields("chat_completions", both | {"response_format": {"type": "text"}})


@pytest.mark.parametrize(
    ("endpoint", "body", "left"),
    [
        ("completions", {"suffix": ""}, {}),
        ("chat_completions", {"stop": ""}, {}),
        ("chat_completions", {"stop": ["", "a"], "bad_words": [""]}, {"stop": ["a"], "bad_words": []}),
        ("messages", {"stop_sequences": [""]}, {"stop_sequences": []}),
        ("chat_completions", {"structured_outputs": {}, "reasoning_effort": ""}, {}),
        ("messages", {"top_p": 0}, {"top_p": 1e-9}),
        ("chat_completions", {"top_p": 0.0}, {"top_p": 1e-9}),
        ("completions", {"suffix": "x"}, {"suffix": "x"}),
        ("chat_completions", {"top_logprobs": 0}, {}),
        ("chat_completions", {"top_logprobs": 0, "logprobs": False}, {"logprobs": False}),
        ("chat_completions", {"top_logprobs": 0, "logprobs": True}, {"top_logprobs": 0, "logprobs": True}),
        ("responses", {"top_logprobs": 0}, {}),
        ("completions", {"stream_options": {}}, {}),
        ("chat_completions", {"stream_options": {"include_usage": False}, "stream": False}, {"stream": False}),
    ],
)
def test_what_vllm_would_refuse_though_it_is_harmless_is_put_right(
    endpoint: Endpoint, body: dict[str, Any], left: dict[str, Any]
) -> None:
    assert check_fields(endpoint, body).body == left


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
    if isinstance(content, list):
        # What is none is told as its JSON.
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
        [{"role": "user", "content": "a"}] * 2049,
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
        "x", [5], [{}], [{"type": 5}], [{"type": "function"}],
        [{"type": "function", "function": {"name": 5}}], [{"type": "function", "function": {"name": "x" * 129}}],
        [{"type": "function", "name": "f", "parameters": 5}], [{"name": "f", "input_schema": {"title": "a" * 70_000}}],
        [{"name": "f", "input_schema": {"enum": [{}] * 5000}}], [{"name": "f", "input_schema": {"const": 1 << 64}}],
        [{"type": "function", "function": {"name": "f"}}] * 513, [deep(40)],
    ],
)  # fmt: skip
def test_tools_are_functions_with_bounded_schemas(tools: Any) -> None:
    for endpoint in ("chat_completions", "responses", "messages"):
        assert refusal(endpoint, {"tools": tools}).param == "tools"


LONG_TEXT = {"type": "string", "maxLength": 524_288, "pattern": "^(?=a)(a*)*$"}
COSTLY = {"type": "object", "properties": {"text": LONG_TEXT}}


def test_a_schema_that_nothing_is_compiled_from_may_ask_for_what_would_not_compile() -> None:
    """Claude Code's own tools do: a text of up to 512 KiB."""
    for choice in ("auto", "none", None, {"type": "function", "function": {"name": "another"}}):
        assert check_fields("chat_completions", {"tools": [called("f", COSTLY)], "tool_choice": choice}).body["tools"]
    theirs = {"name": "f", "input_schema": COSTLY}
    for kind in ("auto", "none"):
        assert check_fields("messages", {"tools": [theirs], "tool_choice": {"type": kind}}).body["tools"] == [theirs]


@pytest.mark.parametrize("choice", [
    "required", {"type": "function", "function": {"name": "f"}}, {"type": "function", "name": "f"},
    {"type": "function", "function": "f", "name": "f"},
    {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"function": {"name": "f"}}]}},
], ids=str)  # fmt: skip
def test_what_is_compiled_is_bounded(choice: Any) -> None:
    assert refusal("chat_completions", {"tools": [called("f", COSTLY)], "tool_choice": choice}).param == "tools"


def test_a_strict_tool_is_bounded_whatever_is_chosen() -> None:
    strict = {"type": "function", "function": {"name": "f", "parameters": COSTLY, "strict": True}}
    assert refusal("chat_completions", {"tools": [strict]}).param == "tools"
    for choice in ({"type": "any"}, {"type": "tool", "name": "f"}):
        tools = [{"name": "f", "input_schema": COSTLY}]
        assert refusal("messages", {"tools": tools, "tool_choice": choice}).param == "tools"


def called(name: str, schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def test_tools_of_each_dialect_pass() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    check_fields("chat_completions", {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]})
    check_fields("responses", {"tools": [{"type": "function", "name": "f", "parameters": schema}]})
    check_fields("messages", {"tools": [{"name": "f", "input_schema": schema}]})
