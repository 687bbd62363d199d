"""The fields a client may send, endpoint by endpoint, each with its bounds: checked before the engine sees a request.

vLLM ignores what it does not know and trusts the rest; one request with an unbounded field can stop the engine for
everybody. A field that is not in these tables is refused by name, so that nothing is dropped in silence.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused

Check = Callable[[str, Any], None]

MAX_CHOICES: Final = 16
MAX_LOGPROBS: Final = 20
MAX_PROMPTS: Final = 64
MAX_MESSAGES: Final = 1024
MAX_TOOLS: Final = 128
MAX_STOPS: Final = 16
MAX_NESTING: Final = 32


def _number(low: float, high: float) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise FieldRefused(name, "must be a finite number")
        if not low <= value <= high:
            raise FieldRefused(name, f"must be between {low:g} and {high:g}")

    return check


def _integer(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise FieldRefused(name, "must be an integer")
        if not low <= value <= high:
            raise FieldRefused(name, f"must be between {low} and {high}")

    return check


def _text(limit: int) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, str):
            raise FieldRefused(name, "must be a string")
        if len(value) > limit:
            raise FieldRefused(name, f"must have at most {limit} characters")

    return check


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise FieldRefused(name, "must be true or false")


def _array(limit: int) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, list):
            raise FieldRefused(name, "must be a list")
        if len(value) > limit:
            raise FieldRefused(name, f"must have at most {limit} entries")

    return check


def _shallow(name: str, value: Any) -> None:
    """Any JSON that is not nested so deeply that walking it is an attack."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [c for v in level for c in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
        if not level:
            return
    raise FieldRefused(name, f"must not be nested deeper than {MAX_NESTING}")


def _shallow_array(limit: int) -> Check:
    def check(name: str, value: Any) -> None:
        _array(limit)(name, value)
        _shallow(name, value)

    return check


def _stops(name: str, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    _array(MAX_STOPS)(name, values)
    for stop in values:
        _text(256)(name, stop)


def _token_ids(limit: int) -> Check:
    def check(name: str, value: Any) -> None:
        _array(limit)(name, value)
        for token in value:
            _integer(0, (1 << 31) - 1)(name, token)

    return check


def _logit_bias(name: str, value: Any) -> None:
    if not isinstance(value, dict) or len(value) > 1024:
        raise FieldRefused(name, "must map at most 1024 token ids to numbers")
    for token, bias in value.items():
        if not token.isascii() or not token.isdigit():
            raise FieldRefused(name, "keys must be token ids")
        _number(-100, 100)(name, bias)


def _prompts(name: str, value: Any) -> None:
    if isinstance(value, str):
        return
    _array(1 << 20)(name, value)
    if value and isinstance(value[0], int):
        return
    _array(MAX_PROMPTS)(name, value)


def _stream_options(name: str, value: Any) -> None:
    if not isinstance(value, dict) or not value.keys() <= {
        "include_usage",
        "continuous_usage_stats",
        "include_obfuscation",
    }:
        raise FieldRefused(name, "may hold include_usage and continuous_usage_stats")


_TOKENS: Final = _integer(1, 1 << 20)
_SAMPLING: Final[Mapping[str, Check]] = {
    "model": _text(4096),
    "user": _text(256),
    "metadata": _shallow,
    "stream": _boolean,
    "stream_options": _stream_options,
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _integer(-1, 1 << 20),
    "min_p": _number(0, 1),
    "seed": _integer(-(1 << 63), (1 << 63) - 1),
}
_OPENAI: Final[Mapping[str, Check]] = {
    **_SAMPLING,
    "n": _integer(1, MAX_CHOICES),
    "stop": _stops,
    "stop_token_ids": _token_ids(64),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "repetition_penalty": _number(0.01, 10),
    "logit_bias": _logit_bias,
    "max_tokens": _TOKENS,
    "min_tokens": _integer(0, 1 << 20),
    "ignore_eos": _boolean,
    "skip_special_tokens": _boolean,
    "include_stop_str_in_output": _boolean,
    "response_format": _shallow,
    "structured_outputs": _shallow,
    "add_special_tokens": _boolean,
    "prompt_logprobs": _integer(0, MAX_LOGPROBS),
    "return_token_ids": _boolean,
}
_TOOLS: Final[Mapping[str, Check]] = {
    "tools": _shallow_array(MAX_TOOLS),
    "tool_choice": _shallow,
    "parallel_tool_calls": _boolean,
}

FIELDS: Final[Mapping[Endpoint, Mapping[str, Check]]] = {
    "chat_completions": {
        **_OPENAI,
        **_TOOLS,
        "messages": _shallow_array(MAX_MESSAGES),
        "max_completion_tokens": _TOKENS,
        "logprobs": _boolean,
        "top_logprobs": _integer(0, MAX_LOGPROBS),
        "reasoning_effort": _text(16),
        "store": _boolean,
        "service_tier": _text(32),
        "add_generation_prompt": _boolean,
        "continue_final_message": _boolean,
    },
    "completions": {
        **_OPENAI,
        "prompt": _prompts,
        "suffix": _text(1 << 16),
        "echo": _boolean,
        "best_of": _integer(1, MAX_CHOICES),
        "logprobs": _integer(0, MAX_LOGPROBS),
    },
    "responses": {
        **_SAMPLING,
        **_TOOLS,
        "input": _shallow,
        "instructions": _text(1 << 20),
        "max_output_tokens": _TOKENS,
        "max_tool_calls": _integer(0, 128),
        "text": _shallow,
        "reasoning": _shallow,
        "include": _array(16),
        "store": _boolean,
        "service_tier": _text(32),
        "truncation": _text(16),
        "top_logprobs": _integer(0, MAX_LOGPROBS),
    },
    "messages": {
        **_SAMPLING,
        **_TOOLS,
        "messages": _shallow_array(MAX_MESSAGES),
        "system": _shallow,
        "max_tokens": _TOKENS,
        "stop_sequences": _stops,
    },
    "tokenize": {
        "model": _text(4096),
        "prompt": _text(1 << 22),
        "messages": _shallow_array(MAX_MESSAGES),
        "add_special_tokens": _boolean,
        "add_generation_prompt": _boolean,
        "continue_final_message": _boolean,
        "return_token_strs": _boolean,
        "tools": _TOOLS["tools"],
    },
    "detokenize": {"model": _text(4096), "tokens": _token_ids(1 << 20)},
    "embeddings": {
        "model": _text(4096),
        "user": _text(256),
        "input": _prompts,
        "encoding_format": _text(16),
        "dimensions": _integer(1, 1 << 16),
    },
}


def check_fields(endpoint: Endpoint, body: Mapping[str, Any]) -> None:
    """Refuse the first field that is unknown or out of bounds; null means absent.

    Raises:
        FieldRefused: names the field and its bounds, never its value.
    """
    table = FIELDS[endpoint]
    for name, value in body.items():
        check = table.get(name)
        if check is None:
            shown = name if len(name) <= 64 and name.isprintable() else name[:64].encode("unicode_escape").decode()
            raise FieldRefused(shown, "is not a field this server accepts; remove it and send the request again")
        if value is not None:
            check(name, value)
    choices = body.get("n") or 1
    prompts = body.get("prompt")
    count = len(prompts) if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int) else 1
    if choices * count > MAX_PROMPTS:
        raise FieldRefused("n", f"prompts times n must be at most {MAX_PROMPTS}")
