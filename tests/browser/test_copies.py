"""What the console copies is what runs: each request in a terminal and in Python, as it was typed on the page."""

import asyncio
import json
import os
import shutil
import sys
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser.chromium import PATIENCE_MS
from tests.browser.conftest import Console
from tests.support.running_app import ADMIN_KEY

expect.set_options(timeout=PATIENCE_MS)


async def copied(page: Page, label: str, at: int = 0) -> str:
    """What a button puts into the clipboard."""
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.evaluate("navigator.clipboard.writeText('')")
    await page.get_by_role("button", name=label, exact=True).nth(at).click()
    await expect(page.get_by_role("status").get_by_text(f"{label}: copied").last).to_be_visible()
    return str(await page.evaluate("navigator.clipboard.readText()"))


async def run(*command: str) -> str:
    """What a program with the key in its environment writes."""
    environment = {**os.environ, "AMALGAM_KEY": ADMIN_KEY}
    done = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    written, _ = await asyncio.wait_for(done.communicate(), PATIENCE_MS / 1000)
    assert done.returncode == 0, command
    return written.decode()


async def test_a_view_is_asked_for_in_a_terminal_and_in_python(console: Console) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    page = await console.open(place="adapters")
    async with console.running_app.http(ADMIN_KEY) as admin:
        wanted = (await admin.get("/admin/v1/adapters?limit=50")).json()
    assert json.loads(await run("bash", "-c", await copied(page, "copy as curl"))) == wanted
    assert json.loads(await run(sys.executable, "-c", await copied(page, "as Python"))) == wanted
    await page.context.close()


async def test_a_change_is_made_from_python_as_the_form_has_it(console: Console) -> None:
    body: dict[str, Any] = {"targets": [{"model": "sql"}, {"model": "json"}]}
    async with console.running_app.http(ADMIN_KEY) as admin:
        assert (await admin.put("/admin/v1/aliases/copied", json=body)).status_code == 201
    page = await console.open(place="aliases/copied")
    await page.get_by_text("New experiment").click()
    await page.get_by_label("a higher value is better").uncheck()
    begin = page.get_by_role("button", name="Begin the experiment")
    place = await begin.locator("xpath=preceding::button[.='as Python']").count()
    begun = json.loads(await run(sys.executable, "-c", await copied(page, "as Python", place)))
    assert (begun["metric"], begun["higher_is_better"], begun["errors"]["most_above"]) == ("thumb", False, 0.02)
    await page.context.close()


async def test_a_chat_is_asked_in_python_with_everything_of_the_form(console: Console) -> None:
    page = await console.open(place="playground?models=sql&user=it's%20%22hello%22&top_k=3&stop=a&logprobs=1&tools=[]")
    await page.get_by_label("Tools, a JSON list").fill("")  # what is emptied stays in sight
    await page.get_by_label("Further fields of the request, as JSON").fill('{"chat_template_kwargs": {"on": null}}')
    await page.get_by_role("button", name="Ask").click()
    await expect(page.locator(".column .first")).to_have_count(1)
    script = await copied(page, "as Python")
    console.running_app.engine.calls.clear()
    assert "word" in await run(sys.executable, "-c", script)
    [(_, body)] = console.running_app.engine.calls
    assert body["messages"] == [{"role": "user", "content": 'it\'s "hello"'}]
    sent = {name: body[name] for name in ("top_k", "stop", "logprobs", "chat_template_kwargs")}
    assert sent == {"top_k": 3, "stop": ["a"], "logprobs": True, "chat_template_kwargs": {"on": None}}
    await page.context.close()
