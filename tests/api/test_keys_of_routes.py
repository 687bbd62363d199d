"""Who may enter: every route but the probes and the pages, by whatever spelling, needs its key."""

import hashlib
import io
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Mount, Route

from amalgam.telemetry.logs import configure_logging
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, start_app

OPEN = {"/livez", "/readyz", "/health", "/ping", "/metrics"}
"""Those that ask for no key, `/metrics` because the tests are on its own machine."""
PAGES = {"/", "/docs", "/console", "/console/{path:path}"}
"""The pages for people: files without a secret, which ask the other routes with the key that is typed into them."""
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND")
CLIENT_PATHS = {
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/embeddings", "/v1/models", "/v1/files", "/v1/files/{file_id}", "/v1/files/{file_id}/content",
    "/v1/batches", "/v1/batches/{batch_id}", "/v1/batches/{batch_id}/cancel", "/v1/feedback",
    "/v1/models/{model:path}", "/v1/me", "/tokenize", "/detokenize", "/version",
}  # fmt: skip


def paths_of(app: FastAPI) -> set[str]:
    """The template of every route, those of mounts and of the framework included."""
    found: set[str] = set()

    def walk(routes: list[BaseRoute], prefix: str) -> None:
        for route in routes:
            if isinstance(route, Mount):
                walk(list(route.routes or []), prefix + route.path)
                found.add(prefix + route.path + "/x")
            elif isinstance(route, APIRoute | Route):
                found.add(prefix + route.path)
            elif routes_below := getattr(route, "effective_route_contexts", None):
                found.update(prefix + below.path for below in routes_below())
            else:
                pytest.fail(f"a route that this test cannot read: {route!r}")

    walk(list(app.routes), "")
    return found


def concrete(template: str) -> str:
    return re.sub(r"\{[^}]+\}", "1", template)


def spellings(path: str) -> list[str]:
    encoded = f"/%{ord(path[1]):02x}{path[2:]}"
    return [path, f"{path}/", f"/{path}", f"{path}//", encoded, path.upper(), f"/livez/..{path}", f"{path};a=/livez"]


async def raw(
    app: FastAPI, method: str, path: str, headers: dict[str, str], body: bytes = b"", **scope: Any
) -> tuple[int, bytes]:
    """Call the application with exactly this path, as no client library would send it."""
    from urllib.parse import unquote

    sent: list[dict[str, Any]] = []
    request = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(request | scope, receive, send)
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


def test_the_walk_finds_the_routes(running_app: RunningApp) -> None:
    found = paths_of(running_app.app)
    assert found >= CLIENT_PATHS | OPEN
    assert {"/admin/v1/adapters", "/v1/load_lora_adapter", "/openapi.json"} <= found
    assert len(found) > 25
    assert "/redoc" not in found
    assert found >= PAGES


async def test_every_route_but_the_probes_is_closed_without_a_key(running_app: RunningApp) -> None:
    for template in sorted(paths_of(running_app.app) - OPEN - PAGES):
        for path in spellings(concrete(template)):
            for headers in ({"host": "localhost"}, {"host": "x/?"}, {"host": "localhost/livez"}, {}):
                status, body = await raw(running_app.app, "GET", path, headers)
                assert status == 401, (path, headers, body)
        for method in METHODS:
            assert (await raw(running_app.app, method, concrete(template), {"host": "x/?"}))[0] == 401, (
                method,
                template,
            )


@pytest.mark.parametrize(
    "authorization",
    ["Bearer wrong", f"Bearer {API_KEY}x", f"Bearer {API_KEY[:-1]}", f"Basic {API_KEY}", API_KEY, "Bearer",
    "Bearer  ", f"Bearer {API_KEY}, x"],
)  # fmt: skip
async def test_a_wrong_key_opens_nothing(running_app: RunningApp, authorization: str) -> None:
    for template in sorted(paths_of(running_app.app) - OPEN - PAGES):
        headers = {"host": "localhost", "authorization": authorization}
        status, body = await raw(running_app.app, "POST", concrete(template), headers)
        assert status == 401, (template, body)


async def test_a_refusal_says_how_to_enter(running_app: RunningApp) -> None:
    async with running_app.http() as stranger:
        answer = await stranger.get("/v1/models")
        error = assert_error(answer, 401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer" in error["message"]
        assert error["type"] == "invalid_request_error"


async def test_client_keys_open_the_client_plane_and_no_more(
    running_app: RunningApp, client: httpx.AsyncClient
) -> None:
    for template in sorted(paths_of(running_app.app) - OPEN - PAGES):
        answer = await client.request("TRACE", concrete(template))
        if template in CLIENT_PATHS:
            assert answer.status_code == 405, template
        else:
            assert_error(answer, 403, "invalid_api_key")


async def test_admin_keys_open_both(running_app: RunningApp, admin: httpx.AsyncClient) -> None:
    for template in sorted(paths_of(running_app.app)):
        assert (await admin.request("TRACE", concrete(template))).status_code == 405, template
    assert (await admin.get("/openapi.json")).json()["info"]["title"] == "Amalgam"


async def test_anthropics_header_opens_as_well(running_app: RunningApp) -> None:
    async with running_app.http() as stranger:
        assert (await stranger.get("/v1/models", headers={"x-api-key": API_KEY})).status_code == 200
        assert (await stranger.get("/v1/models", headers={"x-api-key": "wrong"})).status_code == 401
        assert (await stranger.get("/admin/v1/jobs", headers={"x-api-key": API_KEY})).status_code == 403


async def test_a_prefix_that_the_server_is_mounted_under_makes_no_client_path_of_an_admin_one(
    running_app: RunningApp,
) -> None:
    headers = {"host": "localhost", "authorization": f"Bearer {API_KEY}"}
    for prefix in ("/v1", "/v1/models", "/livez"):
        status, _ = await raw(running_app.app, "GET", f"{prefix}/admin/v1/jobs", headers, root_path=prefix)
        assert status == 403, prefix
    assert (await raw(running_app.app, "GET", "/x/v1/models", headers, root_path="/x"))[0] == 200


async def test_the_probes_are_open_and_nothing_near_them(running_app: RunningApp) -> None:
    async with running_app.http() as stranger:
        assert {(await stranger.get(path)).status_code for path in OPEN} == {200}
        for path in ("/livez/", "//livez", "/livez/x", "/LIVEZ", "/metrics/", "/readyz/../admin/v1/jobs"):
            assert (await raw(running_app.app, "GET", path, {}))[0] == 401, path


async def test_sockets_are_not_spoken(running_app: RunningApp) -> None:
    sent: list[Any] = []
    scope = {"type": "websocket", "path": "/v1/models", "headers": [(b"authorization", f"Bearer {ADMIN_KEY}".encode())]}

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await running_app.app(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_keys_are_in_no_log_and_only_as_hashes_in_memory(tmp_path: Path) -> None:
    page = io.StringIO()
    hashed = "sha256:" + hashlib.sha256(b"ak_hashed_secret").hexdigest()
    async with start_app(tmp_path, api_keys=f"{API_KEY},{hashed}") as running_app:
        configure_logging("json", level=logging.DEBUG)
        catcher = logging.StreamHandler(page)
        loggers = [logging.getLogger(), logging.getLogger("amalgam"), logging.getLogger("uvicorn")]
        for logger in loggers:
            logger.addHandler(catcher)
        running_app.engine.failure = RuntimeError("boom")
        try:
            for key in (API_KEY, ADMIN_KEY, "ak_hashed_secret", "ak_wrong_secret"):
                async with running_app.http(key) as session:
                    chat = {"model": "tiny", "messages": [{"role": "user", "content": "secret prompt"}]}
                    expected = 401 if "wrong" in key else 500
                    assert (await session.post("/v1/chat/completions", json=chat)).status_code == expected
                    await session.get("/admin/v1/adapters/none")
                async with running_app.http() as stranger:
                    assert (await stranger.get(f"/v1/models?key={key}")).status_code == 401
        finally:
            for logger in loggers:
                logger.removeHandler(catcher)
        keys: Any = next(m.kwargs["keys"] for m in running_app.app.user_middleware if "keys" in m.kwargs)
    log = page.getvalue()
    assert "boom" in log
    for secret in ("client-secret", "admin-secret", "hashed_secret", "wrong_secret", "secret prompt"):
        assert secret not in log, secret
        assert secret not in repr(keys)
    assert {len(key) for key in (*keys.admin, *keys.api)} == {32}


@pytest.fixture
async def open_app(tmp_path: Path) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path, admin_key=None, api_keys="") as opened:
        yield opened


async def test_without_keys_only_this_machine_is_answered(open_app: RunningApp) -> None:
    local = ("localhost", "127.0.0.1:8000", "[::1]:8000", "amalgam.localhost", "127.9.9.9")
    foreign = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0:8000", "x/?", "",
    "[::ffff:1.2.3.4]")  # fmt: skip
    for host in local:
        for origin in (None, "http://localhost:3000", "http://127.0.0.1:8000"):
            headers = {"host": host} | ({} if origin is None else {"origin": origin})
            assert (await raw(open_app.app, "GET", "/admin/v1/jobs", headers))[0] == 200, headers
    for host in foreign:
        status, body = await raw(open_app.app, "GET", "/admin/v1/jobs", {"host": host})
        assert (status, b"foreign_origin" in body) == (403, True), host
    for origin in ("http://evil.example", "null", "https://localhost.evil.example", "file://"):
        for path in ("/admin/v1/adapters", "/v1/chat/completions", "/openapi.json"):
            headers = {"host": "localhost:8000", "origin": origin}
            assert (await raw(open_app.app, "POST", path, headers))[0] == 403, (origin, path)
    assert (await raw(open_app.app, "GET", "/livez", {"host": "10.0.0.9"}))[0] == 200


async def test_with_keys_a_page_of_another_site_may_ask_but_is_told_of_no_permission(running_app: RunningApp) -> None:
    async with running_app.http(API_KEY) as session:
        answer = await session.get("/v1/models", headers={"Origin": "http://evil.example"})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
