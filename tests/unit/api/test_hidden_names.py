"""Answers that name an alias in place of what served."""

import json
from collections.abc import AsyncIterator

from starlette.responses import JSONResponse, StreamingResponse

from amalgam.api.inference.hidden_names import HiddenName

HIDDEN = HiddenName("zeta-9@3", "support")


def test_only_the_field_is_changed_in_what_was_generated() -> None:
    said = 'the "model": "zeta-9@3" and zeta-9@3'
    answer = JSONResponse({"model": "zeta-9@3", "choices": [{"message": {"content": said}}]})
    shown = json.loads(bytes(HIDDEN.in_response(answer).body))
    assert shown == {"model": "support", "choices": [{"message": {"content": said}}]}
    assert answer.headers["content-length"] == str(len(answer.body))


def test_an_error_names_it_nowhere() -> None:
    answer = JSONResponse({"error": {"message": "zeta-9@3 of zeta-9@3"}}, status_code=400)
    assert b"zeta" not in HIDDEN.in_response(answer).body


async def test_every_event_of_a_stream_is_changed_and_the_source_closed() -> None:
    closed: list[bool] = []

    async def source() -> AsyncIterator[str]:
        try:
            for model in ('"model": "zeta-9@3"', '"model":"zeta-9@3"', '"model":"zeta-9@31"'):
                yield f"data: {{{model}}}\n\n"
            yield 'data: {"error": "zeta-9@3"}\n\n'
        finally:
            closed.append(True)

    response = HIDDEN.in_response(StreamingResponse(source()))
    assert isinstance(response, StreamingResponse)
    pieces = [bytes(piece) async for piece in response.body_iterator]  # type: ignore[arg-type]
    assert pieces == [
        b'data: {"model": "support"}\n\n',
        b'data: {"model":"support"}\n\n',
        b'data: {"model":"zeta-9@31"}\n\n',
        b'data: {"error": "support"}\n\n',
    ]
    assert closed == [True]


async def test_a_reader_that_leaves_closes_the_source() -> None:
    closed: list[bool] = []

    async def source() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            closed.append(True)

    pieces = HIDDEN.in_stream(source())
    await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]
    assert closed == [True]
