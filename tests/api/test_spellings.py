"""Every route, by every spelling of its path, method and key: what a caller may not do never happens.

The decision is that of the route which answers, so no spelling can make two readers of one path disagree.
"""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from amalgam.api.access import ADMIN, CLIENT, OPEN, Access, access_of, matched_route, unmarked
from tests.api.test_keys_of_routes import raw
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, push, served, start_app, write_adapter

CONTROLS = ("%0A", "%0a", "%0D", "%0D%0A", "%00", "%09", "%0B", "%0C", "%1F", "%7F", "%C2%85", "%E2%80%A8", "%E2%80%A9")
ENDS = (
    *CONTROLS, "%250A", "%25250a", "%2e", "%2E%2e", "/.", "/..", ";", ";a=b", "%3B", "/", "//", "%2F", "%5C", "%20",
    "+", "%23", "%3F", "?", "%FF", "%EF%BC%8F", ":", "%E2%80%8B",
)  # fmt: skip
STARTS = (
    "/", "//", "/.", "/livez/..", "/livez/%2e%2e", "/v1/..", "/v1/models/..", "/%2e", "\\", "/;", "/livez;", "/%0A",
    "/v1/models/%0A/..", "/metrics%0A",
)  # fmt: skip
REFUSED = {400, 401, 403, 404}
ASKED = {None: "no key", API_KEY: "a client's key", "ak_me_wrong": "a wrong key"}


def spellings(path: str) -> Iterator[str]:
    """Ways to write ``path``, of which some are the path itself and the others none."""
    for end in ENDS:
        yield path + end
        yield f"{path}{end}{end}"
    for start in STARTS:
        yield start + path
    middle = path.find("/", 1)
    if middle > 0:
        for piece in ("/", "%2F", "/./", "/x/../", "%0A/", "/%0A", ";/", "%00/"):
            yield path[:middle] + piece + path[middle + 1 :]
    yield path.upper()
    yield path.title()
    yield path.swapcase()
    yield "".join(f"%{ord(letter):02x}" if letter != "/" else letter for letter in path)
    yield "".join(f"%{ord(letter):02X}" if index % 2 else letter for index, letter in enumerate(path))
    yield "/" + "".join(f"%25{ord(letter):02x}" for letter in path[1:])
    for index in (1, len(path) // 2, len(path) - 1):
        for control in ("%0A", "%00", "%0D"):
            yield path[:index] + control + path[index:]


def templates(running_app: RunningApp) -> dict[str, tuple[set[str], Access]]:
    found: dict[str, tuple[set[str], Access]] = {}
    for route in running_app.app.routes:
        assert isinstance(route, Route)
        access = access_of(route)
        assert access is not None, route
        methods, _ = found.setdefault(route.path, (set(), access))
        methods.update(route.methods or ())
        assert found[route.path][1].plane == access.plane, "one path, one plane: else a 405 tells of another's"
    return found


def paths(template: str) -> list[str]:
    """The path of a thing that is there, and of one that is not."""
    return sorted({re.sub(r"\{[^}]+\}", word, template) for word in ("sql", "1")})


@pytest.fixture(scope="module")
async def stocked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    """With an adapter that can be lost, and keys."""
    folder = tmp_path_factory.mktemp("spelled")
    async with start_app(folder) as running_app, running_app.http(ADMIN_KEY) as admin:
        assert (await push(admin, "sql", write_adapter(running_app.sources / "sql"))).status_code == 201
        yield running_app


async def holdings(running_app: RunningApp) -> Any:
    """All that a caller without the admin key must not change."""
    async with running_app.http(ADMIN_KEY) as admin:
        kinds = ("adapters", "aliases", "jobs", "evaluations")
        rows = [(await admin.get(f"/admin/v1/{kind}")).json() for kind in kinds]
    return (
        rows,
        sorted(path.name for path in (running_app.folder / "store" / "adapters").rglob("*")),
        len(running_app.engine.calls),
    )


def test_every_route_carries_one_marker(running_app: RunningApp) -> None:
    assert unmarked(running_app.app.routes) == []
    markers = {template: access.plane for template, (_, access) in templates(running_app).items()}
    pages = {"/", "/docs", "/console", "/console/{path:path}"}
    opened = {path for path, plane in markers.items() if plane == "open"}
    assert opened == {"/livez", "/readyz", "/health", "/ping"} | pages
    assert {path for path, plane in markers.items() if plane == "metrics"} == {"/metrics"}
    assert all(plane == "admin" for path, plane in markers.items() if "/admin/" in path or "lora_adapter" in path)
    assert markers["/openapi.json"] == "admin"


@pytest.mark.parametrize(
    "key",
    # A client's key opens most, so most could go wrong with it.
    [pytest.param(key, marks=() if key == API_KEY else pytest.mark.slow) for key in ASKED],
    ids=lambda key: ASKED[key],
)
async def test_no_spelling_of_any_route_does_what_its_caller_may_not(stocked: RunningApp, key: str | None) -> None:
    headers = {"host": "localhost", "content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    before, tried = await holdings(stocked), 0
    bodies = (b'{"lora_name": "sql"}', b"")
    for template, (methods, access) in templates(stocked).items():
        if access.plane in ("open", "metrics") or (access.plane == "client" and key == API_KEY):
            continue
        for path, method in itertools.product(paths(template), sorted(methods | {"POST", "HEAD", "DELETE"})):
            for spelled in {path, *spellings(path)}:
                for body in bodies if method == "POST" and "lora" in path else bodies[1:]:
                    answer, text = await raw(stocked.app, method, spelled, headers, body=body)
                    tried += 1
                    what = (method, spelled, answer, text[:200])
                    # HEAD and the like: a path that is a client's by another spelling may know no such method.
                    assert answer in REFUSED or (answer == 405 and key == API_KEY and _is_for_clients(spelled)), what
                    if key != API_KEY:
                        assert answer in (400, 401), what
    assert tried > 5000
    assert await holdings(stocked) == before


def _is_for_clients(spelled: str) -> bool:
    return spelled.startswith(("/v1/models/", "//v1/models", "/livez"))


@pytest.mark.parametrize("key", [None, API_KEY, ADMIN_KEY], ids=["no key", "client", "admin"])
async def test_a_path_with_control_characters_is_malformed_for_everybody(stocked: RunningApp, key: str | None) -> None:
    headers = {"host": "localhost"} | ({} if key is None else {"authorization": f"Bearer {key}"})
    before = await holdings(stocked)
    for path in (
        "/livez",
        "/metrics",
        "/v1/models/sql",
        "/v1/unload_lora_adapter",
        "/admin/v1/adapters/sql",
        "/nothing",
    ):
        for control in CONTROLS:
            for spelled in (path + control, f"/{control}{path[1:]}", path.replace("/v1", f"/v1{control}")):
                if control.upper() not in spelled.upper():
                    continue
                for method in ("GET", "POST", "DELETE"):
                    status, body = await raw(stocked.app, method, spelled, headers)
                    assert (status, b"control characters" in body) == (400, True), (method, spelled, body)
    assert await holdings(stocked) == before


async def test_the_same_as_raw_bytes_over_a_socket(stocked: RunningApp) -> None:
    before = await holdings(stocked)
    targets = [
        "/v1/unload_lora_adapter",
        "/v1/load_lora_adapter",
        "/admin/v1/adapters/sql",
        "/admin/v1/adapters/sql:pin",
    ]
    async with served(stocked.app) as url:
        host, port = url.removeprefix("http://").split(":")

        async def status(method: str, target: str, key: str | None) -> int:
            reader, writer = await asyncio.open_connection(host, int(port))
            body = b'{"lora_name": "sql"}'
            head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            head += "" if key is None else f"Authorization: Bearer {key}\r\n"
            writer.write(head.encode("latin-1") + b"\r\n" + body)
            line = await asyncio.wait_for(reader.readline(), 10)
            writer.close()
            return int(line.split(b" ")[1])

        for target, key in itertools.product(targets, ASKED):
            method = "DELETE" if target.endswith("/sql") else "POST"
            absolute = f"http://localhost/livez{target}"
            for spelled in (*spellings(target), absolute, f"http://livez{target}", target + "\x0b", target + "\x7f",
                            target + "#", target + "\xff", target + "\t"):  # fmt: skip
                answer = await status(method, spelled, key)
                assert answer in REFUSED or (answer == 405 and key == API_KEY), (method, spelled, key, answer)
        assert await status("POST", "/v1/unload_lora_adapter%0A", API_KEY) == 400
    assert await holdings(stocked) == before


async def reached(request: Request) -> JSONResponse:
    return JSONResponse({"reached": True})


def added(app: FastAPI, path: str, *dependencies: Any) -> None:
    app.router.add_api_route(path, reached, methods=["GET"], dependencies=[Depends(found) for found in dependencies])


async def test_a_route_without_exactly_one_marker_answers_nobody(tmp_path: Path) -> None:
    async with start_app(tmp_path) as running_app:
        added(running_app.app, "/v1/forgotten")
        added(running_app.app, "/v1/two", CLIENT, OPEN)
        running_app.app.router.routes.append(Route("/v1/plain", reached))
        running_app.app.router.routes.append(Mount("/livez/below", Starlette(routes=[Route("/x", reached)])))
        added(running_app.app, "/v1/marked", CLIENT)
        assert len(unmarked(running_app.app.routes)) == 4
        for path in ("/v1/forgotten", "/v1/two", "/v1/plain", "/livez/below/x"):
            for key, expected in ((None, 401), (API_KEY, 403), (ADMIN_KEY, 403)):
                async with running_app.http(key) as session:
                    assert (await session.get(path)).status_code == expected, (path, key)
        async with running_app.http(API_KEY) as session:
            assert (await session.get("/v1/marked")).json() == {"reached": True}


async def test_the_route_itself_refuses_whom_nobody_has_looked_at() -> None:
    """A way around the middleware, as a test or a mount could make one."""
    app = FastAPI()
    routes = APIRouter()
    for path, access in (("/open", OPEN), ("/client", CLIENT), ("/admin", ADMIN)):
        routes.add_api_route(path, reached, methods=["GET"], dependencies=[Depends(access)])
    app.include_router(routes)
    from amalgam.api.errors import install_error_handlers

    install_error_handlers(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as session:
        assert [(await session.get(f"/{path}")).status_code for path in ("open", "client", "admin")] == [200, 401, 401]


def test_one_reader_finds_what_the_router_finds(running_app: RunningApp) -> None:
    for template, (methods, access) in templates(running_app).items():
        for path, method in itertools.product(paths(template), sorted(methods)):
            found = matched_route({"type": "http", "method": method, "path": path, "app": running_app.app})
            assert found.access.plane == access.plane
            assert found.template == template or "{" in found.template + template
