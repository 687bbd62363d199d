"""Chats in the spellings that clients have for them, brought into the one that vLLM reads.

Histories come back as clients keep them: with a null for every field that a message might have, with calls whose
arguments are objects, with functions from before there were tools. Tools come in the form of another dialect. Each
means one thing.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

_WORDS: Final[Mapping[str, str]] = {"auto": "auto", "none": "none", "any": "required", "required": "required"}
"""It maps choices of tools in one word, in any dialect, to what a chat calls them."""


def plain_message(message: Any) -> Any:
    """One message of a chat; what the checks refuse comes back as it is."""
    if not isinstance(message, Mapping):
        return message
    if any(value is None for value in message.values()):
        message = _without_nulls(message)
    if message.get("role") == "function" and isinstance(message.get("name"), str):
        rest = {key: value for key, value in message.items() if key != "name"}
        return {**rest, "role": "tool", "tool_call_id": f"call_{message['name']}"}
    called = message.get("function_call")
    if isinstance(called, Mapping) and isinstance(called.get("name"), str) and not message.get("tool_calls"):
        rest = {key: value for key, value in message.items() if key != "function_call"}
        call = {"id": f"call_{called['name']}", "type": "function", "function": dict(called)}
        return {**rest, "tool_calls": [call]}
    calls = message.get("tool_calls")
    if "function_call" in message and (calls or not called):
        # Said twice, or nothing.
        message = {key: value for key, value in message.items() if key != "function_call"}
    if isinstance(calls, list) and not all(map(_is_plain, calls)):
        return {**message, "tool_calls": [_plain_call(call) for call in calls]}
    return message


def plain_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function as a chat has it, where it came in the form of the Responses dialect or of Anthropic's."""
    if isinstance(tool.get("function"), Mapping):
        return dict(tool) if tool.get("type") is not None else {**tool, "type": "function"}
    function = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
    if "parameters" not in function and tool.get("input_schema") is not None:
        function["parameters"] = tool["input_schema"]
    return {"type": "function", "function": function}


def flat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function as the Responses dialect has it, where it came in the form of a chat or of Anthropic's."""
    if tool.get("type") == "custom" and "input_schema" not in tool and not isinstance(tool.get("function"), Mapping):
        return dict(tool)
    function: dict[str, Any] = plain_tool(tool)["function"]
    known: dict[str, Any] = {k: function[k] for k in ("name", "description", "parameters", "strict") if k in function}
    return {"type": "function", "parameters": {"type": "object", "properties": {}}, **known}


def anthropic_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function as Anthropic's dialect has it, where it came in the form of a chat or of the Responses dialect."""
    if "input_schema" in tool:
        return dict(tool)
    function = plain_tool(tool)["function"]
    known = {key: function[key] for key in ("name", "description", "strict") if key in function}
    return {**known, "input_schema": function.get("parameters") or {"type": "object"}}


def flat_choice(choice: Any) -> Any:
    """A choice of tools as the Responses dialect has it; of what is no function it stays as it is."""
    plain = plain_choice(choice)
    if isinstance(plain, Mapping) and isinstance(inner := plain.get("function"), Mapping):
        return {"type": "function", "name": inner.get("name")}
    return plain


def anthropic_choice(choice: Any) -> Any:
    """A choice of tools as Anthropic's dialect has it; what is none comes back as it is."""
    plain = plain_choice(choice)
    if plain in ("auto", "none"):
        said: Any = {"type": plain}
    elif plain == "required":
        said = {"type": "any"}
    elif isinstance(plain, Mapping) and isinstance(inner := plain.get("function"), Mapping):
        said = {"type": "tool", "name": inner.get("name")}
    else:
        return choice
    rest = choice if isinstance(choice, Mapping) and "disable_parallel_tool_use" in choice else {}
    return said | {key: rest[key] for key in ("disable_parallel_tool_use",) if key in rest}


def plain_choice(choice: Any) -> Any:
    """A choice of tools as a chat has it, where it came in another dialect's form."""
    if isinstance(choice, str):
        return _WORDS.get(choice, choice)
    if not isinstance(choice, Mapping) or isinstance(choice.get("function"), Mapping):
        return choice
    kind, name = choice.get("type"), choice.get("name")
    if kind in ("function", "tool") and isinstance(name, str):
        return {"type": "function", "function": {"name": name}}
    return _WORDS.get(kind, choice) if isinstance(kind, str) else choice


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    """The same without fields that are null. A tool that gave nothing gave an empty text; a call needs none."""
    plain = {key: value for key, value in message.items() if value is not None}
    if "content" not in plain and message.get("role") in ("tool", "function"):
        plain["content"] = ""
    elif "content" in message and "content" not in plain and message.get("role") == "assistant":
        plain["content"] = None
    return plain


def _is_plain(call: Any) -> bool:
    if not isinstance(call, Mapping):
        return True
    if call.get("type") != "function" or "id" not in call or None in call.values():
        return False
    function = call.get("function")
    return not isinstance(function, Mapping) or isinstance(function.get("arguments"), str)


def _plain_call(call: Any) -> Any:
    """A call of a function, whether it was one of free text, lacks type or id, or has an object for arguments."""
    if not isinstance(call, Mapping):
        return call
    free, function = call.get("custom"), call.get("function")
    if call.get("type") == "custom" and isinstance(free, Mapping):
        said = json.dumps({"input": free.get("input", "")}, ensure_ascii=False)
        function = {"name": free.get("name"), "arguments": said}
        return {"id": call.get("id") or f"call_{free.get('name')}", "type": "function", "function": function}
    # Clients that put a stream together leave an empty text where they got nothing.
    plain = {key: value for key, value in call.items() if value is not None and (key, value) != ("type", "")}
    if not isinstance(function, Mapping):
        return plain
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, Mapping):
        function = {**function, "arguments": json.dumps(arguments or {}, ensure_ascii=False)}
    named = {"id": f"call_{function.get('name')}", "type": "function"}
    return {**named, **plain, "function": function}
