"""What coding agents and chat front ends send by themselves is answered; the engine is a fake."""

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
import zstandard

from tests.clients.recorded_bodies import Recorded, ignored_names, recorded_bodies
from tests.support.running_app import API_KEY, RunningApp, assert_error, start_app

CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
async def running_app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path_factory.mktemp("recorded"), context_tokens=8192) as opened:
        yield opened


@pytest.fixture
async def client(running_app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with running_app.http(API_KEY) as session:
        yield session


@pytest.mark.parametrize("recorded", recorded_bodies(), ids=lambda recorded: recorded.name)
async def test_a_recorded_request_is_answered_and_says_what_had_no_effect(
    running_app: RunningApp, client: httpx.AsyncClient, recorded: Recorded
) -> None:
    answer = await client.post(recorded.path, json=recorded.body_for("tiny"), headers=recorded.headers)
    assert answer.status_code == 200, answer.text
    assert ignored_names(answer.headers.get("x-amalgam-ignored")) == recorded.ignored
    assert answer.headers["content-type"].startswith("text/event-stream" if recorded.streams else "application/json")
    _, sent = running_app.engine.calls[-1]
    assert not sent.keys() & set(recorded.ignored), "the engine gets none of it"


async def test_what_had_no_effect_is_counted_by_endpoint_and_field(
    running_app: RunningApp, client: httpx.AsyncClient
) -> None:
    await client.post("/v1/chat/completions", json=CHAT | {"verbosity": "low", "never_heard_of": 1})
    page = (await client.get("/metrics")).text
    for name in ("verbosity", "other"):
        line = f'amalgam_fields_ignored_total{{endpoint="chat_completions",field="{name}"}} '
        assert any(row.startswith(line) for row in page.splitlines()), name
    assert "never_heard_of" not in page


async def test_a_server_may_refuse_what_nobody_knows(tmp_path: Path) -> None:
    async with start_app(tmp_path, unknown_fields="refuse") as running_app, running_app.http(API_KEY) as client:
        error = assert_error(
            await client.post("/v1/chat/completions", json=CHAT | {"never_heard_of": 1}), 400, "invalid_value"
        )
        assert error["param"] == "never_heard_of"
        known = await client.post("/v1/chat/completions", json=CHAT | {"verbosity": "low"})
        assert known.status_code == 200
        assert known.headers["x-amalgam-ignored"] == "verbosity"


@pytest.mark.parametrize("coding", CODINGS)
async def test_compressed_bodies_are_read(running_app: RunningApp, client: httpx.AsyncClient, coding: str) -> None:
    text = {"model": "tiny", "messages": [{"role": "user", "content": "words " * 3000}]}
    packed = CODINGS[coding](json.dumps(text).encode())
    headers = {"content-type": "application/json", "content-encoding": coding}
    answer = await client.post("/v1/chat/completions", content=packed, headers=headers)
    assert answer.status_code == 200, answer.text
    assert running_app.engine.calls[-1][1].items() >= text.items()


async def test_deflate_without_its_header_is_read_as_well(client: httpx.AsyncClient) -> None:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(json.dumps(CHAT).encode()) + packer.flush()
    headers = {"content-type": "application/json", "content-encoding": "deflate"}
    assert (await client.post("/v1/chat/completions", content=packed, headers=headers)).status_code == 200


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_small_body_that_becomes_a_large_one_is_refused(client: httpx.AsyncClient, coding: str) -> None:
    packed = CODINGS[coding](b'{"model":"' + b"a" * (64 << 20) + b'"}')
    assert len(packed) < 1 << 18
    headers = {"content-type": "application/json", "content-encoding": coding}
    assert_error(await client.post("/v1/chat/completions", content=packed, headers=headers), 413, "body_too_large")


@pytest.mark.parametrize("coding", CODINGS)
async def test_what_is_not_compressed_as_it_says_is_refused(client: httpx.AsyncClient, coding: str) -> None:
    packed = CODINGS[coding](json.dumps(CHAT | {"user": "abcdefgh" * 40}).encode())
    headers = {"content-type": "application/json", "content-encoding": coding}
    for body in (b"{}", b"", packed[:-10], packed[:20], b"\x00" * 100, gzip.compress(b"") * 50_000):
        answer = await client.post("/v1/chat/completions", content=body, headers=headers)
        assert answer.status_code in (400, 413), (body[:20], answer.text)


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "zstd, gzip", "x" * 200])
async def test_other_codings_are_refused_with_those_that_are_read(client: httpx.AsyncClient, coding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    answer = await client.post("/v1/chat/completions", content=b"{}", headers=headers)
    error = assert_error(answer, 415, "unsupported_encoding")
    assert "gzip" in error["message"]


async def test_a_body_that_says_it_is_as_it_is_is_read(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/chat/completions", json=CHAT, headers={"content-encoding": "identity"})
    assert answer.status_code == 200
