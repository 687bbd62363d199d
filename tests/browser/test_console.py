"""What people do on the console's pages, in a browser."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from playwright.async_api import FilePayload, Page, Response, expect

from tests.browser.chromium import PATIENCE_MS
from tests.browser.conftest import Console, assert_readable
from tests.support.running_app import API_KEY, write_adapter

expect.set_options(timeout=PATIENCE_MS)
PAGES = (
    *("overview", "adapters", "adapters/sql", "lab?recipe=sql%20%2B%200.5*json"),
    *("playground", "aliases", "aliases/support", "evaluations", "jobs", "batches", "tenants", "tenants/acme", "usage"),
    "key",
)
MOST_BYTES = 500_000


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)], ids=["wide", "narrow and dark"])
async def test_every_page_opens_is_readable_and_stays_with_the_server(console: Console, width: int, dark: bool) -> None:
    page = await console.open(width=width, dark=dark)
    for place in PAGES:
        await page.goto(f"{console.url}/console/#/{place}")
        await expect(page.locator("#page h1")).to_be_visible()
        await page.locator("#page .loading").wait_for(state="detached")
        await assert_readable(page, place)
        await page.emulate_media(color_scheme="light" if dark else "dark")
        await assert_readable(page, f"{place}, the other way round")
        await page.emulate_media(color_scheme="dark" if dark else "light")
    assert not console.troubles
    assert not console.strangers
    await page.context.close()


async def test_the_first_view_is_small(console: Console) -> None:
    sizes: list[int] = []
    context = await console.browser.new_context()
    page = await context.new_page()

    async def weigh(response: Response) -> None:
        sizes.append(0 if 300 <= response.status < 400 else len(await response.body()))

    page.on("response", weigh)
    await page.goto(f"{console.url}/")
    assert page.url == f"{console.url}/console/"
    await page.get_by_label("Key of this server").wait_for()
    assert 0 < sum(sizes) < MOST_BYTES
    await context.close()


async def test_markup_in_a_description_stays_text(console: Console) -> None:
    page = await console.open(place="adapters")
    await expect(page.get_by_text("<img src=").first).to_be_visible()
    assert await page.locator("#page img").count() == 0
    assert "injected" not in await page.title()
    await page.context.close()


async def test_a_good_folder_becomes_a_version_and_a_bad_one_says_why_not(
    console: Console, bad_folder: Path, tmp_path: Path
) -> None:
    page = await console.open(place="adapters")
    await drop(page, bad_folder)
    await expect(page.locator(".findings code").first).to_have_text("rank_too_large")
    await page.get_by_label("Name", exact=True).fill("wide")
    await expect(page.get_by_role("button", name="Register")).to_be_disabled()
    await drop(page, write_adapter(tmp_path / "dropped", seed=9))
    await expect(page.get_by_text("Sound:")).to_be_visible()
    await page.get_by_label("Name", exact=True).fill("dropped")
    await page.get_by_role("button", name="Register").click()
    await expect(page.get_by_role("link", name="dropped")).to_be_visible()
    await page.context.close()


async def drop(page: Page, folder: Path) -> None:
    """Let files fall on the page, as a reader does."""
    files = [(path.name, list(path.read_bytes())) for path in sorted(folder.iterdir())]
    await page.get_by_label("Upload an adapter").evaluate(
        """(target, files) => {
            const given = new DataTransfer();
            for (const [name, bytes] of files) given.items.add(new File([new Uint8Array(bytes)], name));
            target.dispatchEvent(new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true }));
        }""",
        files,
    )


async def test_the_sliders_and_the_text_are_two_ways_to_say_a_merge(console: Console) -> None:
    page = await console.open(place="lab")
    await page.get_by_label("Add an adapter").fill("sql")
    await expect(page.get_by_label("weight of sql", exact=True)).to_be_visible()
    await page.get_by_label("Add an adapter").fill("json")
    recipe = page.get_by_label("Recipe")
    await expect(recipe).to_have_value("sql + 0.5*json")
    await page.get_by_label("weight of json", exact=True).fill("-0.25")
    await expect(recipe).to_have_value("sql - 0.25*json")
    await page.get_by_role("button", name="undo").click()
    await expect(recipe).to_have_value("sql + 0.5*json")
    await recipe.fill("ties(sql, 0.8*code; density=0.3)")
    await expect(page.get_by_label("weight of code", exact=True)).to_have_value("0.8")
    await expect(page.get_by_role("spinbutton", name="density")).to_have_value("0.3")
    await recipe.fill("sql + 0.5*json")
    await page.get_by_label("name of the preset").fill("halves")
    await page.get_by_role("button", name="Keep these weights").click()
    await page.get_by_role("button", name="normalise").click()
    await expect(recipe).to_have_value("0.667*sql + 0.333*json")
    await page.get_by_role("button", name="halves", exact=True).click()
    await expect(recipe).to_have_value("sql + 0.5*json")
    await page.get_by_role("button", name="forget halves").click()
    await expect(page.get_by_role("button", name="halves", exact=True)).to_have_count(0)
    await expect(page.get_by_role("figure")).to_contain_text(
        ["Energy kept", "Cosine of the inputs", "Entries of opposite signs"]
    )
    await page.get_by_role("button", name="+ code").click()
    await expect(recipe).to_have_value("sql + 0.5*json + 0.5*code")
    await page.context.close()


async def test_a_blend_answers_is_saved_and_is_a_job(console: Console) -> None:
    page = await console.open(place="lab?recipe=sql%20%2B%200.5*json")
    await page.get_by_label("Prompt").fill("hello")
    blend = page.get_by_label("The blend")
    await expect(blend.locator(".times")).to_contain_text("blend@")
    before = await blend.locator(".times").inner_text()
    await page.get_by_label("weight of json", exact=True).fill("1.5")
    await expect(blend.locator(".times")).to_contain_text(re.compile("blend@(?!" + before.split("blend@")[1] + ")"))
    await expect(page.get_by_role("button", name="sql + 1.5*json")).to_be_visible()
    await page.get_by_label("Name", exact=True).fill("mixed")
    await page.get_by_role("button", name="Save as version").click()
    await expect(page.get_by_role("status").get_by_text("mixed@1 answers now")).to_be_visible()
    await page.goto(f"{console.url}/console/#/jobs")
    await expect(page.get_by_role("link", name="mixed@1")).to_be_visible()
    await page.goto(f"{console.url}/console/#/adapters/mixed")
    await page.get_by_role("button", name="lineage").click()
    lineage = page.get_by_label("Lineage of mixed@1")
    await expect(lineage).to_contain_text("1.5 × json@1")
    drawn = await lineage.locator(".node").evaluate_all(
        "nodes => nodes.map((node) => [node.querySelector('strong').textContent, node.offsetLeft])"
    )
    assert sorted(drawn)[:2] == [["json@1", drawn[1][1]], ["mixed@1", drawn[0][1]]]
    assert await lineage.locator(".edge path").count() == 2
    await assert_readable(page, "a lineage")
    await lineage.get_by_role("button", name="json@1").click()
    await expect(page.get_by_label("Chosen version")).to_contain_text("not merged here")
    await lineage.get_by_role("button", name="mixed@1").click()
    await lineage.get_by_role("button", name="build it again and compare").click()
    await expect(page.get_by_role("status").get_by_text("came out as the same bytes")).to_be_visible()
    await page.context.close()


async def test_an_alias_is_moved_and_brought_back(console: Console) -> None:
    page = await console.open(place="aliases")
    await page.get_by_label("Name", exact=True).fill("support")
    await page.get_by_label("Means").fill("sql")
    await page.get_by_role("button", name="Create").click()
    await expect(page.locator("#page h1")).to_have_text("support")
    await page.get_by_label("target", exact=True).fill("json")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_label("History").get_by_text("json")).to_be_visible()
    await page.get_by_role("button", name="Roll back").click()
    await expect(page.get_by_label("target", exact=True)).to_have_value("sql")
    await page.context.close()


async def test_a_client_key_sees_the_playground_alone(console: Console) -> None:
    page = await console.open(API_KEY)
    await expect(page.locator("#page h1")).to_have_text("Playground")
    names = await page.get_by_label("Pages").get_by_role("link").all_inner_texts()
    assert names == ["Playground", "Batches", "API"]
    await page.get_by_label("Prompt", exact=True).fill("hello")
    await page.get_by_role("button", name="Ask").click()
    await expect(page.locator(".column .first").first).to_be_visible()
    await page.context.close()


async def test_a_file_of_requests_is_sent_and_its_answers_are_fetched(console: Console) -> None:
    page = await console.open(API_KEY, place="batches")
    body = {"model": "sql", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    line = {"custom_id": "first", "method": "POST", "url": "/v1/chat/completions", "body": body}
    await page.get_by_text("New batch").click()
    file = FilePayload(name="requests.jsonl", mimeType="application/jsonl", buffer=json.dumps(line).encode())
    await page.get_by_label("File of requests").set_input_files(file)
    await page.get_by_role("button", name="Send the batch").click()
    row = page.get_by_label("Batches", exact=True).get_by_role("row", name="completed")
    await expect(row).to_contain_text("1 of 1")
    async with page.expect_download() as waiting:
        await row.get_by_role("button", name="answers").click()
    answers = await asyncio.to_thread((await (await waiting.value).path()).read_text)
    assert json.loads(answers)["custom_id"] == "first"
    await page.context.close()


async def test_an_unknown_key_is_told_so(console: Console) -> None:
    context = await console.browser.new_context()
    page = await context.new_page()
    await page.goto(f"{console.url}/console/")
    await page.get_by_label("Key of this server").fill("ak_nobody")
    await page.get_by_role("button", name="Open").click()
    await expect(page.get_by_role("alert")).to_contain_text("does not know this key")
    await context.close()


async def test_the_document_of_the_api_opens_with_the_key_of_the_tab(console: Console) -> None:
    page = await console.open()
    await page.get_by_label("Pages").get_by_role("link", name="API").click()
    await expect(page.get_by_text("Build a merged adapter and put it into service")).to_be_visible()
    assert not console.troubles
    await page.context.close()


async def test_pages_are_used_without_a_mouse(console: Console) -> None:
    page = await console.open(place="lab?recipe=sql%20%2B%200.5*json")
    await page.get_by_label("weight of json", exact=True).focus()
    await page.keyboard.press("ArrowRight")
    await expect(page.get_by_label("Recipe")).to_have_value("sql + 0.55*json")
    assert {"lock", "dice", "weights as a grid"} <= await reachable(page)
    assert await page.evaluate("document.querySelector('a, button, input').textContent") == "Skip to the page"
    await page.get_by_role("button", name="Skip to the page").focus()
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "page", "the header can be skipped"
    await page.context.close()


async def reachable(page: Page) -> set[str]:
    """The texts of what Tab comes by."""
    found: set[str] = set()
    await page.locator("body").focus()
    for _ in range(40):
        await page.keyboard.press("Tab")
        found.add(await page.evaluate("document.activeElement.textContent.trim().slice(0, 40)"))
    return found
