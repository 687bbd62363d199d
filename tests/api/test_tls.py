"""TLS: spoken where it was asked for, and a start that fails where it cannot be; never plain HTTP instead."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.cli.http_server import http_server
from amalgam.cli.tls import tls_context
from amalgam.errors.serving import TlsUnusable
from amalgam.settings import Settings
from tests.certificates import write_certificate
from tests.support.running_app import API_KEY, RunningApp, start_app


@pytest.fixture
async def running_app(tmp_path: Path) -> AsyncIterator[RunningApp]:
    """One for each test: it stops with the server that it is put behind."""
    async with start_app(tmp_path / "running_app") as opened:
        yield opened


@asynccontextmanager
async def listening(running_app: RunningApp, settings: Settings) -> AsyncIterator[int]:
    """The application on the server that `serve` makes; yields its port. The application's lifespan runs elsewhere."""
    server = http_server(running_app.app, settings)
    server.config.lifespan = "off"
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def test_what_was_asked_for_is_spoken_and_plain_http_is_not(running_app: RunningApp, tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    settings = Settings(ssl_certfile=certificate, ssl_keyfile=key)
    trust = ssl.create_default_context(cafile=str(certificate))
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with listening(running_app, settings) as port:
        async with httpx.AsyncClient(verify=trust, headers=headers) as session:
            answer = await session.get(f"https://127.0.0.1:{port}/v1/models")
            assert answer.status_code == 200
        async with httpx.AsyncClient(headers=headers) as plain:
            with pytest.raises(httpx.TransportError):
                await plain.get(f"http://127.0.0.1:{port}/v1/models")


async def test_certificates_of_clients_are_needed_where_they_are_asked_for(
    running_app: RunningApp, tmp_path: Path
) -> None:
    certificate, key = write_certificate(tmp_path / "server")
    theirs, their_key = write_certificate(tmp_path / "client")
    settings = Settings(ssl_certfile=certificate, ssl_keyfile=key, ssl_ca_certs=theirs, ssl_cert_reqs=2)
    known = ssl.create_default_context(cafile=str(certificate))
    known.load_cert_chain(theirs, their_key)
    async with listening(running_app, settings) as port:
        async with httpx.AsyncClient(verify=known) as session:
            assert (await session.get(f"https://127.0.0.1:{port}/livez")).status_code == 200
        async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(certificate))) as stranger:
            with pytest.raises(httpx.TransportError):
                await stranger.get(f"https://127.0.0.1:{port}/livez")


def test_what_cannot_work_is_said_before_anything_starts(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path / "one")
    _, other = write_certificate(tmp_path / "two")
    _, locked = write_certificate(tmp_path / "locked", passphrase="four words")
    text = tmp_path / "text"
    text.write_text("no PEM")
    wrong: list[dict[str, Any]] = [
        {"ssl_keyfile": key},
        {"ssl_ca_certs": certificate},
        {"ssl_cert_reqs": 2},
        {"ssl_certfile": certificate, "ssl_keyfile": other},
        {"ssl_certfile": certificate},
        {"ssl_certfile": certificate, "ssl_keyfile": locked},
        {"ssl_certfile": tmp_path / "none", "ssl_keyfile": key},
        {"ssl_certfile": text, "ssl_keyfile": key},
        {"ssl_certfile": certificate, "ssl_keyfile": key, "ssl_cert_reqs": 2},
        {"ssl_certfile": certificate, "ssl_keyfile": key, "ssl_ca_certs": text},
        {"ssl_certfile": certificate, "ssl_keyfile": key, "ssl_ciphers": "NO-SUCH-CIPHER"},
    ]
    for given in wrong:
        with pytest.raises(TlsUnusable) as caught:
            tls_context(Settings(**given).tls)
        assert str(tmp_path) not in caught.value.message
        assert caught.value.message.endswith("neither for plain HTTP."), given
    assert tls_context(Settings().tls) is None


def test_one_file_may_hold_certificate_and_key(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_text(certificate.read_text() + key.read_text())
    assert tls_context(Settings(ssl_certfile=both).tls) is not None
