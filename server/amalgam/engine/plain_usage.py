"""The usage of answers in the Responses dialect in the dialect's own shape.

vLLM adds lists by turn to the details of usage. OpenAI's API has numbers there alone, and clients that check what
they read, such as the Agents SDK in JavaScript, end at a list. This server makes one turn a request, so that a list
says what the number beside it does.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.responses import JSONResponse, StreamingResponse

_DETAILS: Final = ("input_tokens_details", "output_tokens_details")
_LAST: Final = ("event: response.completed\n", "event: response.incomplete\n", "event: response.failed\n")
_DATA: Final = "data: "
_BY_TURN: Final = "_per_turn"


def with_plain_usage(response: Any) -> Any:
    """``response``, whole or a stream of events, without the lists; what else it says stays."""
    if isinstance(response, StreamingResponse):
        response.body_iterator = _plain_events(response.body_iterator)
        return response
    if not isinstance(response, JSONResponse):
        return response
    content = json.loads(bytes(response.body))
    return JSONResponse(content, response.status_code) if make_plain(content) else response


async def _plain_events(pieces: Any) -> AsyncIterator[Any]:
    """The pieces of a stream; vLLM gives each event as one."""
    try:
        async for piece in pieces:
            yield _plain_event(piece) if isinstance(piece, str) and piece.startswith(_LAST) else piece
    finally:
        if hasattr(pieces, "aclose"):
            await pieces.aclose()


def _plain_event(event: str) -> str:
    kind, _, data = event.partition(_DATA)
    if _BY_TURN not in data:
        # Made plain where it was written; with log-probabilities it is long.
        return event
    content = json.loads(data)
    if not make_plain(content.get("response")):
        return event
    return f"{kind}{_DATA}{json.dumps(content, separators=(',', ':'), ensure_ascii=False)}\n\n"


def make_plain(answer: Any) -> bool:
    """Take the lists out of ``answer``; whether it had any."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return False
    found = False
    for name in _DETAILS:
        details = usage.get(name) or {}
        for key in [key for key, value in details.items() if isinstance(value, list)]:
            del details[key]
            found = True
    return found
