"""One request in a replica, with a handler that only answers: what becomes of its answer in frames."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import Response

from amalgam.engine.remote.messages import PIECE, CallOrder, kind_of, read_piece
from amalgam.engine.remote.replica_call import ReplicaCall


@asynccontextmanager
async def held(gone: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(("length", "pieces"), [(0, 1), (5, 1), (1 << 20, 1), ((1 << 20) + 1, 2), (5 << 20, 5)])
async def test_a_whole_answer_comes_in_pieces_that_let_others_pass(length: int, pieces: int) -> None:
    whole = bytes(range(256)) * (length // 256) + bytes(length % 256)

    async def answer(*_: Any) -> Response:
        return Response(whole)

    engine: Any = SimpleNamespace(call=answer, state="ready")
    order = CallOrder("embeddings", {"model": "tiny"}, None, None, (), "req-1")
    frames = [frame async for frame in ReplicaCall(engine, Starlette(), order, held, None).frames()]
    told = [read_piece(frame)[1] for frame in frames if kind_of(frame) == PIECE]
    assert len(told) == pieces
    assert b"".join(told) == whole
