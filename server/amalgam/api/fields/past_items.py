"""Items of a Responses conversation in which other services' tools were used: told in items that vLLM reads.

A client that has talked to another service sends what happened there along. What the model can read of it is told as
calls of functions and their outputs; what it cannot read is left out and named; what the conversation would not be the
same without is refused with a next step.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from amalgam.api.fields.checks import shallow
from amalgam.api.fields.table import shown_name
from amalgam.errors.requests import FieldRefused

Item = Mapping[str, Any]
ItemRule = Literal["read", "told as calls", "heeded", "left out", "refused"]
_UNREADABLE: Final = frozenset({"encrypted_content", "encrypted_stdout", "signature", "cache_control", "source_data"})


@dataclass(frozen=True, slots=True)
class ItemSpec:
    """What becomes of one type of item.

    Attributes:
        rule: see the module.
        says: for the manual; of a refused item the next step.
        tell: the items that stand in its place, where it is told as calls.
    """

    rule: ItemRule
    says: str
    tell: Callable[[Item], Iterator[dict[str, Any]]] | None = None


def readable(value: Any) -> Any:
    """``value`` without what only its writer can read: encrypted texts, signatures, and files in base64."""
    if isinstance(value, Mapping):
        if value.get("type") == "base64":
            return "(a file)"
        return {key: readable(one) for key, one in value.items() if key not in _UNREADABLE and one is not None}
    if isinstance(value, list):
        return [readable(one) for one in value]
    if isinstance(value, str) and value.startswith("data:"):
        return "(a file)"
    return value


def readable_text(value: Any) -> str:
    """`readable` as a text: JSON of what is none."""
    return value if isinstance(value, str) else json.dumps(readable(value), ensure_ascii=False)


def _id(item: Item) -> str:
    """What ties a call to its output; items that are their own output have an id alone."""
    found = item.get("call_id") or item.get("id")
    return found if isinstance(found, str) else "call"


def _output(item: Item, output: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": _id(item), "output": output}


def _called(item: Item, name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": _id(item), "name": name, "arguments": readable_text(arguments)}


def _call(name: str, *keys: str) -> ItemSpec:
    """A call that the client ran; its arguments are one object of the item, or the named values of it."""

    def tell(item: Item) -> Iterator[dict[str, Any]]:
        given = {key: item[key] for key in keys if item.get(key) is not None}
        only = next(iter(given.values())) if len(given) == 1 else None
        yield _called(item, name, only if isinstance(only, Mapping) else given)

    return ItemSpec("told as calls", f"a call of `{name}`", tell)


def _call_with_output(name: str, key: str, output: str, missing: str | None) -> ItemSpec:
    """A call that the other service ran, with what came of it in the same item, or ``missing``; None: left out then."""

    def tell(item: Item) -> Iterator[dict[str, Any]]:
        said = missing if item.get(output) is None else readable_text(item[output])
        if said is not None:
            yield _called(item, name, {key: item.get(key)})
            yield _output(item, said)

    return ItemSpec("told as calls", f"a call of `{name}`, with its output", tell)


def _tell_output(item: Item) -> Iterator[dict[str, Any]]:
    value = item.get("output")
    if value is None:
        value = item.get("result", item.get("status", ""))
    yield _output(item, readable_text(value))


def _tell_screenshot(item: Item) -> Iterator[dict[str, Any]]:
    shot = item.get("output")
    url = shot.get("image_url") if isinstance(shot, Mapping) else None
    if not isinstance(url, str):
        yield _output(item, "(a screenshot)")
        return
    yield _output(item, [{"type": "input_image", "image_url": url, "detail": "auto"}])


def _tell_mcp(item: Item) -> Iterator[dict[str, Any]]:
    names = [item[key] for key in ("server_label", "name") if isinstance(item.get(key), str)]
    arguments = item.get("arguments")
    yield _called(item, "__".join(names) or "mcp", arguments if isinstance(arguments, str | Mapping) else {})
    output = item.get("output")
    yield _output(item, readable_text(item.get("error") or "" if output is None else output))


def _tell_found_tools(item: Item) -> Iterator[dict[str, Any]]:
    tools = item.get("tools")
    names = [tool.get("name") for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []
    yield _output(item, readable_text(names))


_READ: Final = ItemSpec("read", "")
_OUTPUT: Final = ItemSpec("told as calls", "the output of its call", _tell_output)
_NOTHING_IN_IT: Final = "what was found or made is not in it"

ITEMS: Final[Mapping[str, ItemSpec]] = {
    "message": _READ,
    "function_call": _READ,
    "function_call_output": _READ,
    "custom_tool_call": _READ,
    "custom_tool_call_output": _READ,
    "reasoning": ItemSpec("read", "its texts; one that is only encrypted is left out"),
    "local_shell_call": _call("local_shell", "action"),
    "local_shell_call_output": _OUTPUT,
    "shell_call": _call("shell", "action"),
    "shell_call_output": _OUTPUT,
    "apply_patch_call": _call("apply_patch", "operation"),
    "apply_patch_call_output": _OUTPUT,
    "computer_call": _call("computer", "action", "actions"),
    "computer_call_output": ItemSpec("told as calls", "its picture, where the model reads pictures", _tell_screenshot),
    "program": _call("program", "code"),
    "program_output": _OUTPUT,
    "mcp_call": ItemSpec("told as calls", "a call of `SERVER__NAME`, with its output", _tell_mcp),
    "code_interpreter_call": _call_with_output("code_interpreter", "code", "outputs", ""),
    "file_search_call": _call_with_output("file_search", "queries", "results", None),
    "tool_search_call": _call("tool_search", "arguments"),
    "tool_search_output": ItemSpec("told as calls", "names of tools, which are added to `tools`", _tell_found_tools),
    "additional_tools": ItemSpec("heeded", "its tools are added to `tools`"),
    "configuration_update": ItemSpec("heeded", "its `reasoning` and `text` stand in those of the request"),
    "web_search_call": ItemSpec("left out", _NOTHING_IN_IT),
    "image_generation_call": ItemSpec("left out", "the model sees no picture that another made"),
    "mcp_list_tools": ItemSpec("left out", "such tools are not run here"),
    "mcp_approval_request": ItemSpec("left out", "such tools are not run here"),
    "mcp_approval_response": ItemSpec("left out", "such tools are not run here"),
    "compaction_trigger": ItemSpec("left out", "the conversation is read as it was sent"),
    "compaction": ItemSpec("refused", "its maker alone can read it; send the messages that it stands for"),
    "item_reference": ItemSpec("refused", "nothing is stored here; send the item itself"),
}
"""It has every type of item that the newest client of OpenAI knows; a test compares."""
_FIELDS: Final = frozenset(
    {*("type", "role", "content", "call_id", "name", "arguments", "input", "output", "summary", "tool_calls")}
)
_OF_CALLS: Final[Mapping[str, frozenset[str]]] = {
    "function_call": frozenset({"type", "call_id", "name", "namespace", "arguments", "id", "status"}),
    "custom_tool_call": frozenset({"type", "call_id", "name", "input", "id"}),
    **dict.fromkeys(("function_call_output", "custom_tool_call_output"), frozenset({"type", "call_id", "output"})),
}
_LABELS: Final = frozenset({"id", "namespace"})
_STATES: Final = frozenset({"in_progress", "completed", "incomplete"})
_OUTPUTS: Final = frozenset({"function_call_output", "custom_tool_call_output"})
_TOOLS_IN: Final = frozenset({"additional_tools", "tool_search_output"})


def plain_items(name: str, items: list[Any], left_out: set[str], *, refuse_unknown: bool) -> list[Any]:
    """``items`` in types that vLLM reads; names of what is left out are added to ``left_out``.

    Raises:
        FieldRefused: an item that the conversation would not be the same without, or nothing is left.
    """
    plain: list[Any] = []
    for item in map(_without_nulls, items):
        kind = kind_of(item)
        if kind == "reasoning":
            plain.extend(_reasoning(item, left_out))
        elif kind == "message":
            plain.append(_message(item))
        elif kind is None or (spec := ITEMS.get(kind)) is _READ:
            plain.append(_called_or_given(item))
        else:
            shallow(name, item)
            plain.extend(_told(name, kind, spec, item, left_out, refuse_unknown=refuse_unknown))
    if items and not plain:
        raise FieldRefused(name, "holds nothing that the model reads; add a message")
    return [_known(item) for item in plain]


def _known(item: Any) -> Any:
    """An item with the fields that vLLM reads; others say who made it and when, in types of their own."""
    if not isinstance(item, Mapping):
        return item
    return {
        key: value
        for key, value in item.items()
        if key in _FIELDS
        or (key in _LABELS and isinstance(value, str))
        or (key == "status" and isinstance(value, str) and value in _STATES)
    }


def _without_nulls(item: Any) -> Any:
    """An item without its fields that are null, but for content, which has to be there."""
    if not isinstance(item, Mapping) or all(value is not None for value in item.values()):
        return item
    return {key: value for key, value in item.items() if value is not None or key in ("content", "output")}


def kind_of(item: Any) -> str | None:
    """The type of an item; None where it is not an object with one, which the checks refuse."""
    if not isinstance(item, Mapping):
        return None
    kind = item.get("type")
    if kind is None:
        return "item_reference" if "id" in item and not item.keys() & {"role", "content"} else "message"
    return kind if isinstance(kind, str) else None


def tools_in(items: list[Any]) -> list[Mapping[str, Any]]:
    """Tools that items bring along."""
    lists = [item.get("tools") for item in items if kind_of(item) in _TOOLS_IN]
    return [tool for tools in lists if isinstance(tools, list) for tool in tools if isinstance(tool, Mapping)]


def _told(
    name: str, kind: str, spec: ItemSpec | None, item: Item, left_out: set[str], *, refuse_unknown: bool
) -> Iterator[dict[str, Any]]:
    if spec is None and refuse_unknown:
        raise FieldRefused(name, f"has an item of type {shown_name(kind)}, which this server does not know; remove it")
    if spec is not None and spec.rule == "refused":
        raise FieldRefused(name, f"has an item of type {kind}: {spec.says}")
    told = list(spec.tell(item)) if spec is not None and spec.tell is not None else []
    if not told and (spec is None or spec.rule != "heeded"):
        left_out.add(f"{name}.{kind}")
    yield from told


def _reasoning(item: Item, left_out: set[str]) -> Iterator[Item]:
    """VLLM reads the first text alone, and refuses what is encrypted."""
    for key in ("content", "summary"):
        parts = item.get(key)
        parts = [parts] if isinstance(parts, str) else parts
        if parts is not None and not (isinstance(parts, list) and all(isinstance(_text(part), str) for part in parts)):
            yield item  # the checks, or vLLM, say what is wrong with it
            return
        if text := "\n\n".join(str(_text(part)) for part in parts or ()):
            rest = {one: value for one, value in item.items() if one != "encrypted_content"}
            yield {**rest, "summary": [], "content": [{"type": "reasoning_text", "text": text}]}
            return
    if item.get("encrypted_content"):
        left_out.add("input.reasoning")


def _message(item: Item) -> Item:
    """VLLM reads the first part of what an assistant said alone, and no text that has an id; here it is one part."""
    content = item.get("content")
    if item.get("role") != "assistant":
        own: Item = _with_own_parts(item, "content")
        return own
    if isinstance(content, str) and "id" not in item:
        return item
    texts = [_text(part) for part in content] if isinstance(content, list) else [content]
    if not all(isinstance(text, str) for text in texts):
        return item
    part = {"type": "output_text", "text": "".join(map(str, texts)), "annotations": []}
    known = {"id": item.get("id") or "msg", "status": item.get("status") or "completed"}
    return {**item, **known, "type": "message", "content": [part]}


def _called_or_given(item: Any) -> Any:
    """A call with its arguments as a text, or an output as a text or in parts of this dialect."""
    kind = kind_of(item)
    if kind is None:
        return item
    arguments, output = item.get("arguments"), item.get("output")
    if kind == "function_call" and (isinstance(arguments, Mapping) or arguments is None):
        item = {**item, "arguments": json.dumps(arguments or {}, ensure_ascii=False)}
    if kind in _OUTPUTS and not isinstance(output, str | list):
        item = {**item, "output": "" if output is None else json.dumps(output, ensure_ascii=False)}
    return _with_own_parts({key: value for key, value in item.items() if key in _OF_CALLS[kind]}, "output")


def _with_own_parts(item: Any, key: str) -> Any:
    parts = item.get(key) if isinstance(item, Mapping) else None
    if not isinstance(parts, list) or all(kind_of(part) in ("input_text", "input_image") for part in parts):
        return item
    return {**item, key: [_own_part(part) for part in parts]}


def _own_part(part: Any) -> Any:
    """A text as this dialect has it, where it came as a chat's; of pictures see `plain_media`."""
    if isinstance(part, str):
        return {"type": "input_text", "text": part}
    kind = kind_of(part)
    if kind in ("text", "output_text"):
        return {**part, "type": "input_text"}
    return part


def _text(part: Any) -> Any:
    if isinstance(part, str) or not isinstance(part, Mapping):
        return part
    return part.get("refusal") if part.get("type") == "refusal" else part.get("text")
