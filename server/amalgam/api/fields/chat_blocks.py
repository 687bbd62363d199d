"""Chats that hold blocks of Anthropic's dialect, told in the messages that vLLM reads.

Programs that talk to several services keep a history as the last one gave it, and send it on. Calls in what a model
said become its ``tool_calls``, results become messages of the role ``tool``, and what stands in no chat at all is told
or left out by the rules of `past_blocks`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from amalgam.api.fields.parts import IN_CHATS
from amalgam.api.fields.past_blocks import BLOCKS, READ, divided, kind_of
from amalgam.errors.requests import FieldRefused

Message = Mapping[str, Any]
_READ: Final = READ | IN_CHATS.kinds.keys()
_TEXTS: Final = frozenset({"input_text", "output_text"})
"""These are the Responses dialect's, which vLLM reads in no message of a tool."""
_OF_THE_MODEL: Final = "a block of type tool_use is what a model said; send it with the role assistant"


def chat_told(name: str, message: Any, left_out: set[str], *, refuse_unknown: bool) -> Iterator[Any]:
    """The messages that say what ``message`` says; itself where it is one of a chat already.

    Raises:
        FieldRefused: a document that is not text, or a call that no model made.
    """
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list) or all(map(_is_plain, content)):
        yield message
        return
    left_out |= {f"{name}.{kind_of(part)}" for part in content if _is_heeded_elsewhere(part)}
    told = [
        one
        for part in divided(name, message, _READ, left_out, refuse_unknown=refuse_unknown)
        for one in _as_chat(name, part, left_out)
    ]
    if not told and message.get("tool_calls"):
        told = [{**message, "content": None}]
    yield from told


def _is_plain(part: Any) -> bool:
    """Whether vLLM's chat reads it as it is. Thoughts with a signature are Anthropic's, and no part of what is said."""
    kind = kind_of(part)
    if kind == "thinking":
        return "signature" not in part
    if kind == "tool_reference":
        return "name" in part
    if isinstance(part, str):
        return False
    return kind is None or (kind in IN_CHATS.kinds and kind not in _TEXTS)


def _is_heeded_elsewhere(part: Any) -> bool:
    kind = kind_of(part)
    row = None if kind is None else BLOCKS.get(kind)
    return row is not None and row[0] == "heeded"


def _as_chat(name: str, message: Message, left_out: set[str]) -> Iterator[Message]:
    """Results first: they answer the message before, and what a user says beside them comes after."""
    parts: list[Any] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    is_models = message.get("role") == "assistant"
    for part in message["content"]:
        kind = kind_of(part)
        if kind == "tool_use":
            if not is_models:
                raise FieldRefused(name, _OF_THE_MODEL)
            calls.append(_call(part))
        elif kind == "tool_result":
            yield from _results(part, message)
        elif kind == "redacted_thinking":
            left_out.add(f"{name}.{kind}")
        elif kind == "thinking" and is_models and isinstance(part.get("thinking"), str):
            thoughts.append(part["thinking"])
        else:
            parts.append(_plain_part(part))
    given = message.get("tool_calls") or []
    known = [call.get("id") for call in given if isinstance(call, Mapping)] if isinstance(given, list) else []
    calls = [call for call in calls if call["id"] not in known]
    if not parts and not calls and not thoughts:
        return
    told: dict[str, Any] = {**message, "content": parts or None}
    if calls and isinstance(given, list):
        told["tool_calls"] = [*given, *calls]
    if thoughts and not told.get("reasoning") and not told.get("reasoning_content"):
        told["reasoning"] = "\n\n".join(thoughts)
    yield told


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    given = block.get("input")
    said = given if isinstance(given, str) else json.dumps({} if given is None else given, ensure_ascii=False)
    known = block.get("id") or f"call_{block.get('name')}"
    return {"id": known, "type": "function", "function": {"name": block.get("name"), "arguments": said}}


def _results(block: Mapping[str, Any], message: Message) -> Iterator[Message]:
    """A message of the role ``tool``; its pictures come after, as a user's: few templates show them in a result."""
    content = block.get("content")
    known = block.get("tool_use_id") or message.get("tool_call_id")
    told = {"role": "tool", "content": "" if content is None else content}
    told |= {"tool_call_id": known} if known is not None else {}
    if not isinstance(content, list):
        yield told
        return
    plain = [_plain_part(part) for part in content]
    pictures = [part for part in plain if kind_of(part) == "image_url"]
    yield {**told, "content": [part for part in plain if kind_of(part) != "image_url"] or ""}
    if pictures:
        yield {"role": "user", "content": pictures}


def _plain_part(part: Any) -> Any:
    kind = kind_of(part)
    if kind in _TEXTS:
        return {**part, "type": "text"}
    if kind == "tool_reference" and isinstance(part.get("tool_name"), str):
        return {"type": kind, "name": part["tool_name"]}
    source = part.get("source") if kind == "image" else None
    if not isinstance(source, Mapping):
        return part
    address = source.get("url")
    if source.get("type") == "base64":
        address = f"data:{source.get('media_type')};base64,{source.get('data')}"
    return {"type": "image_url", "image_url": {"url": address}}
