"""Usage in the Responses dialect: numbers and objects alone, whole and streamed; all else as vLLM said it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse

from amalgam.engine.plain_usage import with_plain_usage

USAGE = {
    "input_tokens": 3,
    "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0, "input_tokens_per_turn": [3]},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 0, "output_tokens_per_turn": [], "a_list_of_tomorrow": [{"x": 1}]},
    "total_tokens": 5,
}
PLAIN = USAGE | {
    "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}
TEXT = "Zürich – 日本 \u2028 </data>"


def answer(usage: Any) -> dict[str, Any]:
    return {"id": "resp_1", "output": [{"type": "message", "content": [{"text": TEXT}]}], "usage": usage}


def event(kind: str, usage: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'response': answer(usage)})}\n\n"


def streamed(*pieces: str) -> list[str]:
    closed: list[bool] = []

    async def source() -> AsyncIterator[str]:
        try:
            for piece in pieces:
                yield piece
        finally:
            closed.append(True)

    async def read() -> list[str]:
        response = with_plain_usage(StreamingResponse(source(), media_type="text/event-stream"))
        return [piece async for piece in response.body_iterator]

    found = asyncio.run(read())
    assert closed
    return found


def test_a_whole_answer_has_numbers_alone() -> None:
    given = JSONResponse(answer(USAGE))
    made = with_plain_usage(given)
    assert json.loads(made.body) == answer(PLAIN)
    assert int(made.headers["content-length"]) == len(made.body)


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
def test_the_last_event_of_a_stream_has_numbers_alone(kind: str) -> None:
    delta = 'event: response.output_text.delta\ndata: {"delta":"[1] input_tokens_details"}\n\n'
    created = event("response.created", None)
    found = streamed(created, delta, event(kind, USAGE))
    assert found[:2] == [created, delta]
    name, data = found[2].removesuffix("\n\n").split("\ndata: ")
    assert name == f"event: {kind}"
    assert json.loads(data) == {"type": kind, "response": answer(PLAIN)}
    assert "\n" not in data


def test_what_has_no_lists_goes_through_untouched() -> None:
    for given in (JSONResponse(answer(PLAIN)), JSONResponse(answer(None)), JSONResponse([1]), Response(b"x"), None):
        assert with_plain_usage(given) is given
    last = event("response.completed", PLAIN)
    assert streamed(last, "data: [DONE]\n\n") == [last, "data: [DONE]\n\n"]
