"""The fields a client may send, endpoint by endpoint: what becomes of each, and its bounds.

vLLM ignores what it does not know and trusts the rest; one request with an unbounded field can stop the engine for
everybody. These tables are the only place that says what a field does here: the checks, the OpenAPI document and the
page ``docs/fields.md`` are made from them, and a test compares them with vLLM's request classes and with the clients'.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from amalgam.api.fields import message_shapes, shapes
from amalgam.api.fields.checks import (
    MAX_INPUTS,
    MAX_PROMPTS,
    array,
    boolean,
    choice,
    integer,
    logit_bias,
    number,
    prompts,
    shallow_object,
    stop_list,
    stops,
    stream_options,
    template_values,
    text,
    token_ids,
    tokens_of,
)
from amalgam.api.fields.constraints import response_format, structured_outputs
from amalgam.api.fields.contents import (
    messages,
    output_config,
    output_format,
    response_input,
    system,
    text_options,
    tools,
    turns,
)
from amalgam.api.fields.elsewhere import NOT_HONOURED, ONE_ENDPOINT
from amalgam.api.fields.media import TEXT_ONLY, MediaBounds, check_media
from amalgam.api.fields.past_turns import plain_turns
from amalgam.api.fields.plain_media import with_plain_media
from amalgam.api.fields.request_budget import check_together
from amalgam.api.fields.rewrites import rewrite
from amalgam.api.fields.table import FieldSpec, honoured, shown_name
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused

MAX_CHOICES: Final = 16
MAX_LOGPROBS: Final = 20

_SWITCH: Final = honoured(boolean, bool)
_TOKENS: Final = honoured(integer(1, 1 << 20))
_ANY_OBJECT: Final = honoured(shallow_object, shapes.AnyObject)
_TEMPLATE: Final = honoured(
    template_values, shapes.TemplateValues, "values for the chat template: at most 16, each single and short"
)
_MODEL: Final = honoured(text(4096), says="a name, a version, an alias or an expression")
_MESSAGES: Final = honoured(
    messages,
    message_shapes.Messages,
    "text, and pictures and sounds where the model reads them; other parts: see [clients](clients.md)",
)
_TURNS: Final = honoured(
    turns,
    message_shapes.Turns,
    "text, and pictures where the model reads them; other blocks: see [clients](clients.md)",
)
_TOOLS: Final = honoured(tools, shapes.Tools, "functions; tools of other types are left out and named in the header")
_LOGPROBS: Final = honoured(integer(0, MAX_LOGPROBS))

_SAMPLING: Final[Mapping[str, FieldSpec]] = {
    "model": _MODEL,
    "stream": _SWITCH,
    "temperature": honoured(number(0, 2)),
    "top_p": honoured(number(0, 1)),
    "top_k": honoured(integer(-1, 1 << 20)),
}
_SEEDED: Final[Mapping[str, FieldSpec]] = {
    "user": honoured(text(4096), says="an alias with weights means the same to a user each time"),
    "min_p": honoured(number(0, 1)),
    "seed": honoured(integer(-(1 << 63), (1 << 63) - 1)),
}
_SHAPING: Final[Mapping[str, FieldSpec]] = {
    "stop": honoured(stops, shapes.Stops, "at most 32, of 256 characters"),
    "stop_token_ids": honoured(token_ids(64)),
    "frequency_penalty": honoured(number(-2, 2)),
    "presence_penalty": honoured(number(-2, 2)),
    "repetition_penalty": honoured(number(0.01, 10)),
    "logit_bias": honoured(logit_bias, shapes.Biases, "at most 1,024 entries"),
    "ignore_eos": _SWITCH,
    "skip_special_tokens": _SWITCH,
    "include_stop_str_in_output": _SWITCH,
    "structured_outputs": honoured(
        structured_outputs, shapes.StructuredOutputs, "one of json, regex, choice, json_object"
    ),
}
_OPENAI: Final[Mapping[str, FieldSpec]] = {
    **_SAMPLING,
    **_SEEDED,
    **_SHAPING,
    "stream_options": honoured(stream_options, shapes.StreamOptions),
    "n": honoured(integer(1, MAX_CHOICES)),
    "max_tokens": _TOKENS,
    "min_tokens": honoured(integer(0, 1 << 20)),
    "response_format": honoured(
        response_format,
        shapes.ResponseFormat,
        "text, json_object or json_schema; a json_object with a schema is a json_schema",
    ),
    "add_special_tokens": _SWITCH,
    "prompt_logprobs": _LOGPROBS,
    "return_token_ids": _SWITCH,
    "return_tokens_as_token_ids": _SWITCH,
    "spaces_between_special_tokens": _SWITCH,
    "allowed_token_ids": honoured(token_ids(1024)),
    "bad_words": honoured(array(64, text(64))),
    "truncate_prompt_tokens": honoured(integer(-1, 1 << 20)),
    "truncation_side": honoured(text(8)),
    "thinking_token_budget": honoured(integer(0, 1 << 20), says="where the server has a reasoning parser"),
    "stream_interval": honoured(integer(1, 1024)),
}
_TOOL_USE: Final[Mapping[str, FieldSpec]] = {"tools": _TOOLS, "tool_choice": honoured(choice, shapes.Choice)}
_CONVERSATION: Final[Mapping[str, FieldSpec]] = {
    "add_generation_prompt": _SWITCH,
    "continue_final_message": _SWITCH,
    "chat_template_kwargs": _TEMPLATE,
}

HONOURED: Final[Mapping[Endpoint, Mapping[str, FieldSpec]]] = {
    "chat_completions": {
        **_OPENAI,
        **_TOOL_USE,
        **_CONVERSATION,
        "messages": _MESSAGES,
        "parallel_tool_calls": _SWITCH,
        "max_completion_tokens": _TOKENS,
        "logprobs": _SWITCH,
        "top_logprobs": _LOGPROBS,
        "reasoning_effort": honoured(text(16)),
        "include_reasoning": _SWITCH,
        "echo": _SWITCH,
        "return_prompt_text": _SWITCH,
    },
    "completions": {
        **_OPENAI,
        "max_tokens": honoured(integer(0, 1 << 20), says="0 with echo: the prompt alone"),
        "prompt": honoured(prompts(MAX_PROMPTS)),
        "suffix": honoured(text(1 << 16)),
        "echo": _SWITCH,
        "logprobs": _LOGPROBS,
    },
    "responses": {
        **_SAMPLING,
        **_SEEDED,
        **_SHAPING,
        **_TOOL_USE,
        "chat_template_kwargs": _TEMPLATE,
        "input": honoured(
            response_input,
            message_shapes.ResponseInput,
            "messages, calls and their outputs, reasoning; see [clients](clients.md)",
        ),
        "parallel_tool_calls": _SWITCH,
        "instructions": honoured(text(1 << 20)),
        "max_output_tokens": _TOKENS,
        "max_tool_calls": honoured(integer(0, 128)),
        "text": honoured(text_options, shapes.TextOptions),
        "reasoning": _ANY_OBJECT,
        "include_reasoning": _SWITCH,
        "include": honoured(array(16, text(64))),
        "truncation": honoured(text(16)),
        "top_logprobs": _LOGPROBS,
        "metadata": _ANY_OBJECT,
        "store": _SWITCH,
        "service_tier": honoured(text(32)),
    },
    "messages": {
        **_SAMPLING,
        **_TOOL_USE,
        "chat_template_kwargs": _TEMPLATE,
        "metadata": honoured(shallow_object, shapes.AnyObject, "user_id means what user means elsewhere"),
        "messages": _TURNS,
        "system": honoured(system, message_shapes.SystemText),
        "max_tokens": _TOKENS,
        "stop_sequences": honoured(stop_list, shapes.StopList),
        "thinking": _ANY_OBJECT,
        "output_config": honoured(output_config, shapes.OutputConfig),
        "output_format": honoured(output_format, shapes.OutputFormat, "an earlier name of output_config.format"),
    },
    "count_tokens": {
        **_TOOL_USE,
        "model": _MODEL,
        "messages": _TURNS,
        "system": honoured(system, message_shapes.SystemText),
        "thinking": _ANY_OBJECT,
        "output_config": honoured(output_config, shapes.OutputConfig),
        "chat_template_kwargs": _TEMPLATE,
    },
    "tokenize": {
        **_CONVERSATION,
        "model": _MODEL,
        "prompt": honoured(text(1 << 22)),
        "messages": _MESSAGES,
        "add_special_tokens": _SWITCH,
        "return_token_strs": _SWITCH,
        "tools": _TOOLS,
    },
    "detokenize": {"model": _MODEL, "tokens": honoured(token_ids(1 << 20))},
    "embeddings": {
        "model": _MODEL,
        "user": honoured(text(4096)),
        "input": honoured(prompts(MAX_INPUTS)),
        "encoding_format": honoured(text(16)),
        "dimensions": honoured(integer(1, 1 << 16)),
        "embed_dtype": honoured(text(16)),
        "endianness": honoured(text(16)),
        "use_activation": _SWITCH,
        "add_special_tokens": _SWITCH,
        "truncate_prompt_tokens": honoured(integer(-1, 1 << 20)),
        "truncation_side": honoured(text(8)),
    },
}
FIELDS: Final[Mapping[Endpoint, Mapping[str, FieldSpec]]] = {
    endpoint: {**NOT_HONOURED, **ONE_ENDPOINT.get(endpoint, {}), **table} for endpoint, table in HONOURED.items()
}
"""It has every field of every endpoint that this server knows."""
FIELD_NAMES: Final = frozenset(name for table in HONOURED.values() for name in table)
"""It has the honoured fields of all endpoints together."""
_OF_TOKENS: Final = ("prompt", "input", "tokens", "stop_token_ids", "logit_bias", "allowed_token_ids")


@dataclass(frozen=True, slots=True)
class CheckedBody:
    """What of a body the engine gets, and the names of what it does not get."""

    body: dict[str, Any]
    ignored: list[str]
    media_bytes: int = 0
    """About so much of the body as it came is pictures and sounds."""
    text_bytes: int = 0
    """The rest has this size, once it is decoded."""


def check_fields(
    endpoint: Endpoint,
    body: Mapping[str, Any],
    vocabulary_size: int | None = None,
    context_tokens: int | None = None,
    *,
    refuse_unknown: bool = False,
    media: MediaBounds = TEXT_ONLY,
) -> CheckedBody:
    """Refuse the first field that is out of bounds or not served, and leave out what has no effect; null means absent.

    Args:
        endpoint: whose tables hold.
        body: as it came.
        vocabulary_size: token ids are below it; None where it is not known.
        context_tokens: longest prompt plus answer; None where it is not known.
        refuse_unknown: whether a field of no table is refused.
        media: what of pictures and sounds the model reads.

    Raises:
        FieldRefused: names the field and its bounds or the next step, never its value.
        MediaUnsupported, MediaTooLarge: see `check_media`.
    """
    table, kept = FIELDS[endpoint], {}
    body, ignored = plain_turns(endpoint, with_plain_media(endpoint, body), refuse_unknown=refuse_unknown)
    for name, value in body.items():
        spec = table.get(name)
        if spec is None:
            if refuse_unknown:
                raise FieldRefused(shown_name(name), "is not a field this server knows; remove it and send it again")
            ignored.append(name)
        elif value is None:
            continue
        elif spec.rule == "honoured":
            assert spec.check is not None
            spec.check(name, value)
            kept[name] = value
        elif spec.rule == "without effect":
            ignored.append(name)
        elif not spec.asks_for_nothing(value):
            raise FieldRefused(name, f"is not served here; {spec.says}")
    if vocabulary_size is not None and endpoint != "responses":
        _check_vocabulary(kept, vocabulary_size)
    media_bytes = check_media(kept, media)
    ignored += rewrite(endpoint, kept)
    check_together(endpoint, kept, context_tokens)
    return CheckedBody(kept, ignored, media_bytes)


def _check_vocabulary(body: Mapping[str, Any], size: int) -> None:
    for name in _OF_TOKENS:
        value = body.get(name)
        if value and not isinstance(value, str) and max(tokens_of(value), default=0) >= size:
            raise FieldRefused(name, f"token ids must be below {size}, the size of the vocabulary")
