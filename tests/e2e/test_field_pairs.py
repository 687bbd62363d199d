"""Every two fields at their edges in one request: an answer or a refusal with a code, never a fault of the engine.

A field alone at its edges is a matter of its own check. What two of them ask for together nobody's check sees, so
requests are drawn that hold, between them, every pair of edges of every two fields.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
import pytest

from amalgam.api.fields.by_endpoint import HONOURED
from amalgam.engine.protocol import Endpoint
from tests.e2e.conftest import RunningServer
from tests.support.covering import covering

pytestmark = pytest.mark.slow

ABSENT: Final = object()
"""The field is left out."""
VOCABULARY: Final = 49152
SWITCH: Final = (True, False)
TOOL: Final = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
RESPONSE_TOOL: Final = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
ANTHROPIC_TOOL: Final = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "integer"}}}

EDGES: Final[Mapping[str, Sequence[Any]]] = {
    "add_generation_prompt": SWITCH,
    "add_special_tokens": SWITCH,
    "allowed_token_ids": ([0], [0, VOCABULARY - 1], list(range(1024))),
    "bad_words": (["a"], ["\u202e", "word"], ["w" * 9] * 64),
    "chat_template_kwargs": ({}, {"enable_thinking": False}),
    "continue_final_message": (False,),
    "echo": SWITCH,
    "frequency_penalty": (-2, 2),
    "ignore_eos": SWITCH,
    "include": ([], ["reasoning.encrypted_content"]),
    "include_reasoning": SWITCH,
    "include_stop_str_in_output": SWITCH,
    "instructions": ("", "Be short."),
    "logit_bias": ({}, {"0": -100, str(VOCABULARY - 1): 100}),
    "logprobs": SWITCH,
    "max_completion_tokens": (1, 3),
    "max_output_tokens": (1, 3),
    "max_tokens": (1, 3),
    "max_tool_calls": (0, 128),
    "metadata": ({}, {"user_id": "u"}),
    "min_p": (0, 1),
    "min_tokens": (0, 1, 3),
    "n": (1, 2, 16),
    "output_config": ({}, {"effort": "low"}),
    "parallel_tool_calls": SWITCH,
    "presence_penalty": (-2, 2),
    "prompt_logprobs": (0, 20),
    "reasoning": ({}, {"effort": "low"}),
    "reasoning_effort": ("low",),
    "repetition_penalty": (0.01, 10),
    "response_format": (
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    ),
    "return_prompt_text": SWITCH,
    "return_token_ids": SWITCH,
    "return_tokens_as_token_ids": SWITCH,
    "seed": (-(1 << 63), 0, (1 << 63) - 1),
    "service_tier": ("auto",),
    "skip_special_tokens": SWITCH,
    "spaces_between_special_tokens": SWITCH,
    "stop": ("a", ["\x00"], ["s" * 256] * 32),
    "stop_sequences": ([], ["a"], ["s" * 256] * 32),
    "stop_token_ids": ([], [0, VOCABULARY - 1]),
    "store": SWITCH,
    "stream": SWITCH,
    "stream_interval": (1, 1024),
    "stream_options": ({}, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}),
    "structured_outputs": ({"choice": ["a", "b"]}, {"regex": "[ab]{1,3}"}, {"json": SCHEMA}),
    "suffix": ("",),
    "system": ("", [{"type": "text", "text": "Be short."}]),
    "temperature": (0, 1e-9, 1, 2),
    "text": ({}, {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}),
    "thinking": ({"type": "disabled"},),
    "thinking_token_budget": (0,),
    "tool_choice": ("none", "auto", "required"),
    "tools": ([], [TOOL]),
    "top_k": (-1, 0, 1, 1 << 20),
    "top_logprobs": (0, 20),
    "top_p": (0, 1e-9, 1),
    "truncate_prompt_tokens": (-1, 1),
    "truncation": ("disabled", "auto"),
    "truncation_side": ("left", "right"),
    "user": ("", "u" * 4096),
}
NAMES: Final = {"model", "messages", "prompt", "input", "output_format"}
"""What every request has, and an earlier name of another field."""
OTHERWISE: Final[Mapping[Endpoint, Mapping[str, Sequence[Any]]]] = {
    "chat_completions": {},
    "completions": {"logprobs": (0, 20), "max_tokens": (0, 1, 3)},
    "responses": {"tools": ([], [RESPONSE_TOOL]), "reasoning": ({}, {"effort": "none"})},
    "messages": {
        "tools": ([], [ANTHROPIC_TOOL]),
        "tool_choice": ({"type": "none"}, {"type": "auto"}, {"type": "any"}),
        "temperature": (0, 1e-9, 1),
        "max_tokens": (1, 3),
    },
}
HI: Final = [{"role": "user", "content": "Say one word."}]
BASES: Final[Mapping[Endpoint, tuple[str, Mapping[str, Any]]]] = {
    "chat_completions": ("/v1/chat/completions", {"messages": HI, "max_completion_tokens": 3}),
    "completions": ("/v1/completions", {"prompt": "Say one word.", "max_tokens": 3}),
    "responses": ("/v1/responses", {"input": "Say one word.", "max_output_tokens": 3}),
    "messages": ("/v1/messages", {"messages": HI, "max_tokens": 3}),
}


def edges(endpoint: Endpoint) -> dict[str, Sequence[Any]]:
    """The edges of every field that ``endpoint`` honours."""
    fields = sorted(set(HONOURED[endpoint]) - NAMES)
    return {name: (*OTHERWISE[endpoint].get(name, EDGES[name]), ABSENT) for name in fields}


def refusal(answer: httpx.Response, what: Mapping[str, Any]) -> str | None:
    """The field that a refusal names, "" where it names none; None: it was answered. Fails where it was neither."""
    assert answer.status_code in (200, 400), (answer.status_code, what, answer.text)
    if answer.status_code == 200:
        assert '"error":{' not in answer.text, (what, answer.text)
        return None
    error = answer.json()["error"]
    assert error["message"], what
    assert error.get("code") or answer.json().get("type") == "error", (what, error)
    return str(error.get("param") or "").partition(".")[0]


def ask(session: httpx.Client, path: str, base: Mapping[str, Any], chosen: dict[str, Any]) -> bool:
    """Ask with ``chosen``; again without the field that was refused, so that the others are not hidden behind it."""
    while True:
        body = {"model": "sql", **base, **chosen}
        named = refusal(session.post(path, json=body), body)
        if named not in chosen:
            return named is None
        del chosen[named]


def said(answer: Mapping[str, Any]) -> list[Any]:
    """What an answer of any dialect says, without ids."""
    [one] = answer.get("choices") or answer.get("output") or answer["content"]
    return [one.get(name) for name in ("text", "message", "content", "finish_reason")]


@pytest.mark.parametrize("endpoint", BASES)
def test_pairs_of_edges_are_answered_or_refused(server: RunningServer, endpoint: Endpoint) -> None:
    path, base = BASES[endpoint]
    table = edges(endpoint)
    golden_body = {"model": "sql", "temperature": 0, **base}
    with server.client() as session:
        golden = session.post(path, json=golden_body).json()
        answered = 0
        rows = covering(table, random.Random(7))
        for row in rows:
            answered += ask(session, path, base, {name: value for name, value in row.items() if value is not ABSENT})
        again = session.post(path, json=golden_body).json()
    assert said(again) == said(golden)
    assert answered > len(rows) / 2, "most of what is drawn is refused: the pairs are hidden"
