"""How the server is, in a browser: what runs and waits by adapter, one job as it goes on, and what the key is."""

import asyncio

from playwright.async_api import expect

from tests.browser.chromium import PATIENCE_MS
from tests.browser.conftest import Console, assert_readable
from tests.support.keys import make_key
from tests.support.running_app import ADMIN_KEY

expect.set_options(timeout=PATIENCE_MS)
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


async def test_what_runs_is_shown_by_adapter(console: Console) -> None:
    engine = console.running_app.engine
    page = await console.open()
    await expect(page.get_by_text("Nothing runs and nothing waits.")).to_be_visible()
    engine.chunk_pause_s = 60.0
    async with console.running_app.http(ADMIN_KEY) as admin:
        asked = asyncio.create_task(admin.post("/v1/chat/completions", json=CHAT | {"model": "code"}))
        await expect(page.get_by_label("Queue").get_by_role("row", name="code@1")).to_be_visible()
        engine.chunk_pause_s = 0.0
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    await expect(page.get_by_text("Nothing runs and nothing waits.")).to_be_visible()
    await page.context.close()


async def test_a_job_is_followed_by_its_events(console: Console) -> None:
    async with console.running_app.http(ADMIN_KEY) as admin:
        made = await admin.post("/admin/v1/merges", json={"name": "followed", "expression": "sql + code"})
        job = made.json()["job"]["id"]
    page = await console.open(place=f"jobs/{job}")
    await expect(page.get_by_role("link", name="followed@1")).to_be_visible()
    await expect(page.get_by_label("Events").get_by_role("row", name="published")).to_be_visible()
    await expect(page.get_by_label("Steps").get_by_role("row").nth(1)).to_be_visible()
    await assert_readable(page, "a job")
    await page.get_by_role("link", name="All jobs").click()
    await expect(page.get_by_role("heading", name="Batches")).to_be_visible()
    assert not console.troubles
    await page.context.close()


async def test_a_key_is_shown_what_it_is_and_what_is_left_of_its_limits(console: Console) -> None:
    key = await make_key(console.running_app, "client", "sql", name="production", limits={"requests_per_minute": 9})
    async with console.running_app.http(key) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT | {"model": "sql"})).status_code == 200
    page = await console.open(key, place="key")
    await expect(page.locator("#page h1")).to_have_text("This key")
    await expect(page.get_by_label("Limits")).to_contain_text("8 of 9 requests a minute left")
    await expect(page.locator("#page .figures")).to_contain_text("client asks models")
    await page.get_by_label("Pages").get_by_role("link", name="Playground").click()
    await page.get_by_role("link", name="production").click()
    await expect(page.locator("#page h1")).to_have_text("This key")
    assert not console.troubles
    await page.context.close()
