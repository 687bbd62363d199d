"""A constraint that the engine cannot compile or follow is the request's fault, and is told as that.

xgrammar fails on some expressions only when it compiles them, in the engine's process, and a constraint may leave no
token that the rest of the request allows. vLLM calls both an internal error, in an answer and in a stream.
"""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from amalgam.errors import AmalgamError
from amalgam.errors.engine import EngineRefused

Piece = str | bytes | memoryview
_FORMATS: Final = ("structured_outputs", "response_format")
_NESTED: Final = ("text", "output_config")
"""These fields hold a format beside other things."""
_FREE: Final = ("auto", "none")
_ERROR: Final = "data: "
_TOLD: Final = (
    "The engine could not compile or follow this constraint. Send a simpler schema or expression, and let the "
    "other fields leave it tokens to choose from."
)


def constraint_of(body: Mapping[str, Any]) -> str | None:
    """The field of ``body`` that constrains what its answer may be; None where none does."""
    for name in (*_FORMATS, *_NESTED):
        value = body.get(name)
        if isinstance(value, Mapping):
            wanted = value.get("format") if name in _NESTED else value
            if isinstance(wanted, Mapping) and wanted and wanted.get("type") != "text":
                return name
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, Mapping) else choice
    return "tools" if body.get("tools") and kind is not None and kind not in _FREE else None


def explained(error: AmalgamError, body: Mapping[str, Any]) -> AmalgamError:
    """``error`` of a request whose engine goes on, in the words of its cause where the request had a constraint."""
    constraint = constraint_of(body)
    if error.status != 500 or constraint is None:
        return error
    return EngineRefused(400, f"{constraint}: {_TOLD}", constraint)


async def explained_stream(pieces: Any, constraint: str) -> AsyncIterator[Piece]:
    """The events of a stream under ``constraint``, of which vLLM's internal errors are told as the constraint's.

    Args:
        pieces: vLLM's generator; it is closed with this one, so that an answer that nobody reads on is not made.
        constraint: the field that holds it.
    """
    try:
        async for piece in pieces:
            yield _explained_event(piece, constraint)
    finally:
        if hasattr(pieces, "aclose"):
            await pieces.aclose()


def _explained_event(piece: Piece, constraint: str) -> Piece:
    text = piece if isinstance(piece, str) else bytes(piece).decode()
    before, begin, rest = text.partition(_ERROR)
    line, _, after = rest.partition("\n")
    if not line.startswith('{"error"') and not before.startswith("event: error"):
        return piece
    try:
        content = json.loads(line)
        error = content["error"]
        if int(error.get("code", 500)) != 500:
            return piece
    except (ValueError, KeyError, TypeError, AttributeError):
        return piece
    error |= {"code": 400, "type": "BadRequestError", "param": constraint, "message": f"{constraint}: {_TOLD}"}
    return f"{before}{begin}{json.dumps(content)}\n{after}"
