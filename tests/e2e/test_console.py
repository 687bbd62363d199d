"""The console in a browser on the real engine: a slider is a live blend, and what it found is saved and called."""

import re
from collections.abc import Iterator

import httpx
import openai
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.chromium import PATIENCE_MS, launch_options
from tests.e2e.conftest import ADMIN_KEY, RunningServer

PROMPT = """CREATE TABLE tenants (tenant TEXT, rent INTEGER);
Question: What is the sum of the rent?
Answer with one SQL query only."""
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def page(standard_server: RunningServer) -> Iterator[Page]:
    options = launch_options()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**options)
        page = browser.new_context().new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{standard_server.url}/")
        page.get_by_label("Key of this server").fill(ADMIN_KEY)
        page.get_by_role("button", name="Open").click()
        expect(page.locator("#page h1")).to_have_text("Overview")
        yield page
        browser.close()


def test_a_slider_is_a_live_blend_that_is_saved_and_called(
    page: Page, server: RunningServer, client: openai.OpenAI, admin: httpx.Client
) -> None:
    page.goto(f"{server.url}/console/#/lab?recipe=sql%20%2B%200.5*json")
    page.get_by_label("Tokens").fill("16")
    page.get_by_label("Prompt").fill(PROMPT)
    blend, parent = page.get_by_label("The blend"), page.get_by_label("sql", exact=True)
    expect(parent.locator(".text")).to_contain_text("SELECT")
    expect(blend.locator(".times")).to_contain_text("blend@")
    first = served(blend.locator(".times").inner_text())
    page.get_by_label("weight of json", exact=True).fill("-0.5")
    expect(blend.locator(".times")).to_contain_text(re.compile(f"blend@(?!{first})"))
    expect(page.get_by_role("button", name="sql - 0.5*json")).to_be_visible()

    page.get_by_label("Name", exact=True).fill("from-the-lab")
    page.get_by_role("button", name="Save as version").click()
    expect(page.get_by_role("status").get_by_text("from-the-lab@1 answers now")).to_be_visible()
    answer = client.chat.completions.create(
        model="from-the-lab", messages=[{"role": "user", "content": PROMPT}], max_tokens=16, temperature=0
    )
    assert answer.model == "from-the-lab@1"
    # The blend's answer comes word by word, and its name with the first of them.
    expect(blend.locator(".text")).to_have_text((answer.choices[0].message.content or "").strip())
    assert admin.delete("/admin/v1/adapters/from-the-lab").status_code == 200


def served(times: str) -> str:
    """What stands behind ``blend@`` in the line below an answer."""
    found = re.search(r"blend@(\w+)", times)
    assert found, times
    return found[1]


def test_a_page_of_another_origin_gets_nothing(page: Page, server: RunningServer) -> None:
    stranger = page.context.new_page()
    stranger.goto("data:text/html,<title>elsewhere</title>")
    asked = """async (url) => {
        const headers = { Authorization: "Bearer x" };
        return fetch(url, { headers }).then((answer) => answer.status, () => "nothing");
    }"""
    assert stranger.evaluate(asked, f"{server.url}/admin/v1/adapters") == "nothing"
    assert stranger.evaluate(asked, f"{server.url}/v1/models") == "nothing"
    stranger.close()
