"""What a conversation holds of other services' tools, in all three dialects, brought into what vLLM reads.

It comes before the checks of the fields, so that what is made of it is checked as if it had been sent.
"""

from collections.abc import Mapping
from typing import Any

from amalgam.api.fields.chat_blocks import chat_told
from amalgam.api.fields.past_blocks import plain_messages, tool_changes
from amalgam.api.fields.past_items import kind_of, plain_items, tools_in
from amalgam.api.fields.plain_chats import plain_message
from amalgam.engine.protocol import Endpoint
from amalgam.errors.requests import FieldRefused


def plain_turns(
    endpoint: Endpoint, body: Mapping[str, Any], *, refuse_unknown: bool = False
) -> tuple[Mapping[str, Any], list[str]]:
    """``body``, or a copy with a plainer conversation; and names of what is left out of it, for the header.

    Args:
        endpoint: in whose dialect it is.
        body: as it came; it is not changed.
        refuse_unknown: whether what nobody knows is refused.

    Raises:
        FieldRefused: see `plain_items`, `plain_messages` and `chat_told`.
    """
    if endpoint == "responses" and isinstance(items := body.get("input"), list):
        left_out: set[str] = set()
        plain = {**body, "input": plain_items("input", items, left_out, refuse_unknown=refuse_unknown)}
        _add_tools(plain, tools_in(items))
        _configure(plain, items)
        return plain, sorted(left_out)
    if endpoint in ("messages", "count_tokens") and isinstance(messages := body.get("messages"), list):
        left_out = set()
        plain = {**body, "messages": plain_messages("messages", messages, left_out, refuse_unknown=refuse_unknown)}
        _change_tools(plain, messages)
        return plain, sorted(left_out)
    if endpoint in ("chat_completions", "tokenize") and isinstance(messages := body.get("messages"), list):
        left_out = set()
        plain = {**body, "messages": _plain_chat(messages, left_out, refuse_unknown=refuse_unknown)}
        return plain, sorted(left_out)
    return body, []


def _plain_chat(messages: list[Any], left_out: set[str], *, refuse_unknown: bool) -> list[Any]:
    plain: list[Any] = []
    for message in map(plain_message, messages):
        if isinstance(message, Mapping) and isinstance(message.get("content"), list):
            plain.extend(chat_told("messages", message, left_out, refuse_unknown=refuse_unknown))
        else:
            plain.append(message)
    if messages and not plain:
        raise FieldRefused("messages", "hold nothing that the model reads; add a text")
    return plain


def _add_tools(body: dict[str, Any], tools: list[Mapping[str, Any]]) -> None:
    given = body.get("tools") or []
    if not tools or not isinstance(given, list):
        return
    names = {_name_of(tool) for tool in given}
    added = {name: tool for tool in tools if (name := _name_of(tool)) is not None and name not in names}
    nameless = [tool for tool in tools if _name_of(tool) is None]
    body["tools"] = [*given, *added.values(), *nameless]


def _name_of(tool: Any) -> str | None:
    """The name of a tool in any dialect; None where it has none, or one that is no text, which the checks refuse."""
    inner = tool.get("function") if isinstance(tool, Mapping) else None
    holder = inner if isinstance(inner, Mapping) else tool
    name = holder.get("name") if isinstance(holder, Mapping) else None
    return name if isinstance(name, str) else None


def _configure(body: dict[str, Any], items: list[Any]) -> None:
    """What a conversation changes of the request's own settings: the last change of each holds."""
    for item in items:
        if kind_of(item) != "configuration_update":
            continue
        for name in ("reasoning", "text"):
            change, given = item.get(name), body.get(name) or {}
            if isinstance(change, Mapping) and isinstance(given, Mapping):
                body[name] = {**given, **change}


def _change_tools(body: dict[str, Any], messages: list[Any]) -> None:
    """The tools that are offered at a conversation's end."""
    changes = list(tool_changes(messages))
    given = body.get("tools") or []
    if not changes or not isinstance(given, list):
        return
    named: dict[str, Any] = {name: tool for tool in given if (name := _name_of(tool)) is not None}
    nameless = [tool for tool in given if _name_of(tool) is None]
    hidden: dict[str, Any] = {}
    for kind, tool in changes:
        inner = tool.get("definition")
        name = inner.get("name") if isinstance(inner, Mapping) else tool.get("name")
        if not isinstance(name, str):
            continue
        if kind == "tool_removal":
            hidden |= {name: named.pop(name)} if name in named else {}
        elif isinstance(inner, Mapping):
            named[name] = inner
        elif (known := named.get(name, hidden.get(name))) is not None:
            named[name] = {key: value for key, value in known.items() if key != "defer_loading"}
    body["tools"] = [*nameless, *named.values()]
