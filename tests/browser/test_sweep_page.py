"""A sweep in a browser: made in the lab's wake, drawn as it goes on, a point of it chosen, and promoted."""

from playwright.async_api import Page, Position, expect

from tests.browser.chromium import PATIENCE_MS
from tests.browser.conftest import Console

expect.set_options(timeout=PATIENCE_MS)
ITEMS = "\n".join(
    f'{{"task": "{task}", "prompt": "{task} {number}", "reference": "right"}}'
    for task in ("sql", "json")
    for number in range(6)
)


async def test_a_sweep_is_run_drawn_and_promoted(console: Console) -> None:
    page = await console.open(place="lab?recipe=sql%20%2B%200.5*json")
    await page.get_by_role("link", name="Start a sweep from here").click()
    await expect(page.get_by_label("Adapters, with commas")).to_have_value("sql,json")
    await page.get_by_label("Candidates").fill("6")
    await page.get_by_label("Items: a JSON list, or one JSON object a line").fill(ITEMS)
    await page.get_by_role("button", name="Start").click()
    await expect(page.locator("#page")).to_contain_text("done", timeout=PATIENCE_MS)
    await expect(page.get_by_label("Candidates").get_by_role("row")).to_have_count(7)
    drawn, name = await drawn_points(page)
    assert drawn == 6
    await page.get_by_role("img").click(position=await place_of(page, name))
    await expect(page.locator("code", has_text=name).first).to_be_visible()
    await expect(page.get_by_role("link", name="Open in the lab")).to_have_attribute(
        "href", "#/lab?recipe=" + await page.evaluate("encodeURIComponent", name)
    )
    await page.get_by_label("Name", exact=True).fill("best-of-six")
    await page.get_by_role("button", name="Promote").click()
    await expect(page.locator("#page h1")).to_have_text("best-of-six")
    await expect(page.get_by_label("Versions")).to_contain_text("best-of-six@1")
    assert not console.troubles
    await page.context.close()


async def drawn_points(page: Page) -> tuple[int, str]:
    """How many points the chart has, and the name of the last."""
    await page.get_by_role("img").locator("canvas").wait_for()
    names = await page.get_by_role("img").evaluate(
        """(chart) => {
            const { series } = echarts.getInstanceByDom(chart).getOption();
            return series.flatMap((one) => one.data.map((point) => point.name));
        }""",
    )
    return len(names), names[-1]


async def place_of(page: Page, name: str) -> Position:
    """Where the chart has the point of that name, in pixels of the chart."""
    found = await page.get_by_role("img").evaluate(
        """(chart, name) => {
            const drawn = echarts.getInstanceByDom(chart);
            const { series } = drawn.getOption();
            const points = series.flatMap((one, seriesIndex) => one.data.map((point) => ({ seriesIndex, point })));
            const { seriesIndex, point } = points.find((one) => one.point.name === name);
            const [x, y] = drawn.convertToPixel({ seriesIndex }, point.value);
            return { x, y };
        }""",
        name,
    )
    return Position(x=found["x"], y=found["y"])
