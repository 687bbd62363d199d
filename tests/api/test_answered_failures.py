"""A fault of the program in one request: one trace in the log, and the next request on its connection is answered."""

import asyncio
import http.client
import json
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import StreamingResponse

from amalgam.cli.http_server import http_server
from amalgam.settings import Settings
from tests.support.running_app import API_KEY, start_app

HEADERS = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
CHAT = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]})


async def fails(*_: Any) -> Any:
    raise ZeroDivisionError("nobody thought of it")


async def fails_late(*_: Any) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"data: {}\n\n"
        raise ZeroDivisionError("nobody thought of it")

    return StreamingResponse(pieces())


def ask(connection: http.client.HTTPConnection, method: str, path: str) -> tuple[int, bytes]:
    connection.request(method, path, CHAT if method == "POST" else None, HEADERS)
    answer = connection.getresponse()
    return answer.status, answer.read()


async def test_the_connection_of_a_failed_request_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_app(tmp_path) as running_app:
        server = http_server(running_app.app, Settings())
        server.config.lifespan = "off"
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=30)
        try:
            connection.connect()
            first = connection.sock
            monkeypatch.setattr(running_app.engine, "call", fails)
            for method, path, status in [("POST", "/v1/chat/completions", 500), ("GET", "/v1/models", 200)] * 2:
                found, text = await asyncio.to_thread(ask, connection, method, path)
                assert found == status, text
            assert connection.sock is first
            traces = [record.name for record in caplog.records if record.exc_info]
            assert traces == ["amalgam.api.errors"] * 2
            # Half an answer is not to look like a whole one.
            monkeypatch.setattr(running_app.engine, "call", fails_late)
            with caplog.at_level(logging.CRITICAL), pytest.raises(http.client.IncompleteRead):
                await asyncio.to_thread(ask, connection, "POST", "/v1/chat/completions")
        finally:
            connection.close()
            server.should_exit = True
            await serving
