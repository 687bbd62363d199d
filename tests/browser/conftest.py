"""A browser, and the real application with its merge process; only the engine is fake."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

from tests.browser.choosy_engine import ChoosyEngine
from tests.browser.chromium import PATIENCE_MS, launch_options
from tests.support.keys import make_key
from tests.support.running_app import ADMIN_KEY, RunningApp, served, start_app, write_adapter

INJECTED = '<img src="x" onerror="document.title=\'injected\'">'


@dataclass
class Console:
    """The pages of one running application, and what went wrong on them."""

    running_app: RunningApp
    url: str
    browser: Browser
    reader_key: str
    """Of the tenant ``acme``: it reads the admin plane, and changes nothing."""
    troubles: list[str] = field(default_factory=list)
    """Errors of scripts, and refusals by the policy."""
    strangers: list[str] = field(default_factory=list)
    """Requests that left the server."""

    async def open(self, key: str = ADMIN_KEY, place: str = "", *, width: int = 1280, dark: bool = False) -> Page:
        """A new tab in which ``key`` was typed, at a page."""
        context = await self.browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        page = await context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", lambda said: self.troubles.append(said.text) if "Content Security" in said.text else None)
        page.on("request", lambda sent: self.strangers.append(sent.url) if self._is_strange(sent.url) else None)
        await page.goto(f"{self.url}/console/#/{place}")
        await page.get_by_label("Key of this server").fill(key)
        await page.get_by_role("button", name="Open").click()
        await page.locator("#page h1").wait_for()
        return page

    def _is_strange(self, url: str) -> bool:
        return not url.startswith((self.url, "data:", "blob:"))


async def assert_readable(page: Page, what: str) -> None:
    """The page is no wider than the window, and axe-core has nothing serious to say of it."""
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{what} is too wide"
    found = await Axe().run(page)
    serious = [one for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
    assert not serious, (what, [(one["id"], one["nodes"][0]["html"]) for one in serious])


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    options = launch_options()
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(**options)
        yield opened
        await opened.close()


@pytest.fixture(scope="module")
async def console(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Console]:
    folder = tmp_path_factory.mktemp("console")
    async with start_app(folder, ChoosyEngine(), worker=True, blender=True) as opened:
        async with opened.http(ADMIN_KEY) as admin:
            for seed, name in enumerate(("sql", "json", "code")):
                folder = write_adapter(opened.sources / name, seed=seed + 1)
                body = {"name": name, "source": f"file://{folder}", "description": INJECTED}
                assert (await admin.post("/admin/v1/adapters", json=body)).status_code == 201
        reader = await make_key(opened, "reader", name="dashboards", limits={"tokens_per_day": 5000})
        async with served(opened.app) as url:
            yield Console(opened, url, browser, reader)


@pytest.fixture
def bad_folder(tmp_path: Path) -> Path:
    """An adapter of a rank that the server does not take."""
    return write_adapter(tmp_path / "wide", rank=32)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/browser/" in item.path.as_posix():
            item.add_marker("slow")
