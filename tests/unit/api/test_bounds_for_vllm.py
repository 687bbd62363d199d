"""What the bounds of the fields let through, vLLM's own request classes read: no limit here is wider than there."""

import os
from typing import Any, Final

import pytest

from amalgam.api.fields.by_endpoint import HONOURED, check_fields
from amalgam.api.fields.checks import MAX_STOPS
from amalgam.api.inference.request_models import REQUIRED
from amalgam.engine.environment import prepare_environment
from amalgam.engine.protocol import Endpoint
from tests.unit.api.test_fields import BOUNDS
from tests.unit.api.test_request_models import FILLED

TOGETHER: dict[str, dict[str, Any]] = {
    "tool_choice": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "top_logprobs": {"logprobs": True},
    "truncation_side": {"truncate_prompt_tokens": 4},
}
"""What a field needs beside it."""
LARGEST: dict[str, list[Any]] = {
    "stop": [["a"] * MAX_STOPS], "stop_sequences": [["a"] * MAX_STOPS], "n": [16], "logprobs": [20, True],
    "top_logprobs": [20], "prompt_logprobs": [20], "bad_words": [["a"] * 64], "stop_token_ids": [[1] * 64],
    "allowed_token_ids": [[1] * 1024], "logit_bias": [{str(i): -100 for i in range(1024)}], "top_k": [-1, 0, 1 << 20],
    "reasoning_effort": ["none", "minimal", "low", "medium", "high", "xhigh", "max"], "repetition_penalty": [10],
    "temperature": [0, 2], "min_p": [0, 1], "frequency_penalty": [-2, 2], "seed": [-(1 << 63), (1 << 63) - 1],
    "max_tool_calls": [0, 128], "truncation": ["auto", "disabled"], "encoding_format": ["float", "base64"],
    "service_tier": ["auto", "anything"], "include": [["anything", "reasoning.encrypted_content"]],
    "thinking": [{"type": "adaptive"}, {"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}],
    "tools": [[{"type": "function", "name": f"f{i}", "parameters": {"type": "object"}} for i in range(512)]],
}  # fmt: skip
"""By field, values at its bounds, and words that clients send."""


@pytest.fixture(scope="module")
def table() -> Any:
    from amalgam.engine.vllm_endpoints import endpoint_table

    return endpoint_table()


def read_by_vllm(table: Any, endpoint: Endpoint, field: str, value: Any) -> None:
    needed = {name: FILLED[name] for name in REQUIRED[endpoint]} | TOGETHER.get(field, {})
    if endpoint in ("messages", "count_tokens") and field == "tools":
        value = [{"name": one["name"], "input_schema": one["parameters"]} for one in value]
    if field == "thinking" and endpoint == "messages":
        needed["max_tokens"] = 2048
    if endpoint == "completions":
        needed.pop("logprobs", None)
    if endpoint == "tokenize" and not needed.keys() & {"messages"}:
        needed["messages"] = FILLED["messages"]
    body = {"model": "m"} | needed | {field: value}
    table[endpoint].request.validate_python(dict(check_fields(endpoint, body, 1 << 20).body))


NARROWER_THERE: Final = {("responses", "metadata"), ("tokenize", "prompt")}
"""Labels are texts there, which vLLM says; and a prompt stands beside no messages."""


@pytest.mark.parametrize("endpoint", [endpoint for endpoint in HONOURED if endpoint != "embeddings"])
def test_values_at_the_bounds_are_read(table: Any, endpoint: Endpoint) -> None:
    for field, values in LARGEST.items():
        for value in values:
            if field not in HONOURED[endpoint] or (endpoint == "completions" and value is True):
                continue
            if field == "logprobs" and endpoint == "chat_completions" and value is not True:
                continue
            read_by_vllm(table, endpoint, field, value)


def test_what_the_tests_of_bounds_take_is_read(table: Any) -> None:
    for endpoint, field, taken, _ in BOUNDS:
        for value in taken:
            if (endpoint, field) not in NARROWER_THERE and endpoint != "embeddings":
                read_by_vllm(table, endpoint, field, value)


def test_vllm_is_told_how_many_stop_strings_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_MAX_STOP_STRINGS")
    prepare_environment()
    assert os.environ["VLLM_MAX_STOP_STRINGS"] == str(MAX_STOPS)
