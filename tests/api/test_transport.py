"""How clients, proxies and browsers reach the server: probes by other names, prefixes, pages of other sites, keys."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.fake_engine import FakeEngine
from tests.api.test_keys_of_routes import raw
from tests.support.running_app import (
    ADMIN_KEY,
    API_KEY,
    RunningApp,
    assert_error,
    push,
    served,
    start_app,
    write_adapter,
)

PAGE = "https://chat.example"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def test_health_and_ping_are_the_readiness_probe(running_app: RunningApp) -> None:
    async with running_app.http() as stranger:
        async with asyncio.timeout(30):
            while (await stranger.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
        for path in ("/health", "/ping", "/readyz"):
            answer = await stranger.get(path)
            assert (answer.status_code, answer.json()) == (200, {"status": "ready"}), path
        running_app.engine.current = "restarting"
        try:
            for path in ("/health", "/ping", "/readyz"):
                answer = await stranger.get(path)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), path
        finally:
            running_app.engine.current = "ready"


WRONG_BASES = (
    "/chat/completions", "/completions", "/embeddings", "/models", "/responses", "/openai/v1/chat/completions",
    "/openai/deployments/sql/chat/completions", "/openai/deployments/sql/chat/completions?api-version=2024-10-21",
    "/v1/v1/chat/completions", "/api/v1/chat/completions", "/v1",
)  # fmt: skip


@pytest.mark.parametrize("path", WRONG_BASES)
async def test_a_wrong_base_url_is_told_where_the_api_is(running_app: RunningApp, path: str) -> None:
    for key in (API_KEY, ADMIN_KEY):
        async with running_app.http(key) as session:
            error = assert_error(await session.post(path, json=CHAT), 404, "route_not_found")
            assert "/v1" in error["message"]
    async with running_app.http() as stranger:
        assert_error(await stranger.post(path, json=CHAT), 401, "invalid_api_key")


async def test_what_is_posted_to_the_page_for_people_is_told_where_the_api_is(running_app: RunningApp) -> None:
    async with running_app.http() as stranger:
        assert "/v1" in assert_error(await stranger.post("/", json=CHAT), 404, "route_not_found")["message"]


@pytest.mark.parametrize("header", ["api-key", "x-api-key", "API-Key"])
async def test_keys_come_in_the_headers_that_clients_send(running_app: RunningApp, header: str) -> None:
    async with running_app.http() as stranger:
        assert (await stranger.get("/v1/models", headers={header: API_KEY})).status_code == 200
        assert (await stranger.get("/v1/models", headers={header: "wrong"})).status_code == 401
        assert (await stranger.get("/admin/v1/jobs", headers={header: API_KEY})).status_code == 403
        assert (await stranger.get("/admin/v1/jobs", headers={header: ADMIN_KEY})).status_code == 200


IN_QUERY = (
    "key", "api_key", "api-key", "apikey", "KEY", "access_token", "x-api-key", "x-goog-api-key", "subscription-key",
    "token", "authorization", "%6bey", "api%5Fkey", "Api.Key",
)  # fmt: skip


@pytest.mark.parametrize("name", IN_QUERY)
async def test_a_key_in_the_address_is_refused_in_words(running_app: RunningApp, name: str) -> None:
    async with running_app.http() as stranger:
        for path in ("/v1/models", "/admin/v1/jobs", "/nothing"):
            error = assert_error(await stranger.get(f"{path}?a=b&{name}={ADMIN_KEY}"), 401, "invalid_api_key")
            assert "address" in error["message"]
            assert "Authorization: Bearer" in error["message"]
            assert ADMIN_KEY not in error["message"]
    async with running_app.http(API_KEY) as session:
        assert (await session.get(f"/v1/models?{name}=x")).status_code == 200


@pytest.mark.parametrize("query", ["", "monkey=x", "keys=x", "a=key%3Dx", "a=b%26key=x", "max_tokens=5", "=x", "&;&"])
async def test_an_address_without_a_key_is_not_said_to_have_one(running_app: RunningApp, query: str) -> None:
    async with running_app.http() as stranger:
        error = assert_error(await stranger.get(f"/v1/models?{query}"), 401, "invalid_api_key")
    assert "address" not in error["message"]


async def test_a_key_in_the_address_helps_no_wrong_one_and_harms_no_right_one(running_app: RunningApp) -> None:
    async with running_app.http("wrong") as stranger:
        error = assert_error(await stranger.get(f"/v1/models?key={API_KEY}"), 401, "invalid_api_key")
        assert "address" not in error["message"], "the key that was sent is the wrong one"
    async with running_app.http(API_KEY) as session:
        assert_error(await session.get(f"/admin/v1/jobs?key={ADMIN_KEY}"), 403, "invalid_api_key")


async def test_without_named_sites_no_page_is_permitted_anything(running_app: RunningApp) -> None:
    async with running_app.http() as stranger:
        asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        answer = await stranger.options("/v1/chat/completions", headers=asked)
        assert answer.status_code == 401
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path, allowed_origins=f"{PAGE},http://localhost:3000") as running_app:
        yield running_app


async def test_a_browser_may_ask_before_it_asks(opened: RunningApp) -> None:
    async with opened.http() as browser:
        asked = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        }
        for path in ("/v1/chat/completions", "/v1/models", "/admin/v1/adapters", "/health"):
            answer = await browser.options(path, headers=asked)
            assert (answer.status_code, answer.content) == (204, b"")
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "POST" in answer.headers["access-control-allow-methods"]
            assert answer.headers["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]
            assert "access-control-allow-credentials" not in answer.headers
            assert "origin" in answer.headers["vary"].lower()


async def test_a_named_site_reads_answers_and_refusals_and_others_do_not(opened: RunningApp) -> None:
    async with opened.http(API_KEY) as browser:
        for path, status in (("/v1/models", 200), ("/admin/v1/jobs", 403), ("/nothing", 404)):
            answer = await browser.get(path, headers={"Origin": PAGE})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
            assert "x-amalgam-adapter" in answer.headers["access-control-expose-headers"]
            for foreign in (
                "https://evil.example",
                f"{PAGE}.evil.example",
                "null",
                "http://chat.example",
                PAGE.upper(),
            ):
                answer = await browser.get(path, headers={"Origin": foreign})
                assert answer.status_code == status
                assert "access-control-allow-origin" not in answer.headers
                assert "origin" in answer.headers["vary"].lower()
                asked = {"Origin": foreign, "Access-Control-Request-Method": "GET"}
                assert "access-control-allow-origin" not in (await browser.options(path, headers=asked)).headers
    async with opened.http() as browser:
        answer = await browser.get("/v1/models", headers={"Origin": PAGE})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, PAGE)


async def test_a_stream_reaches_a_page(opened: RunningApp) -> None:
    async with opened.http(API_KEY) as browser:
        answer = await browser.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers={"Origin": PAGE})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)


async def test_every_site_may_be_named_but_not_without_keys(tmp_path: Path) -> None:
    async with start_app(tmp_path / "keys", allowed_origins="*") as running_app, running_app.http(API_KEY) as browser:
        answer = await browser.get("/v1/models", headers={"Origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
    nothing: dict[str, Any] = {"admin_key": None, "api_keys": ""}
    async with (
        start_app(tmp_path / "all", allowed_origins="*", **nothing) as running_app,
        running_app.http() as browser,
    ):
        assert_error(await browser.get("/v1/models", headers={"Origin": PAGE}), 403, "foreign_origin")
    async with (
        start_app(tmp_path / "one", allowed_origins=PAGE, **nothing) as running_app,
        running_app.http() as browser,
    ):
        assert (await browser.get("/v1/models", headers={"Origin": PAGE})).status_code == 200
        assert_error(await browser.get("/v1/models", headers={"Origin": "http://b.example"}), 403, "foreign_origin")
        async with running_app.http(host="rebound.example") as rebound:
            assert_error(await rebound.get("/v1/models", headers={"Origin": PAGE}), 403, "foreign_origin")


async def test_a_prefix_is_served_whether_the_proxy_takes_it_off_or_not(tmp_path: Path) -> None:
    async with start_app(tmp_path, root_path="/llm") as running_app:
        for path in ("/llm/v1/models", "/v1/models"):
            async with running_app.http(API_KEY) as session:
                assert (await session.get(path)).status_code == 200
            assert (await raw(running_app.app, "GET", path, {"host": "localhost"}))[0] == 401
        for path in ("/llm/admin/v1/jobs", "/admin/v1/jobs"):
            async with running_app.http(API_KEY) as session:
                assert (await session.get(path)).status_code == 403
        async with running_app.http(ADMIN_KEY) as session:
            assert (await session.get("/llm/openapi.json")).json()["servers"] == [{"url": "/llm"}]
            # The limit of an upload is that of its route, by whatever prefix.
            big = write_adapter(running_app.sources / "sql")
            assert (await push(session, "sql", big)).status_code == 201
            other = write_adapter(running_app.sources / "json", seed=3)
            assert (await push(session, "json", other)).status_code == 201
            merge = {"name": "both", "expression": "sql + 0.5*json"}
            queued = await session.post("/llm/admin/v1/merges", json=merge)
            assert queued.headers["location"].startswith("/llm/admin/v1/jobs/"), queued.text
        for path in ("/llmx/v1/models", "/llm/llm/v1/models", "/LLM/v1/models"):
            async with running_app.http(API_KEY) as session:
                assert (await session.get(path)).status_code == 404, path


async def test_adapters_of_the_command_line_are_registered_with_the_checks_of_any_other(tmp_path: Path) -> None:
    from amalgam.errors.adapters import InvalidAdapter, InvalidName
    from amalgam.services.lora_modules import register_modules

    async with start_app(tmp_path) as running_app, running_app.http(API_KEY) as session:
        adapters = running_app.services.adapters
        source = f"file://{write_adapter(running_app.sources / 'sql')}"
        for _ in range(2):
            await register_modules(adapters, {"one": source, "two": source})
        for name in ("one", "two"):
            answer = await session.post("/v1/chat/completions", json=CHAT | {"model": name})
            assert answer.headers["x-amalgam-adapter"] == f"{name}@1", "the same bytes are no new version"
        changed = f"file://{write_adapter(running_app.sources / 'changed', seed=9)}"
        await register_modules(adapters, {"one": changed})
        assert (await adapters.get("one")).default_version == 2
        with pytest.raises(InvalidAdapter):
            await register_modules(adapters, {"big": f"file://{write_adapter(running_app.sources / 'big', rank=64)}"})
        with pytest.raises(InvalidName):
            await register_modules(adapters, {"../x": source})


async def test_an_idle_connection_is_kept_as_long_as_the_setting_says(running_app: RunningApp) -> None:
    from amalgam.cli.http_server import http_server
    from amalgam.settings import Settings

    assert http_server(running_app.app, Settings()).config.timeout_keep_alive == 75
    assert http_server(running_app.app, Settings(keep_alive_s=7)).config.timeout_keep_alive == 7


async def test_unknown_methods_of_a_page_are_refused_as_ever(opened: RunningApp) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(opened.app), base_url="http://localhost") as browser:
        answer = await browser.options("/v1/models", headers={"Origin": PAGE, "Authorization": f"Bearer {API_KEY}"})
        assert_error(answer, 405, "method_not_allowed")


async def test_what_a_proxy_on_this_machine_passes_on_reads_no_metrics(running_app: RunningApp) -> None:
    """Over a real socket: the server's own reading of such headers must not make a stranger one of this machine."""
    async with served(running_app.app) as url, httpx.AsyncClient(base_url=url) as session:
        assert (await session.get("/metrics")).status_code == 200
        for proxied in ("127.0.0.1", "203.0.113.9", "::1", ""):
            for header in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"):
                answer = await session.get("/metrics", headers={header: proxied})
                assert_error(answer, 401, "invalid_api_key")
        passed_on = {"X-Forwarded-For": "203.0.113.9"}
        for key, status in ((API_KEY, 403), (ADMIN_KEY, 200)):
            answer = await session.get("/metrics", headers=passed_on | {"Authorization": f"Bearer {key}"})
            assert answer.status_code == status


async def test_a_page_reads_an_answer_to_what_nobody_foresaw(tmp_path: Path) -> None:
    """Such an answer is sent outside of all middleware."""
    engine = FakeEngine(failure=RuntimeError("unforeseen"))
    async with start_app(tmp_path, engine, allowed_origins=PAGE) as running_app, running_app.http(API_KEY) as browser:
        answer = await browser.post("/v1/chat/completions", json=CHAT, headers={"Origin": PAGE})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, PAGE)
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert answer.headers.get_list("vary") == ["Origin"]
        for headers in ({}, {"Origin": "https://evil.example"}):
            answer = await browser.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert answer.status_code == 500
            assert "access-control-allow-origin" not in answer.headers
            assert "origin" in answer.headers["vary"].lower()


async def told(url: str, *requests: bytes) -> bytes:
    """All that a server says to requests that are sent at once, the last of which ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    writer.write(b"".join(requests))
    async with asyncio.timeout(10):
        answers = await reader.read()
    writer.close()
    return answers


def in_chunks(path: str, *trailers: str, end: str = "") -> bytes:
    """A request without a key whose body comes in chunks, with headers behind it."""
    body = json.dumps(CHAT)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{end}"
    behind = "".join(f"{trailer}\r\n" for trailer in trailers)
    return f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n{behind}\r\n".encode()


KEY = f"Authorization: Bearer {API_KEY}"
CLOSE = "Connection: close\r\n"


@pytest.mark.parametrize("trailers", [(KEY,), (KEY, "X-A: b"), ("X-A: b", KEY), ("X-A: b", KEY, "X-B: c")])
async def test_what_comes_behind_a_body_is_no_header(running_app: RunningApp, trailers: tuple[str, ...]) -> None:
    """Neither of its own request, nor of the next one on the connection: no proxy has looked at it."""
    async with served(running_app.app) as url:
        answers = await told(url, in_chunks("/v1/chat/completions", *trailers, end=CLOSE))
        assert answers.startswith(b"HTTP/1.1 401"), answers
        last = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{CLOSE}\r\n".encode()
        answers = await told(url, in_chunks("/livez", *trailers), last)
        assert answers.count(b"HTTP/1.1 ") == 2
        assert answers.rpartition(b"HTTP/1.1 ")[2].startswith(b"401"), answers
