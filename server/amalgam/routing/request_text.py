"""What a user says in the body of a request, whatever its dialect.

Turns of the user alone count: neither the system's text, nor the assistant's, nor results of tools, which say what a
tool has found and not what is asked for. A conversation with calls of tools so goes to one target throughout.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from amalgam.domain.routing import Said
from amalgam.routing.features import HALF_TEXT, bounded

_LATEST: Final = 2 * HALF_TEXT
"""So many characters of earlier turns are read, the latest first."""
_PARTS: Final = 64
"""So many parts of one turn are read, or texts of one request."""
_TEXTS: Final = frozenset({"text", "input_text"})


def said_in(body: Mapping[str, Any]) -> Said:
    """What the user says; a body of token ids, or without any text, says nothing."""
    turns = body.get("messages")
    if not isinstance(turns, list):
        turns = body.get("input")
    if not isinstance(turns, list) or not any(isinstance(turn, Mapping) for turn in turns):
        return Said(_text(body.get("prompt") if body.get("input") is None else body["input"]))
    return _of_turns(turns)


def _of_turns(turns: Sequence[Any]) -> Said:
    latest = (text for text in map(_of_turn, reversed(turns)) if text)
    last = next(latest, "")
    earlier: list[str] = []
    size = 0
    for text in latest:
        if size >= _LATEST:
            break
        earlier.append(text)
        size += len(text)
    return Said(last, "\n".join(reversed(earlier)))


def _of_turn(turn: Any) -> str:
    if not isinstance(turn, Mapping) or turn.get("role") != "user":
        return ""
    return _text(turn.get("content"))


def _text(content: Any) -> str:
    """A text as it is, of several the texts, each bounded; of anything else nothing."""
    if isinstance(content, str):
        return bounded(content.strip())
    if not isinstance(content, list):
        return ""
    return "\n".join(filter(None, _pieces(islice(content, _PARTS))))


def _pieces(content: Iterable[Any]) -> Iterable[str]:
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") in _TEXTS else part
        if isinstance(text, str):
            yield bounded(text.strip())
