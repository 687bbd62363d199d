"""What a chat consists of: messages, the parts of their content, and tools.

Each dialect has parts of its own, and vLLM reads no others: what clients send of another's has been told in its own
before (`past_turns`). Media are told by the type of their part, and checked in `media`; other parts hold text alone.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from amalgam.api.fields.checks import MAX_NESTING, array, mapping, shallow, text
from amalgam.api.fields.constraints import response_format, schema_within, shown_schema_within
from amalgam.api.fields.media import MEDIA_PARTS, refuse_hidden
from amalgam.api.fields.parts import (
    BLOCKS_BY_ROLE,
    IN_CHATS,
    IN_ITEMS,
    IN_REASONING,
    IN_RESULTS,
    IN_SAID_ITEMS,
    IN_SYSTEM,
    Parts,
)
from amalgam.api.fields.past_items import ITEMS
from amalgam.errors.requests import FieldRefused

MAX_MESSAGES: Final = 2048
MAX_ITEMS: Final = 1024
"""It bounds the items of the Responses dialect, whose request class takes several times as long to read one."""
MAX_PARTS: Final = 1024
MAX_TOOLS: Final = 512
MAX_CALLS: Final = 128
"""One message has at most so many calls of tools."""
MAX_TOOL_NAME: Final = 128
MAX_ROLE: Final = 32

_MESSAGES: Final = array(MAX_MESSAGES).check
_ITEM_LIST: Final = array(MAX_ITEMS).check
_TOOLS: Final = array(MAX_TOOLS).check
_CALLS: Final = array(MAX_CALLS).check
_PARTS: Final = array(MAX_PARTS).check
_ROLE: Final = text(MAX_ROLE).check
_TOOL_NAME: Final = text(MAX_TOOL_NAME).check

_ITEMS: Final = frozenset(kind for kind, spec in ITEMS.items() if spec.rule == "read")
_LABELS: Final = ("name", "tool_call_id", "reasoning", "reasoning_content")
"""These fields of a chat's message are texts where they are there."""
_ITEM_ROLES: Final = ("user", "assistant", "system", "developer")
_TEXTS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "function_call": ("call_id", "name", "arguments"),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id",),
}
"""By type of item, it names the fields that have to be texts."""


def messages(name: str, value: Any) -> None:
    """A list of messages, each an object with a role and content of text or media."""
    _MESSAGES(name, value)
    if not value:
        raise FieldRefused(name, "must not be empty")
    for message in value:
        if not _is_plain(message):
            shallow(name, message)
            _message(name, mapping(name, message))


def turns(name: str, value: Any) -> None:
    """Messages of Anthropic's dialect, in which calls and their results are blocks of the content."""
    _MESSAGES(name, value)
    if not value:
        raise FieldRefused(name, "must not be empty")
    for turn in value:
        if _is_plain(turn) and turn["role"] in BLOCKS_BY_ROLE:
            continue
        shallow(name, turn)
        fields = mapping(name, turn)
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str) or role not in BLOCKS_BY_ROLE:
            raise FieldRefused(name, f"roles must be {', '.join(BLOCKS_BY_ROLE)}; results of tools are a user's")
        if content is None:
            raise FieldRefused(name, "each needs content: a text, or a list of blocks")
        _content(name, content, BLOCKS_BY_ROLE[role])
        if fields.get("tool_calls") not in (None, []):
            raise FieldRefused(name, "must have no tool_calls; send blocks of type tool_use in content")


def response_input(name: str, value: Any) -> None:
    """The Responses dialect's input: a text, or a list of items."""
    if isinstance(value, str):
        return
    _ITEM_LIST(name, value)
    if not value:
        raise FieldRefused(name, "must not be empty")
    for item in value:
        shallow(name, item)
        _item(name, mapping(name, item))


def system(name: str, value: Any) -> None:
    """Anthropic's system prompt: a text or parts of text."""
    shallow(name, value)
    _content(name, value, IN_SYSTEM)


def text_options(name: str, value: Any) -> None:
    """The Responses dialect's ``text``: the format of the answer, and how wordy it is."""
    shallow(name, value)
    if mapping(name, value).get("format") is not None:
        response_format(name, value["format"])


def output_config(name: str, value: Any) -> None:
    """Anthropic's: how much effort, and the schema of the answer."""
    shallow(name, value)
    given = mapping(name, value).get("format")
    if given is not None and mapping(name, given).get("schema") is not None:
        schema_within(name, given["schema"])


def output_format(name: str, value: Any) -> None:
    """Anthropic's, before it stood in ``output_config``: the schema of the answer."""
    output_config(name, {"format": value})


def tools(name: str, value: Any) -> None:
    """Functions in any of the three dialects; of other tools the shape only, for they are left out.

    What an answer is constrained to is bounded further, together with the choice of tools.
    """
    _TOOLS(name, value)
    for tool in value:
        shallow(name, tool)
        fields = mapping(name, tool)
        kind = fields.get("type")
        if kind is not None:
            _TOOL_NAME(name, kind)
        if kind == "namespace":
            _namespace(name, fields)
        if kind not in (None, "function", "custom"):
            continue
        function = mapping(name, fields["function"]) if "function" in fields else fields
        _TOOL_NAME(name, function.get("name"))
        for key in ("parameters", "input_schema"):
            if function.get(key) is not None:
                shown_schema_within(name, function[key])


def functions_of(tools: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The functions of checked tools, in any of the dialects, and those in namespaces."""
    for tool in tools:
        if tool.get("type") == "namespace":
            yield from functions_of(tool["tools"])
        else:
            inner = tool.get("function")
            yield inner if isinstance(inner, Mapping) else tool


def _namespace(name: str, tool: Mapping[str, Any]) -> None:
    """The Responses dialect's namespace: functions that share the beginning of their names."""
    _TOOL_NAME(name, tool.get("name"))
    inner = tool.get("tools")
    if isinstance(inner, list) and any(isinstance(one, dict) and one.get("type") == "namespace" for one in inner):
        raise FieldRefused(name, "a namespace must not hold another")
    tools(name, inner)


def _is_plain(message: Any) -> bool:
    """Whether it is a role and a text and nothing else, as nearly all messages are."""
    return (
        isinstance(message, dict)
        and len(message) == 2
        and isinstance(message.get("content"), str)
        and isinstance(role := message.get("role"), str)
        and len(role) <= MAX_ROLE
    )


def _message(name: str, message: Mapping[str, Any]) -> None:
    if not isinstance(message.get("role"), str):
        raise FieldRefused(name, "each needs a role, such as user")
    _ROLE(name, message["role"])
    _content(name, message.get("content"), IN_CHATS)
    for key in _LABELS:
        if message.get(key) is not None and not isinstance(message[key], str):
            raise FieldRefused(name, f"{key} must be a text")
    if message.get("function_call") is not None:
        raise FieldRefused(name, "a function_call needs a name; send tool_calls")
    calls = message.get("tool_calls")
    if calls is not None:
        _CALLS(name, calls)
        for call in calls:
            _call(name, mapping(name, call))


def _call(name: str, call: Mapping[str, Any]) -> None:
    """VLLM reads calls while it fills the template, long after its class has taken the request."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise FieldRefused(name, "each of tool_calls needs a function with a name")
    if not isinstance(function.get("arguments"), str):
        raise FieldRefused(name, "arguments of a call must be an object, or its JSON in a text")
    if not isinstance(call.get("id"), str):
        raise FieldRefused(name, "id of each of tool_calls must be a text; its result has the same in tool_call_id")
    if call.get("type") != "function":
        raise FieldRefused(name, "each of tool_calls must be of type function, or custom with a custom call in it")
    _arguments(name, function["arguments"])


def _item(name: str, item: Mapping[str, Any]) -> None:
    kind = item.get("type", "message")
    if not isinstance(kind, str) or kind not in _ITEMS:
        raise FieldRefused(name, f"items must be of type {', '.join(sorted(_ITEMS))}")
    if kind == "function_call_output" and not isinstance(item.get("call_id"), str | None):
        raise FieldRefused(name, "call_id of a function_call_output must be a text")
    for key in _TEXTS_OF.get(kind, ()):
        if not isinstance(item.get(key), str):
            raise FieldRefused(name, f"an item of type {kind} needs {key}, a text")
    parts = IN_REASONING if kind == "reasoning" else IN_ITEMS
    if kind == "message":
        _said_item(name, item)
        parts = IN_SAID_ITEMS if item["role"] == "assistant" else IN_ITEMS
    for key in ("content", "output", "summary"):
        _content(name, item.get(key), parts)
    _arguments(name, item.get("arguments"))


def _said_item(name: str, item: Mapping[str, Any]) -> None:
    """A message, in which calls and their outputs have no place."""
    role = item.get("role")
    if not isinstance(role, str) or role not in _ITEM_ROLES:
        roles = ", ".join(_ITEM_ROLES)
        raise FieldRefused(name, f"roles must be {roles}; send what a tool gave as a function_call_output")
    if item.get("content") is None:
        raise FieldRefused(name, "each message needs content: a text, or a list of parts")
    if item.get("tool_calls") not in (None, []):
        raise FieldRefused(name, "must have no tool_calls; send items of type function_call")


def _content(name: str, value: Any, parts: Parts) -> None:
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, list):
        raise FieldRefused(name, "content must be a text or a list of parts")
    _PARTS(name, value)
    for part in value:
        if isinstance(part, str) and parts.bare:
            continue
        kind = mapping(name, part).get("type")
        if not isinstance(kind, str) or kind not in parts.kinds:
            raise FieldRefused(name, parts.says)
        if kind in MEDIA_PARTS:
            continue
        refuse_hidden(name, part)
        for key, check in parts.kinds[kind].items():
            check(name, key, kind, part.get(key))
        if kind == "tool_result":
            _content(name, part.get("content"), IN_RESULTS)


def _arguments(name: str, value: Any) -> None:
    """A call's arguments are JSON inside of a string, which the chat template's renderer parses again."""
    if not isinstance(value, str) or value.count("{") + value.count("[") < MAX_NESTING - 1:
        # Too few brackets to be nested too deeply.
        return
    try:
        shallow(name, json.loads(value))
    except RecursionError:
        raise FieldRefused(name, "has arguments that are nested too deeply") from None
    except ValueError:
        return
