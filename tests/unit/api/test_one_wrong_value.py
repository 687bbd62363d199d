"""A whole request with one value wrong, for every value in it: refused in words, or read by vLLM to the end.

Values of every JSON type stand in every place, so that none of the checks may ask more of a value than that it is JSON;
and vLLM reads some of them long after its request class has let them in.
"""

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final

import pytest
from pydantic import ValidationError
from vllm.exceptions import VLLMValidationError

from amalgam.api.fields.by_endpoint import check_fields
from amalgam.api.fields.loose_values import plain_values
from amalgam.api.fields.media import MediaBounds
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused

GONE: Final = object()
WRONG: Final[tuple[Any, ...]] = (GONE, None, 5, 1.5, True, "", "zz", [], {}, ["zz"], [5], [[]], {"zz": 5}, {"type": []})
SEES: Final = MediaBounds(frozenset({"image", "audio"}))
SCHEMA: Final = {"type": "object", "properties": {"city": {"type": "string"}}}
RULE: Final = {
    "type": "object",
    "required": ["a"],
    "properties": {"a": {"anyOf": [{"enum": ["x"]}, {"$ref": "#/$defs/b"}]}},
    "$defs": {"b": {"type": "string"}},
}
USE: Final = {"type": "tool_use", "id": "u1", "name": "f", "input": {"a": 1}, "caller": {"type": "direct"}}
CACHED: Final = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
RESULT: Final = {"type": "tool_result", "tool_use_id": "u1", "content": [CACHED], "is_error": False}
CALLS: Final = [
    {"id": "c1", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}},
    {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "x"}},
]
CHOSEN: Final = {"type": "function", "function": {"name": "f"}}
TOOLS: Final = [
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "name": "g", "description": "d", "parameters": SCHEMA},
    {"type": "web_search"},
]
HOSTED: Final = [
    {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"q": 1}},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "s1",
        "content": [{"type": "web_search_result", "title": "t", "url": "u", "encrypted_content": "e"}],
    },
    {"type": "mcp_tool_use", "id": "m1", "name": "x", "server_name": "srv", "input": {}},
    {"type": "mcp_tool_result", "tool_use_id": "m1", "is_error": False, "content": [CACHED]},
    {"type": "tool_addition", "tool": {"name": "h", "definition": {"name": "h", "input_schema": SCHEMA}}},
    {"type": "tool_removal", "tool": {"name": "f"}},
    {"type": "compaction", "content": "c", "tool_changes": [{"type": "tool_addition", "tool": {"name": "f"}}]},
]
DOCUMENTS: Final = [
    {"type": "document", "title": "t", "context": "c", "source": {"type": "content", "content": [CACHED]}},
    {"type": "search_result", "title": "t", "source": "s", "content": [CACHED]},
    {"type": "tool_reference", "tool_name": "f"},
]

BODIES: Final[dict[str, tuple[Endpoint, dict[str, Any]]]] = {
    "a chat": ("chat_completions", {
        "messages": [
            {"role": "system", "content": "S", "name": "n"},
            {"role": "user", "content": [CACHED, "bare"]},
            {"role": "assistant", "content": "a", "tool_calls": CALLS, "reasoning": "r", "refusal": None,
             "audio": None, "annotations": [], "function_call": None},
            {"role": "tool", "tool_call_id": "c1", "content": "out", "name": "f"},
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "out"},
            {"role": "developer", "content": "d"},
        ],
        "tools": TOOLS, "tool_choice": CHOSEN, "response_format": {"type": "text"}, "stream": True,
        "stream_options": {"include_usage": True}, "metadata": {"a": "b"}, "chat_template_kwargs": {"a": 1},
        "logit_bias": {"5": 1}, "stop": ["x"], "prediction": None,
    }),
    "a chat with Anthropic's blocks": ("chat_completions", {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"}, USE]},
            {"role": "user", "content": [RESULT, *DOCUMENTS[:2]]},
            {"role": "assistant", "content": [*HOSTED, USE], "tool_calls": CALLS},
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "tool", "name": "f"},
        "response_format": {"type": "json_object", "schema": RULE},
    }),
    "messages": ("messages", {
        "max_tokens": 2048, "system": [CACHED], "stop_sequences": ["x"], "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "low"},
        "messages": [
            {"role": "user", "content": [CACHED]},
            {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, CACHED, USE]},
            {"role": "user", "content": [{**RESULT, "content": [CACHED, *DOCUMENTS]}, *DOCUMENTS[:2]]},
            {"role": "assistant", "content": HOSTED},
            {"role": "user", "content": "And?"},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA, "type": "custom", "strict": True}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    }),
    "tokens to count": ("count_tokens", {
        "system": "S", "messages": [{"role": "user", "content": [CACHED, RESULT]}],
        "tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "any"},
    }),
    "Responses' input": ("responses", {
        "instructions": "I", "metadata": {"a": "b"}, "include": ["reasoning.encrypted_content", "zz"],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": RULE}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"}, "service_tier": "auto",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}], "id": "i"},
            {"type": "message", "role": "assistant", "id": "m1", "status": "completed", "content": [
                {"type": "output_text", "text": "x", "annotations": []}, {"type": "refusal", "refusal": "no"}]},
            {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "s"}],
             "content": [{"type": "reasoning_text", "text": "t"}], "encrypted_content": "e"},
            {"type": "function_call", "id": "f1", "call_id": "c1", "name": "f", "arguments": "{}", "namespace": "ns"},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "x"}]},
            {"type": "custom_tool_call", "id": "k1", "call_id": "c2", "name": "g", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "y"},
            {"role": "user", "content": "And?"},
        ],
        "tools": [
            {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": False},
            {"type": "namespace", "name": "ns", "description": "d", "tools": [{"type": "function", "name": "h"}]},
        ],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    }),
    "Responses' items of other services": ("responses", {
        "input": [
            {"type": "local_shell_call", "call_id": "c3", "action": {"type": "exec", "command": ["ls"], "env": {}}},
            {"type": "local_shell_call_output", "id": "c3", "output": "z"},
            {"type": "mcp_call", "id": "mc", "name": "n", "server_label": "s", "arguments": "{}", "output": "o"},
            {"type": "computer_call", "call_id": "c4", "actions": [{"type": "click", "x": 1}]},
            {"type": "computer_call_output", "call_id": "c4", "output": {"type": "computer_screenshot"}},
            {"type": "code_interpreter_call", "id": "ci", "code": "1", "outputs": [{"type": "logs", "logs": "1"}]},
            {"type": "file_search_call", "id": "fs", "queries": ["q"], "results": [{"text": "t"}]},
            {"type": "tool_search_output", "call_id": "c5", "tools": [{"type": "function", "name": "k"}]},
            {"type": "additional_tools", "tools": [{"type": "function", "name": "l", "parameters": SCHEMA}]},
            {"type": "configuration_update", "reasoning": {"effort": "low"}, "text": {"verbosity": "low"}},
            {"type": "web_search_call", "id": "ws", "action": {"type": "search", "query": "q"}},
            {"role": "user", "content": "And?"},
        ],
        "tools": [{"type": "function", "name": "f"}, {"type": "custom", "name": "g", "format": {"type": "text"}}],
        "tool_choice": {"type": "function", "name": "f"},
    }),
    "tokens of a chat": ("tokenize", {
        "messages": [{"role": "user", "content": [CACHED]}, {"role": "assistant", "tool_calls": CALLS}],
        "tools": TOOLS[:1], "chat_template_kwargs": {"a": 1},
    }),
    "a completion": ("completions", {
        "prompt": [[1, 2], [3]], "stop": ["x"], "logit_bias": {"5": 1}, "stream_options": {"include_usage": True},
        "stream": True, "structured_outputs": {"choice": ["a"]}, "bad_words": ["b"], "stop_token_ids": [5],
    }),
    "texts to embed": ("embeddings", {"input": ["a", "b"], "encoding_format": "float", "dimensions": 4}),
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in ``value``."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def put(body: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of ``body`` with another value in one place."""
    changed: Any = copy.deepcopy(body)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    if value is GONE:
        del holder[place[-1]]
    else:
        holder[place[-1]] = copy.deepcopy(value)
    return {"model": "m", **changed}


@pytest.fixture(scope="module")
def table() -> Any:
    from amalgam.engine.vllm_endpoints import endpoint_table

    return endpoint_table()


def read_to_the_end(endpoint: Endpoint, request: Any) -> None:
    """Whatever vLLM reads of a request of a conversation before a template is filled."""
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.responses.utils import construct_input_messages
    from vllm.renderers.chat_utils import parse_chat_messages

    if endpoint in ("messages", "count_tokens"):
        request = AnthropicServingMessages.to_chat_completion_request(request)
    if endpoint == "responses":
        messages = list(construct_input_messages(request_input=request.input))
    elif (given := getattr(request, "messages", None)) is None:
        return
    else:
        messages = list(given)
    model: Any = SimpleNamespace(multimodal_config=None, enable_prompt_embeds=False, allowed_local_media_path="")
    parse_chat_messages(messages, model, "openai")


@pytest.mark.parametrize("name", BODIES)
def test_one_wrong_value_is_refused_in_words_or_read_to_the_end(name: str, table: Any) -> None:
    endpoint, whole = BODIES[name]
    read = table[endpoint].request.validate_python
    read_to_the_end(endpoint, read(check_fields(endpoint, {"model": "m"} | whole, media=SEES).body))
    faults = []
    for place in places(whole):
        for value in WRONG:
            try:
                checked = check_fields(endpoint, plain_values(endpoint, put(whole, place, value)), media=SEES)
                request = read(checked.body)
            except (FieldRefused, ValidationError, VLLMValidationError):
                continue  # by the checks, or by vLLM's class before the engine sees it; told with the field's name
            except Exception as error:
                faults.append((place, value, repr(error)[:200]))
                continue
            try:
                read_to_the_end(endpoint, request)
            except Exception as error:
                faults.append((place, value, repr(error)[:200]))
    assert not faults, faults[:10]
