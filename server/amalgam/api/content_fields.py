"""What a chat consists of: messages, the parts of their content, and tools.

Only text is served. A part that names a picture or a file could make the server fetch it from wherever a client says.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from amalgam.api.constraint_fields import json_schema
from amalgam.api.field_checks import array, mapping, shallow, text
from amalgam.errors.requests import FieldRefused

MAX_MESSAGES: Final = 1024
MAX_PARTS: Final = 1024
MAX_TOOLS: Final = 128
_MAX_TOOL_NAME: Final = 128

_TEXT_PARTS: Final = frozenset(
    {"text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking", "reasoning_text", "summary_text"}
)
_ITEMS: Final = frozenset({"message", "function_call", "function_call_output", "reasoning"})
_ANTHROPIC_BLOCKS: Final = _TEXT_PARTS | {"tool_use", "tool_result"}


def messages(name: str, value: Any) -> None:
    """A list of messages, each an object with a role and textual content."""
    array(MAX_MESSAGES)(name, value)
    if not value:
        raise FieldRefused(name, "must not be empty")
    for message in value:
        shallow(name, message)
        _message(name, mapping(name, message))


def response_input(name: str, value: Any) -> None:
    """The Responses dialect's input: a text, or a list of items."""
    if isinstance(value, str):
        return
    array(MAX_MESSAGES)(name, value)
    if not value:
        raise FieldRefused(name, "must not be empty")
    for item in value:
        shallow(name, item)
        fields = mapping(name, item)
        kind = fields.get("type", "message")
        if kind not in _ITEMS:
            raise FieldRefused(name, f"items must be of type {', '.join(sorted(_ITEMS))}")
        for key in ("content", "output", "summary"):
            _content(name, fields.get(key))
        _arguments(name, fields.get("arguments"))


def system(name: str, value: Any) -> None:
    """Anthropic's system prompt: a text or parts of text."""
    shallow(name, value)
    _content(name, value)


def tools(name: str, value: Any) -> None:
    """Functions in any of the three dialects; tools that would run on this server are not among them."""
    array(MAX_TOOLS)(name, value)
    for tool in value:
        shallow(name, tool)
        fields = mapping(name, tool)
        if fields.get("type", "custom") not in ("function", "custom"):
            raise FieldRefused(name, "must be functions")
        function = mapping(name, fields["function"]) if "function" in fields else fields
        text(_MAX_TOOL_NAME)(name, function.get("name"))
        for key in ("parameters", "input_schema"):
            if function.get(key) is not None:
                json_schema(name, function[key])


def _message(name: str, message: Mapping[str, Any]) -> None:
    text(32)(name, message.get("role"))
    _content(name, message.get("content"))
    calls = message.get("tool_calls")
    if calls is not None:
        array(MAX_TOOLS)(name, calls)
        for call in calls:
            function = mapping(name, call).get("function")
            _arguments(name, mapping(name, function).get("arguments") if function is not None else None)


def _content(name: str, value: Any) -> None:
    if value is None or isinstance(value, str):
        return
    array(MAX_PARTS)(name, value)
    for part in value:
        if isinstance(part, str):
            continue
        kind = mapping(name, part).get("type")
        if kind not in _ANTHROPIC_BLOCKS:
            raise FieldRefused(name, "content must be text, or parts of type text")
        if kind == "tool_result":
            _content(name, part.get("content"))
        elif kind == "text":
            text(1 << 22)(name, part.get("text"))


def _arguments(name: str, value: Any) -> None:
    """A call's arguments are JSON inside of a string, which the chat template's renderer parses again."""
    if not isinstance(value, str):
        return
    try:
        shallow(name, json.loads(value))
    except RecursionError:
        raise FieldRefused(name, "has arguments that are nested too deeply") from None
    except ValueError:
        return
