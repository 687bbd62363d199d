"""Tenants, their keys and what they used, in a browser; and what a key that only reads is shown."""

import httpx
from playwright.async_api import Page, expect

from tests.browser.chromium import PATIENCE_MS
from tests.browser.conftest import Console
from tests.support.running_app import ADMIN_KEY

expect.set_options(timeout=PATIENCE_MS)
CHANGING = {"Register", "Create", "Save", "Save as version", "Make alias", "Roll back", "Delete", "Suspend", "Start",
            "Promote", "Verify the stored files", "Create the key", "make default", "pin", "load", "rebuild", "rotate",
            "revoke", "cancel", "delete", "bring back", "New", "New key", "New experiment", "Begin the experiment",
            "Stop the experiment", "Save the router", "Change the router", "Explain", "Go on", "Stop"}  # fmt: skip
"""Labels of what changes something."""
READ = ("overview", "adapters", "adapters/sql", "aliases", "evaluations", "jobs", "tenants/acme", "usage", "key")


async def test_a_key_is_made_shown_once_used_rotated_and_revoked(console: Console) -> None:
    page = await console.open(place="tenants")
    await page.get_by_label("Id, never given to another").fill("zeta")
    await page.get_by_label("Name, for people").fill("Zeta Labs")
    await page.get_by_role("button", name="Create").click()
    await expect(page.locator("#page h1")).to_have_text("Zeta Labs")
    await page.get_by_text("New key", exact=True).click()
    await page.get_by_label("Key's name, for people").fill("production")
    await page.get_by_label("Only this name or pattern").fill("sql")
    await page.get_by_role("button", name="Add", exact=True).click()
    await page.get_by_label("tokens a day").last.fill("1000")
    await page.get_by_role("button", name="Create the key").click()
    issued = page.get_by_role("alert", name="New key")
    secret = await issued.locator("pre").inner_text()
    async with httpx.AsyncClient(base_url=console.url, headers={"Authorization": f"Bearer {secret}"}) as client:
        body = {"model": "sql", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=body | {"model": "json"})).status_code == 404
        await page.get_by_role("button", name="I have it").click()
        await expect(page.locator("body")).not_to_contain_text(secret)
        row = page.get_by_label("Keys").get_by_role("row", name="production")
        await expect(row).to_contain_text("of 1,000 tokens today left")
        page.on("dialog", lambda dialog: dialog.accept())
        await row.get_by_role("button", name="rotate").click()
        successor = await issued.locator("pre").inner_text()
        assert successor != secret
        await page.get_by_role("button", name="I have it").click()
        await page.get_by_role("row", name=secret[:19]).get_by_role("button", name="revoke").click()
        await expect(page.get_by_role("row", name=secret[:19])).to_contain_text("revoked")
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 401
    await page.context.close()


async def test_what_a_tenant_used_is_drawn_listed_and_downloaded(console: Console) -> None:
    async with console.running_app.http(ADMIN_KEY) as admin:
        body = {"model": "code", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        assert (await admin.post("/v1/chat/completions", json=body)).status_code == 200
    page = await console.open(place="usage")
    await expect(page.get_by_label("Usage").get_by_role("row", name="code")).to_be_visible()
    await expect(page.get_by_role("img").locator("canvas")).to_be_visible()
    await page.get_by_role("combobox", name="By", exact=True).select_option("tenant")
    await expect(page.get_by_label("Usage").get_by_role("link", name="default")).to_be_visible()
    async with page.expect_download() as waiting:
        await page.get_by_role("button", name="Download as CSV").click()
    text = (await (await waiting.value).path()).read_text()
    assert text.startswith("start_time,end_time,tenant,requests")
    assert ",default," in text
    assert not console.troubles
    await page.context.close()


async def test_limits_and_state_of_a_tenant_are_changed(console: Console) -> None:
    async with console.running_app.http(ADMIN_KEY) as admin:
        assert (await admin.post("/admin/v1/tenants", json={"id": "beta"})).status_code == 201
    page = await console.open(place="tenants/beta")
    page.on("dialog", lambda dialog: dialog.accept())
    await page.get_by_text("Change its limits, weight or state").click()
    await page.get_by_label("tokens a day").first.fill("2000")
    await page.get_by_role("button", name="Save").click()
    await expect(page.locator("#page")).to_contain_text("2,000 of 2,000 tokens left")
    await page.get_by_text("Change its limits, weight or state").click()
    await page.get_by_role("button", name="Suspend").click()
    await expect(page.get_by_text("its keys open nothing.")).to_be_visible()
    await page.context.close()


async def test_a_key_that_only_reads_sees_every_page_and_no_button_that_changes(console: Console) -> None:
    page = await console.open(console.reader_key)
    names = await page.get_by_label("Pages").get_by_role("link").all_inner_texts()
    assert {"Overview", "Adapters", "Tenants", "Usage"} <= set(names)
    assert "Merge lab" not in names
    for place in READ:
        await page.goto(f"{console.url}/console/#/{place}")
        await page.locator("#page .loading").wait_for(state="detached")
        await page.locator("#page table, #page .empty").first.wait_for()
        assert not CHANGING & await buttons(page), place
    await page.goto(f"{console.url}/console/#/tenants/acme")
    await expect(page.get_by_role("row", name="dashboards")).to_contain_text("of 5,000 tokens today left")
    await page.context.close()


async def buttons(page: Page) -> set[str]:
    """The words on what can be pressed or unfolded."""
    return {text.strip() for text in await page.locator("button:visible, summary:visible").all_inner_texts()}
