"""An evaluation in a browser: made from pasted items, followed, and read item by item with what was asked."""

from playwright.async_api import expect

from tests.browser.chromium import PATIENCE_MS
from tests.browser.conftest import Console, assert_readable

expect.set_options(timeout=PATIENCE_MS)
ITEMS = """{"task": "sql", "prompt": "sql one", "reference": "right"}
{"task": "other", "messages": [{"role": "user", "content": "<b>both</b> alike"}], "reference": "word0"}
{"task": "json", "prompt": "json one", "reference": "right"}"""


async def test_two_models_are_compared_item_by_item(console: Console) -> None:
    page = await console.open(place="evaluations")
    await page.locator("summary", has_text="New").click()
    await page.get_by_label("Targets, one a line").fill("sql\njson")
    await page.get_by_label("Items: a JSON list, or one JSON object a line").fill("{")
    await page.get_by_role("button", name="Start").click()
    await expect(page.get_by_text("Line 1 of the items is no JSON")).to_be_visible()
    await page.get_by_label("Items: a JSON list, or one JSON object a line").fill(ITEMS)
    await page.get_by_role("button", name="Start").click()
    await expect(page.get_by_text("6 of 6, done")).to_be_visible()
    await expect(page.get_by_label("Comparison").get_by_role("row")).to_have_count(4)
    rows = page.get_by_label("Answers", exact=True).get_by_role("row")
    await expect(rows).to_have_count(4)
    await expect(rows.nth(1)).to_contain_text("sql one")
    await expect(rows.nth(1)).to_contain_text("wanted: right")
    await expect(rows.nth(2)).to_contain_text("json one")
    await expect(rows.nth(3)).to_contain_text("<b>both</b> alike")
    await page.get_by_label("Right").select_option("sql")
    await expect(rows.nth(1)).to_contain_text("sql one")
    await assert_readable(page, "an evaluation")
    await page.set_viewport_size({"width": 400, "height": 900})
    await assert_readable(page, "an evaluation")
    assert not console.troubles
    await page.context.close()
