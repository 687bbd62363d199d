"""What a chat consists of: messages, the parts of their content, and tools.

Media are told by the type of their part, and checked in `media_fields`; other parts hold text alone.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from amalgam.api.fields.checks import MAX_NESTING, array, mapping, shallow, text
from amalgam.api.fields.constraints import response_format, schema_within, shown_schema_within
from amalgam.api.fields.media import MEDIA_PARTS, refuse_hidden
from amalgam.api.fields.past_items import ITEMS
from amalgam.errors.requests import FieldRefused

MAX_MESSAGES: Final = 2048
MAX_ITEMS: Final = 1024
"""Of the Responses dialect, whose request class takes several times as long to read one."""
MAX_PARTS: Final = 1024
MAX_TOOLS: Final = 512
MAX_CALLS: Final = 128
"""Of tools, in one message."""
MAX_TOOL_NAME: Final = 128
MAX_ROLE: Final = 32
MAX_TEXT: Final = 1 << 22

_MESSAGES: Final = array(MAX_MESSAGES).check
_ITEM_LIST: Final = array(MAX_ITEMS).check
_TOOLS: Final = array(MAX_TOOLS).check
_CALLS: Final = array(MAX_CALLS).check
_PARTS: Final = array(MAX_PARTS).check
_ROLE: Final = text(MAX_ROLE).check
_TOOL_NAME: Final = text(MAX_TOOL_NAME).check
_TEXT: Final = text(MAX_TEXT).check

_TEXT_PARTS: Final = frozenset(
    {"text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking", "reasoning_text", "summary_text"}
)
_ITEMS: Final = frozenset(kind for kind, spec in ITEMS.items() if spec.rule == "read")
_PARTS_SERVED: Final = _TEXT_PARTS | {"tool_use", "tool_result", "tool_reference"} | MEDIA_PARTS.keys()


def messages(name: str, value: Any) -> None:
    """A list of messages, each an object with a role and content of text or media."""
    _MESSAGES(name, value)
    if not value:
        raise FieldRefused(name, "must not be empty")
    for message in value:
        if not _is_plain(message):
            shallow(name, message)
            _message(name, mapping(name, message))


def response_input(name: str, value: Any) -> None:
    """The Responses dialect's input: a text, or a list of items."""
    if isinstance(value, str):
        return
    _ITEM_LIST(name, value)
    if not value:
        raise FieldRefused(name, "must not be empty")
    for item in value:
        shallow(name, item)
        fields = mapping(name, item)
        kind = fields.get("type", "message")
        if not isinstance(kind, str) or kind not in _ITEMS:
            raise FieldRefused(name, f"items must be of type {', '.join(sorted(_ITEMS))}")
        for key in ("content", "output", "summary"):
            _content(name, fields.get(key))
        _arguments(name, fields.get("arguments"))


def system(name: str, value: Any) -> None:
    """Anthropic's system prompt: a text or parts of text."""
    shallow(name, value)
    _content(name, value)
    if isinstance(value, list) and any(isinstance(part, dict) and part["type"] in MEDIA_PARTS for part in value):
        raise FieldRefused(name, "must be text, or parts of type text; send pictures in a message")


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
    _ROLE(name, message.get("role"))
    _content(name, message.get("content"))
    calls = message.get("tool_calls")
    if calls is not None:
        _CALLS(name, calls)
        for call in calls:
            function = mapping(name, call).get("function")
            _arguments(name, mapping(name, function).get("arguments") if function is not None else None)


def _content(name: str, value: Any) -> None:
    if value is None or isinstance(value, str):
        return
    _PARTS(name, value)
    for part in value:
        if isinstance(part, str):
            continue
        kind = mapping(name, part).get("type")
        if not isinstance(kind, str) or kind not in _PARTS_SERVED:
            raise FieldRefused(
                name, "content must be text, or parts of type text, or media that the model reads; send files as text"
            )
        if kind in MEDIA_PARTS:
            continue
        refuse_hidden(name, part)
        if kind == "tool_result":
            _content(name, part.get("content"))
        elif kind == "text":
            _TEXT(name, part.get("text"))


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
