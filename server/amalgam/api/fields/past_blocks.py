"""Blocks of an Anthropic conversation in which its own tools were used, or documents sent: told in blocks vLLM reads.

The rules are those of `past_items`. A call that Anthropic's server ran has its result in the same message; here the
message is divided, so that the result stands where a client's own would.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from amalgam.api.fields.checks import shallow
from amalgam.api.fields.past_items import readable_text
from amalgam.api.fields.table import shown_name
from amalgam.errors.requests import FieldRefused

Block = Mapping[str, Any]
BlockRule = Literal["read", "told as text", "told as calls", "heeded", "left out"]

BLOCKS: Final[Mapping[str, tuple[BlockRule, str]]] = {
    **dict.fromkeys(("text", "tool_use", "thinking", "redacted_thinking"), ("read", "")),
    "image": ("read", "where the model reads pictures"),
    "tool_result": ("read", "with what is in it"),
    "tool_reference": ("read", "in a `tool_result`"),
    "document": ("told as text", "where its source is text or content; other sources are refused: send the text"),
    "search_result": ("told as text", "title, source and texts"),
    "compaction": ("told as text", "its summary"),
    "server_tool_use": ("told as calls", "a call of its name"),
    "mcp_tool_use": ("told as calls", "a call of `SERVER__NAME`"),
    **dict.fromkeys(
        (
            *("web_search_tool_result", "web_fetch_tool_result", "code_execution_tool_result", "mcp_tool_result"),
            *("bash_code_execution_tool_result", "text_editor_code_execution_tool_result"),
            *("tool_search_tool_result", "advisor_tool_result"),
        ),
        ("told as calls", "the output of its call, as far as it can be read"),
    ),
    "tool_addition": ("heeded", "its tool is one of `tools`"),
    "tool_removal": ("heeded", "its tool is none of `tools`"),
    "container_upload": ("left out", "no code is run here"),
    "mcp_tool_listing": ("left out", "such tools are not run here"),
    "fallback": ("left out", "it says which model spoke"),
}
"""It has every type of block that the newest client of Anthropic knows; a test compares."""
READ: Final = frozenset(kind for kind, (rule, _) in BLOCKS.items() if rule == "read")
_RESULT: Final = "_tool_result"


def plain_messages(name: str, messages: list[Any], left_out: set[str], *, refuse_unknown: bool) -> list[Any]:
    """``messages`` in blocks that vLLM reads; names of what is left out are added to ``left_out``.

    Raises:
        FieldRefused: a document that is not text, or nothing is left.
    """
    plain: list[Any] = []
    for message in messages:
        if isinstance(message, Mapping) and isinstance(message.get("content"), list):
            plain.extend(divided(name, message, READ, left_out, refuse_unknown=refuse_unknown))
        else:
            plain.append(message)
    if messages and not plain:
        raise FieldRefused(name, "hold nothing that the model reads; add a text")
    return plain


def divided(
    name: str, message: Any, read: frozenset[str], left_out: set[str], *, refuse_unknown: bool
) -> Iterator[Any]:
    """The messages that say what one of them says in blocks of the types ``read``; itself where it has no others.

    Raises:
        FieldRefused: a document that is not text.
    """
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        yield message
        return
    is_models = message.get("role") == "assistant"
    if all(_is_plain(block, read) and not (is_models and kind_of(block) == "tool_result") for block in content):
        yield message
        return
    shallow(name, message)
    yield from _Divided(name, message, read, left_out, refuse_unknown=refuse_unknown).messages()


def tool_changes(messages: list[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What messages add to the tools and remove from them: ``tool_addition`` or ``tool_removal``, and the tool."""
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for block in content if isinstance(content, list) else ():
            changes = block.get("tool_changes") if kind_of(block) == "compaction" else [block]
            for change in changes if isinstance(changes, list) else ():
                kind = kind_of(change)
                if kind in ("tool_addition", "tool_removal") and isinstance(change.get("tool"), Mapping):
                    yield kind, change["tool"]


def kind_of(block: Any) -> str | None:
    """The type of a block; None where it has none."""
    kind = block.get("type") if isinstance(block, Mapping) else None
    return kind if isinstance(kind, str) else None


def _is_plain(block: Any, read: frozenset[str]) -> bool:
    kind = kind_of(block)
    if kind == "tool_result":
        inner = block.get("content")
        return not isinstance(inner, list) or all(kind_of(part) in read for part in inner)
    return kind in read or (kind is None and not isinstance(block, str))


class _Divided:
    """One message, as the messages that say the same."""

    def __init__(
        self,
        name: str,
        message: Mapping[str, Any],
        read: frozenset[str],
        left_out: set[str],
        *,
        refuse_unknown: bool,
    ) -> None:
        self._name = name
        self._message = message
        self._read = read
        self._left_out = left_out
        self._refuse_unknown = refuse_unknown

    def messages(self) -> Iterator[Mapping[str, Any]]:
        """Results among what the model said become messages of the user, between what was said before and after."""
        blocks: list[Block] = []
        results: list[Block] = []
        for block in self._message["content"]:
            kind = kind_of(block)
            is_result = kind is not None and (kind == "tool_result" or kind.endswith(_RESULT))
            if is_result and self._message.get("role") == "assistant":
                results.extend(self._plain(kind, block))
                continue
            if results:
                yield from self._said(blocks, results)
                blocks, results = [], []
            blocks.extend(self._plain(kind, block))
        yield from self._said(blocks, results)

    def _said(self, blocks: list[Block], results: list[Block]) -> Iterator[Mapping[str, Any]]:
        if blocks:
            yield {**self._message, "content": blocks}
            self._message = {key: value for key, value in self._message.items() if key != "tool_calls"}
        if results:
            yield {"role": "user", "content": results}

    def _plain(self, kind: str | None, block: Block) -> Iterator[Block]:
        if isinstance(block, str):
            yield _as_text(block)
        elif kind == "tool_result" and not _is_plain(block, self._read):
            yield {**block, "content": [part for one in block["content"] for part in self._inner(one)]}
        elif kind == "document" or kind == "search_result":
            yield from self._inner(block)
        elif kind == "compaction":
            if isinstance(block.get("content"), str):
                yield _as_text(block["content"])
        elif kind is not None and kind.endswith(_RESULT):
            yield self._result(block)
        elif kind in ("server_tool_use", "mcp_tool_use"):
            yield _use(block)
        elif kind is None or kind in self._read or kind == "tool_result":
            yield block
        elif kind not in BLOCKS:
            yield from self._unknown(kind, block)
        elif BLOCKS[kind][0] == "left out":
            self._left_out.add(f"{self._name}.{kind}")

    def _unknown(self, kind: str, block: Block) -> Iterator[Block]:
        """What a user says in words that nobody knows would be missed; the checks refuse it."""
        if self._message.get("role") != "assistant":
            yield block
            return
        if self._refuse_unknown:
            said = f"have a block of type {shown_name(kind)}, which this server does not know; remove it"
            raise FieldRefused(self._name, said)
        self._left_out.add(f"{self._name}.{kind}")

    def _inner(self, part: Any) -> Iterator[Any]:
        """A document or a result of a search as parts of text, and pictures that are in it."""
        kind = kind_of(part)
        if isinstance(part, str):
            yield _as_text(part)
        elif kind == "document":
            yield from self._document(part)
        elif kind == "search_result":
            texts = part.get("content")
            inner = [one.get("text") for one in texts if isinstance(one, Mapping)] if isinstance(texts, list) else []
            yield _as_text(part.get("title"), part.get("source"), *inner)
        elif kind == "browser_state":
            yield _as_text(readable_text(part))
        else:
            yield part

    def _document(self, part: Block) -> Iterator[Any]:
        source = part.get("source")
        source = source if isinstance(source, Mapping) else {}
        data = source.get("data") if source.get("type") == "text" else source.get("content")
        if source.get("type") not in ("text", "content") or not isinstance(data, str | list):
            raise FieldRefused(self._name, "documents must be text or content here; send what is written in them")
        if isinstance(data, str):
            yield _as_text(part.get("title"), part.get("context"), data)
            return
        if isinstance(part.get("title"), str) or isinstance(part.get("context"), str):
            yield _as_text(part.get("title"), part.get("context"))
        yield from data

    def _result(self, block: Block) -> Block:
        content = block.get("content")
        if isinstance(content, list) and all(kind_of(part) == "text" for part in content):
            content = "\n".join(str(part.get("text")) for part in content)
        known = block.get("tool_use_id")
        return {"type": "tool_result", "tool_use_id": known, "content": readable_text(content)}


def _use(block: Block) -> Block:
    server, name = block.get("server_name"), block.get("name")
    given = block.get("input")
    return {
        "type": "tool_use",
        "id": block.get("id"),
        "name": f"{server}__{name}" if isinstance(server, str) else name,
        "input": given if isinstance(given, Mapping) else {},
    }


def _as_text(*texts: Any) -> dict[str, str]:
    return {"type": "text", "text": "\n".join(text for text in texts if isinstance(text, str) and text)}
