"""What the engine could not compile is the constraint's fault and says so; every other failure stays what it is."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from amalgam.engine.constraint_failures import Piece, constraint_of, explained, explained_stream
from amalgam.errors.engine import EngineNotReady, EngineRefused


@pytest.mark.parametrize("field", ["response_format", "structured_outputs"])
def test_a_failure_under_a_constraint_names_the_constraint(field: str) -> None:
    told = explained(EngineRefused(500, "Internal server error"), {field: {"regex": "a{1,500}"}})
    assert (told.status, told.param, told.code) == (400, field, "invalid_request")
    assert "simpler" in told.message


def test_other_failures_stay() -> None:
    internal, refused, starting = EngineRefused(500, "x"), EngineRefused(404, "x"), EngineNotReady("restarting")
    assert explained(internal, {"messages": []}) is internal
    assert explained(refused, {"response_format": {}}) is refused
    assert explained(starting, {"response_format": {"type": "json_object"}}) is starting


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"text": {"verbosity": "low"}}, None),
        ({"text": {"format": {"type": "text"}}}, None),
        ({"text": {"format": {"type": "json_schema"}}}, "text"),
        ({"output_config": {"effort": "low"}}, None),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config"),
        ({"tools": [{}], "tool_choice": "auto"}, None),
        ({"tools": [{}]}, None),
        ({"tools": [{}], "tool_choice": "required"}, "tools"),
        ({"tools": [{}], "tool_choice": {"type": "any"}}, "tools"),
        ({"tool_choice": "required"}, None),
    ],
)
def test_what_constrains_is_told_from_what_does_not(body: dict[str, Any], field: str | None) -> None:
    assert constraint_of(body) == field


async def streamed(*pieces: Piece) -> list[Piece]:
    async def source() -> AsyncIterator[Piece]:
        for piece in pieces:
            yield piece

    return [piece async for piece in explained_stream(source(), "structured_outputs")]


@pytest.mark.parametrize("begin", ["", "event: error\n"])
async def test_an_internal_error_in_a_stream_names_the_constraint_too(begin: str) -> None:
    error = {"message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500}
    event = f"{begin}data: {json.dumps({'error': error})}\n\n"
    for piece in (event, event.encode()):
        [told] = await streamed(piece)
        text = told if isinstance(told, str) else bytes(told).decode()
        assert text.startswith(f"{begin}data: ")
        assert text.endswith("\n\n")
        content = json.loads(text.partition("data: ")[2])["error"]
        assert (content["code"], content["param"]) == (400, "structured_outputs")


async def test_a_stream_that_nobody_reads_on_is_closed_where_it_is_made() -> None:
    closed = []

    async def source() -> AsyncIterator[Piece]:
        try:
            while True:
                yield "data: {}\n\n"
        finally:
            closed.append(True)

    told = explained_stream(source(), "response_format")
    await anext(told)
    await told.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert closed == [True]


async def test_everything_else_in_a_stream_stays_byte_for_byte() -> None:
    refused = 'data: {"error": {"message": "x", "code": 404}}\n\n'
    pieces: list[Piece] = [
        "data: {}\n\n",
        b'data: {"text": "data: {\\"error\\""}\n\n',
        "data: [DONE]\n\n",
        refused,
        'data: {"error"\n\n',
    ]
    assert await streamed(*pieces) == pieces
