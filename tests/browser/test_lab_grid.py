"""Two weights as a table in the lab: every cell answers, is scored by a set of items, and can be taken."""

from playwright.async_api import expect

from tests.browser.chromium import PATIENCE_MS
from tests.browser.conftest import Console, assert_readable

expect.set_options(timeout=PATIENCE_MS)
ITEMS = "\n".join(f'{{"task": "sql", "prompt": "sql {number}", "reference": "right"}}' for number in range(4))


async def test_the_grid_is_filled_scored_and_its_best_cell_taken(console: Console) -> None:
    page = await console.open(place="lab?recipe=sql%20%2B%200.5*json")
    await page.get_by_label("Prompt").fill("hello")
    await expect(page.get_by_label("The base model", exact=True).locator(".times")).to_contain_text("tiny")
    await page.get_by_role("button", name="weights as a grid").click()
    await page.get_by_label("Weights of both").fill("0, 1")
    await page.get_by_role("button", name="fill the grid").click()
    grid = page.get_by_label("Answers by the weights of sql and json")
    await expect(grid.get_by_text("word")).to_have_count(3)
    await page.get_by_text("Score it by a set of items").click()
    await page.get_by_label("Items: a JSON list, or one JSON object a line").fill(ITEMS)
    await page.get_by_role("button", name="score the grid").click()
    await expect(page.get_by_text("12 of 12, done")).to_be_visible()
    # The engine answers a task rightly by its own adapter, and wrongly by others.
    await expect(grid.get_by_role("button", name="take sql", exact=True)).to_have_text("1.000")
    await expect(grid.get_by_role("button", name="take json", exact=True)).to_have_text("0.000")
    await expect(grid.locator(".cell", has_text="best").first).to_contain_text("1.000")
    await assert_readable(page, "the grid")
    await grid.get_by_role("button", name="take sql", exact=True).click()
    await expect(page.get_by_label("weight of json", exact=True)).to_have_value("0")
    await page.get_by_role("link", name="item by item").click()
    await expect(page.locator("#page h1")).to_have_text("grid of sql and json")
    await expect(page.get_by_label("Comparison").get_by_role("row")).to_have_count(2)
    assert not console.troubles
    await page.context.close()
