"""The fields a client may send, endpoint by endpoint, each with its bounds: checked before the engine sees a request.

vLLM ignores what it does not know and trusts the rest; one request with an unbounded field can stop the engine for
everybody. A field that is not in these tables is refused by name, so that nothing is dropped in silence.
"""

from collections.abc import Mapping
from typing import Any, Final

from amalgam.api.constraint_fields import response_format, structured_outputs
from amalgam.api.content_fields import messages, response_input, system, tools
from amalgam.api.field_checks import (
    MAX_PROMPTS,
    Check,
    array,
    boolean,
    integer,
    logit_bias,
    mapping,
    number,
    prompt_count,
    prompts,
    shallow,
    stops,
    stream_options,
    text,
    token_ids,
    tokens_of,
)
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused

MAX_CHOICES: Final = 16
MAX_LOGPROBS: Final = 20


def _text_options(name: str, value: Any) -> None:
    """The Responses dialect's ``text``: the format of the answer, and how wordy it is."""
    shallow(name, value)
    if mapping(name, value).get("format") is not None:
        response_format(name, value["format"])


_TOKENS: Final = integer(1, 1 << 20)
_SAMPLING: Final[Mapping[str, Check]] = {
    "model": text(4096),
    "stream": boolean,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": integer(-1, 1 << 20),
}
_SEEDED: Final[Mapping[str, Check]] = {
    "user": text(256),
    "min_p": number(0, 1),
    "seed": integer(-(1 << 63), (1 << 63) - 1),
}
_OPENAI: Final[Mapping[str, Check]] = {
    **_SAMPLING,
    **_SEEDED,
    "stream_options": stream_options,
    "n": integer(1, MAX_CHOICES),
    "stop": stops,
    "stop_token_ids": token_ids(64),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(0.01, 10),
    "logit_bias": logit_bias,
    "max_tokens": _TOKENS,
    "min_tokens": integer(0, 1 << 20),
    "ignore_eos": boolean,
    "skip_special_tokens": boolean,
    "include_stop_str_in_output": boolean,
    "response_format": response_format,
    "structured_outputs": structured_outputs,
    "add_special_tokens": boolean,
    "prompt_logprobs": integer(0, MAX_LOGPROBS),
    "return_token_ids": boolean,
    "return_tokens_as_token_ids": boolean,
    "spaces_between_special_tokens": boolean,
}
_TOOLS: Final[Mapping[str, Check]] = {
    "tools": tools,
    "tool_choice": shallow,
}
_KEPT_BY_OPENAI: Final[Mapping[str, Check]] = {
    # What OpenAI's own service files an answer under; its clients send them, and here they change nothing.
    "metadata": shallow,
    "store": boolean,
    "service_tier": text(32),
}

FIELDS: Final[Mapping[Endpoint, Mapping[str, Check]]] = {
    "chat_completions": {
        **_OPENAI,
        **_TOOLS,
        **_KEPT_BY_OPENAI,
        "messages": messages,
        "parallel_tool_calls": boolean,
        "max_completion_tokens": _TOKENS,
        "logprobs": boolean,
        "top_logprobs": integer(0, MAX_LOGPROBS),
        "reasoning_effort": text(16),
        "add_generation_prompt": boolean,
        "continue_final_message": boolean,
    },
    "completions": {
        **_OPENAI,
        "prompt": prompts,
        "suffix": text(1 << 16),
        "echo": boolean,
        "logprobs": integer(0, MAX_LOGPROBS),
    },
    "responses": {
        **_SAMPLING,
        **_SEEDED,
        **_TOOLS,
        **_KEPT_BY_OPENAI,
        "input": response_input,
        "parallel_tool_calls": boolean,
        "instructions": text(1 << 20),
        "max_output_tokens": _TOKENS,
        "max_tool_calls": integer(0, 128),
        "text": _text_options,
        "reasoning": shallow,
        "include": array(16, text(64)),
        "truncation": text(16),
        "top_logprobs": integer(0, MAX_LOGPROBS),
    },
    "messages": {
        **_SAMPLING,
        **_TOOLS,
        "metadata": shallow,
        "messages": messages,
        "system": system,
        "max_tokens": _TOKENS,
        "stop_sequences": stops,
    },
    "tokenize": {
        "model": text(4096),
        "prompt": text(1 << 22),
        "messages": messages,
        "add_special_tokens": boolean,
        "add_generation_prompt": boolean,
        "continue_final_message": boolean,
        "return_token_strs": boolean,
        "tools": tools,
    },
    "detokenize": {"model": text(4096), "tokens": token_ids(1 << 20)},
    "embeddings": {
        "model": text(4096),
        "user": text(256),
        "input": prompts,
        "encoding_format": text(16),
        "dimensions": integer(1, 1 << 16),
    },
}
_OF_TOKENS: Final = ("prompt", "input", "tokens", "stop_token_ids", "logit_bias")


def check_fields(endpoint: Endpoint, body: Mapping[str, Any], vocabulary_size: int | None = None) -> None:
    """Refuse the first field that is unknown or out of bounds; null means absent.

    Args:
        vocabulary_size: Token ids are below it; None where it is not known.

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
    if vocabulary_size is not None and endpoint != "responses":
        _check_vocabulary(body, vocabulary_size)
    _check_together(body)


def _check_vocabulary(body: Mapping[str, Any], size: int) -> None:
    for name in _OF_TOKENS:
        if max(tokens_of(body.get(name)), default=0) >= size:
            raise FieldRefused(name, f"token ids must be below {size}, the size of the vocabulary")


def _check_together(body: Mapping[str, Any]) -> None:
    """Bounds on what several fields ask for together."""
    prompt = body.get("prompt")
    choices: int = body.get("n") or 1
    if prompt is not None and choices * prompt_count(prompt) > MAX_PROMPTS:
        raise FieldRefused("n", f"prompts times n must be at most {MAX_PROMPTS}")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise FieldRefused("stream_options", "needs stream to be true")
    longest = body.get("max_completion_tokens") or body.get("max_tokens")
    if longest is not None and (body.get("min_tokens") or 0) > longest:
        raise FieldRefused("min_tokens", "must not be larger than max_tokens")
    if body.get("top_logprobs") and body.get("logprobs") is False:
        raise FieldRefused("top_logprobs", "needs logprobs to be true")
