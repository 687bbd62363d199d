"""What a body may be: bounded, JSON, of the right type; and what an error may say."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.api.transport.middleware import MAX_HEADER_BYTES
from amalgam.errors.engine import EngineRefused
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, served, start_app

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"Content-Type": "application/json"}
POSTED = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize",
    "/detokenize", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/admin/v1/adapters",
    "/admin/v1/adapters:validate",
    "/admin/v1/merges", "/admin/v1/merges:plan",
)  # fmt: skip
TYPED = ("/admin/v1/adapters/x:load", "/admin/v1/adapters/x:pin")


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b'{"name": NaN}', b'{"name": Infinity}', b'{"name": "a", "name": "b"}', b'{"name": "\\ud800"}',
        b"\xff",
        b"[" * 50_000, b'{"name":' * 50_000, b'{"name": 1e999}', b"[]", b"null", b'"x"',
        '{"name": "a"}'.encode("utf-16"),
    ],
)  # fmt: skip
async def test_no_route_reads_what_is_not_strictly_json(admin: httpx.AsyncClient, path: str, body: bytes) -> None:
    answer = await admin.post(path, content=body, headers=JSON)
    assert_error(answer, 400, "invalid_value")


@pytest.mark.parametrize("path", POSTED[:7] + POSTED[9:11])
async def test_a_body_of_another_type_is_not_read(admin: httpx.AsyncClient, path: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/octet-stream"):
        answer = await admin.post(path, content=b'{"model": "tiny"}', headers={"Content-Type": kind})
        assert_error(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("path", POSTED[7:9] + POSTED[11:] + TYPED)
async def test_typed_routes_refuse_another_type_as_well(admin: httpx.AsyncClient, path: str) -> None:
    for kind in ("text/plain", "multipart/form-data; boundary=x", ""):
        answer = await admin.post(path, content=b'{"version": 1}', headers={"Content-Type": kind})
        assert_error(answer, 400, "invalid_value")


@pytest.mark.parametrize("path", POSTED)
async def test_a_body_above_the_limit_is_refused_however_it_comes(running_app: RunningApp, path: str) -> None:
    limit = running_app.settings.http.max_body_bytes
    async with running_app.http(ADMIN_KEY) as session:
        declared = await session.post(path, content=b"x", headers=JSON | {"Content-Length": str(limit + 1)})
        assert_error(declared, 413, "body_too_large")
        chunk = b" " * (limit // 4)
        chunked = await session.post(path, content=pieces(*[chunk] * 5), headers=JSON)
        assert "content-length" not in chunked.request.headers
        assert_error(chunked, 413, "body_too_large")
        allowed = await session.post(path, content=pieces(*[chunk] * 4), headers=JSON)
        assert_error(allowed, 400, "invalid_value")


@pytest.mark.parametrize("length", ["-1", "1e3", "²", "0x10", "9" * 5000, "1,1", ""])
async def test_a_length_that_is_no_number_is_malformed(admin: httpx.AsyncClient, length: str) -> None:
    request = admin.build_request("POST", "/v1/completions", content=b"{}")
    request.headers = httpx.Headers([*request.headers.raw, (b"content-length", length.encode("latin-1"))])
    del request.headers["content-length"]
    request.headers = httpx.Headers([*request.headers.raw, (b"content-length", length.encode("latin-1"))])
    answer = await admin.send(request)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


async def test_giant_headers_and_paths_end_before_anything_reads_them(running_app: RunningApp) -> None:
    async with running_app.http() as stranger:
        for headers in ({"X-A": "a" * MAX_HEADER_BYTES}, {f"X-{i}": "a" * 600 for i in range(128)}):
            assert_error(await stranger.get("/v1/models", headers=headers), 431, "headers_too_large")
        for path in ("/v1/models?" + "a" * 40_000, "/" + "a" * 40_000):
            assert_error(await stranger.get(path, headers={"X-A": "a" * 26_000}), 431, "headers_too_large")
        assert_error(await stranger.get("/v1/models", headers={"X-A": "a" * 40_000}), 401, "invalid_api_key")


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/chat/completions", "chat_template", "{{ 1 }}"),
        ("/v1/chat/completions", "kv_transfer_params", {"a": 1}),
        ("/v1/chat/completions", "cache_salt", "x" * 1000),
        ("/v1/chat/completions", "n", 1000),
        ("/v1/chat/completions", "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
        ("/v1/chat/completions", "response_format",
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"maxItems": 10**9}}}),
        ("/v1/completions", "prompt", [[32]]),
        ("/v1/completions", "stop_token_ids", [10**6]),
        ("/v1/completions", "logit_bias", {"32": 1}),
        ("/detokenize", "tokens", [32]),
    ],
)  # fmt: skip
async def test_the_engine_never_sees_a_refused_field(
    running_app: RunningApp, path: str, field: str, value: Any
) -> None:
    seen = len(running_app.engine.calls)
    async with running_app.http(API_KEY) as session:
        whole = {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}
        body = {"model": "tiny"} | whole | {field: value}
        error = assert_error(await session.post(path, json=body), 400, "invalid_value")
        assert error["param"] == field
    assert len(running_app.engine.calls) == seen


async def test_the_engine_gets_what_was_sent_and_nothing_else(
    running_app: RunningApp, client: httpx.AsyncClient
) -> None:
    body = CHAT | {"temperature": 0.5, "logit_bias": {"31": 1}}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-amalgam-adapter"] == "tiny"
    endpoint, seen = running_app.engine.calls[-1]
    assert endpoint == "chat_completions"
    assert seen == body | {"cache_salt": seen["cache_salt"]}


async def test_unknown_models_routes_and_methods_are_told_in_one_shape(client: httpx.AsyncClient) -> None:
    for model in ("nope", "nope@1", "tiny:nope", "../x", "x" * 4000, "\x00", "'\"<script>"):
        error = assert_error(
            await client.post("/v1/completions", json={"model": model, "prompt": "a"}), 404, "model_not_found"
        )
        assert error["param"] == "model"
        assert len(error["message"]) < 400
    assert_error(await client.get("/v1/nothing"), 404, "route_not_found")
    answer = await client.put("/v1/completions")
    assert_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    assert_error(await client.post("/v1/embeddings", json={"input": "a"}), 404, "endpoint_unsupported")


async def test_a_field_name_is_shortened_before_it_is_repeated(admin: httpx.AsyncClient) -> None:
    monster = "x\u0000\u202e" * 20_000
    for path in ("/v1/completions", "/admin/v1/adapters", "/admin/v1/merges", "/v1/load_lora_adapter"):
        answer = await admin.post(
            path, json={monster: 1, "prompt": "x", "name": "a", "source": "b", "lora_name": "a", "lora_path": "b"}
        )
        if path == "/v1/completions":
            assert answer.status_code == 200
            assert len(answer.headers["x-amalgam-ignored"]) < 400
            continue
        assert_error(answer, 400, "invalid_value")
        assert len(answer.content) < 2000


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (RuntimeError("/root/secret/path"), 500, "internal_error"),
        (EngineRefused(500, "boom at /opt/x/y.py:3"), 500, "internal_error"),
        (EngineRefused(400,
        "bad grammar [/project/cpp/a.cc:12] at 0x7f00deadbeef\nTraceback (most recent call last):\n x"), 400,
        "invalid_request"),
        (EngineRefused(422, "x" * 50_000), 400, "invalid_request"),
        (KeyError("model"), 500, "internal_error"),
        (asyncio.InvalidStateError("loop"), 500, "internal_error"),
    ],
)  # fmt: skip
async def test_errors_tell_no_path_no_address_and_no_trace(
    tmp_path: Path, failure: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with start_app(tmp_path) as running_app, running_app.http(API_KEY) as session:
        running_app.engine.failure = failure
        with caplog.at_level(logging.ERROR):
            answer = await session.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "mine-1"})
        error = assert_error(answer, status, code)
        assert error["request_id"] == "mine-1"
        for private in ("/root", "/opt", "/project", ".cc", "boom"):
            assert private not in answer.text
        assert len(answer.text) < 1500
        running_app.engine.failure = None
        assert (await session.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert running_app.engine.residency.held == 0


async def test_request_ids_are_the_clients_only_where_they_are_harmless(client: httpx.AsyncClient) -> None:
    for given, kept in (("abc-1.X_2", True), ("a b", False), ("x" * 65, False), ("a\tb", False), ("<b>", False)):
        answer = await client.get("/v1/models", headers={"X-Request-Id": given})
        assert (answer.headers["x-request-id"] == given) is kept, given


async def test_a_client_that_leaves_while_it_sends_is_no_fault_of_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with start_app(tmp_path) as running_app, served(running_app.app) as url:
        host, port = url.removeprefix("http://").split(":")
        with caplog.at_level(logging.DEBUG):
            for path, kind in (
                ("/v1/chat/completions", "application/json"),
                ("/admin/v1/merges", "application/json"),
                ("/admin/v1/adapters", "multipart/form-data; boundary=b"),
            ):
                _, writer = await asyncio.open_connection(host, int(port))
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
                writer.write(f"{head}Content-Type: {kind}\r\nContent-Length: 1000\r\n\r\n{{".encode())
                await writer.drain()
                await asyncio.sleep(0.05)
                writer.close()
                await writer.wait_closed()
            await asyncio.sleep(0.2)
        assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []
        assert running_app.staged() == []
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {API_KEY}"}) as session:
            assert (await session.post("/v1/chat/completions", json=CHAT)).status_code == 200
