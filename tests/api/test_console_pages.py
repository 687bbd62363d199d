"""The pages for people, as HTTP: where they lie, what they may load, and that nothing else of the package is served."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from amalgam.api.console_pages import FOLDER
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, start_app

_SHOWN = re.compile(r"""(?:src|href)="([^"#]+)\"""")
"""Relative to the page."""
_IMPORTED = re.compile(r"""from\s*"([^"]+)"|import\("([^"]+)"\)""")
"""Relative to the module."""


@pytest.fixture
async def visitor(running_app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with running_app.http() as client:
        yield client


async def test_a_browser_is_led_to_the_console_and_a_program_is_told_where_things_are(
    visitor: httpx.AsyncClient,
) -> None:
    led = await visitor.get("/", headers={"accept": "text/html,application/xhtml+xml"})
    assert (led.status_code, led.headers["location"]) == (307, "/console/")
    assert (await visitor.get("/")).json()["api"] == "/v1"
    assert (await visitor.get("/docs")).headers["location"] == "/console/docs.html"
    assert (await visitor.get("/console")).headers["location"] == "/console/"


async def test_pages_may_load_from_the_server_alone_and_are_asked_for_again(visitor: httpx.AsyncClient) -> None:
    page = await visitor.get("/console/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-cache"
    again = await visitor.get("/console/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    ["..%2fapp.py", "%2e%2e/app.py", "..%5capp.py", "/etc/passwd", "%2fetc%2fpasswd", "js", "nothing.js", "vendor/"],
)
async def test_nothing_else_is_served(visitor: httpx.AsyncClient, path: str) -> None:
    answer = await visitor.get(f"/console/{path}")
    assert_error(answer, 404, "route_not_found")


async def test_no_page_has_a_script_or_a_style_within_it_and_all_that_they_name_is_there(
    visitor: httpx.AsyncClient,
) -> None:
    own = [path for path in FOLDER.rglob("*") if path.suffix in (".html", ".js") and "vendor" not in path.parts]
    assert len(own) > 20
    for path in own:
        text = path.read_text()
        if path.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", text), path
        named = [FOLDER / match[1] for match in _SHOWN.finditer(text)]
        named += [path.parent / (match[1] or match[2]) for match in _IMPORTED.finditer(text)]
        for file in named:
            at = file.resolve().relative_to(FOLDER)
            assert (await visitor.get(f"/console/{at}" if at.suffix else "/console/")).status_code == 200, (path, at)


def test_one_file_asks_the_network() -> None:
    asking = [path.name for path in FOLDER.rglob("*.js") if "vendor" not in path.parts and "fetch(" in path.read_text()]
    assert asking == ["api.js"]


async def test_the_console_can_be_turned_off(tmp_path: Path) -> None:
    async with start_app(tmp_path, console=False) as opened, opened.http(API_KEY) as client:
        for path in ("/", "/docs", "/console", "/console/", "/console/index.html"):
            assert_error(await client.get(path), 404, "route_not_found")


async def test_pages_below_a_prefix_lead_below_it(tmp_path: Path) -> None:
    async with start_app(tmp_path, root_path="/llm") as opened, opened.http() as client:
        assert (await client.get("/", headers={"accept": "text/html"})).headers["location"] == "/llm/console/"


async def test_the_methods_are_the_table_with_their_parameters(running_app: RunningApp) -> None:
    async with running_app.http(ADMIN_KEY) as admin:
        answer = await admin.get("/admin/v1/merge-methods")
    rows = {row["name"]: row for row in answer.json()["data"]}
    assert rows["ties"]["parameters"]["properties"]["density"]["maximum"] == 1
    assert rows["slerp"]["max_inputs"] == 2
    assert rows["dare_ties"]["random"] is True
    assert "lambda" in rows["tsv"]["parameters"]["properties"]
    json.dumps(rows)
