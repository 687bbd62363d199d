"""The form of a fit in the lab: what it sends, what its plan says, and how its job ends."""

import json
from typing import Any

from playwright.async_api import Request, Route, expect

from tests.browser.chromium import PATIENCE_MS
from tests.browser.conftest import Console, assert_readable

expect.set_options(timeout=PATIENCE_MS)


async def test_a_fit_is_planned_begun_and_followed(console: Console) -> None:
    page = await console.open(place="lab?recipe=sql%20%2B%200.5*json")
    sent: list[tuple[str, Any]] = []

    def note(request: Request) -> None:
        body = json.loads(request.post_data or "{}")
        if request.method == "POST" and "fit" in body:
            sent.append((request.url.rpartition("/")[2], body))

    page.on("request", note)
    # The worker's first answer takes as long as it takes to start.
    await expect(page.get_by_label("Plan", exact=True)).to_be_visible()
    await page.get_by_role("button", name="fit it to prompts of its inputs").click()
    begin = page.get_by_role("button", name="Fit and publish")
    await page.get_by_label("Version it makes").fill("fitted")
    await page.get_by_label("Asked of sql, one a line").fill("How many users?\n\nTwo\\nlines")
    await expect(page.get_by_text("Nothing is there yet for json.")).to_be_visible()
    await expect(begin).to_be_disabled()
    await page.get_by_label("Asked of json, one a line").fill("As JSON: Ann is 34")
    await page.get_by_label("Longest answer").fill("9")
    await page.get_by_label("Published if it keeps").fill("0.9")
    await page.get_by_role("button", name="Say what it takes").click()
    taken = page.get_by_label("What the fit takes")
    await expect(taken).to_contain_text("2 of sql@1")
    await expect(taken).to_contain_text("iteris")
    await expect(taken).to_contain_text("of at most 9 tokens")
    await expect(taken).to_contain_text("threads")
    await assert_readable(page, "the form of a fit")
    await begin.click()
    # The base model of these tests is no model: the job says that it cannot be read, beside the form.
    await expect(page.get_by_role("status").get_by_text("fit_unread")).to_be_visible()
    prompts = {"sql": ["How many users?", "Two\nlines"], "json": ["As JSON: Ann is 34"]}
    wanted = {
        "name": "fitted", "expression": "sql + 0.5*json", "fit": {"by": "kept", "prompts": prompts, "max_tokens": 9},
        "require": {"kept": 0.9},
    }  # fmt: skip
    assert sent == [("merges:plan", wanted), ("merges", wanted)]
    await page.get_by_role("status").get_by_role("link", name="merge of fitted").click()
    await expect(page.get_by_text("Fitted by iteris, by the inputs' own answers: nothing is read yet.")).to_be_visible()
    assert not console.troubles
    await page.context.close()


async def test_labelled_items_and_an_evaluation_are_sent_as_they_are_named(console: Console) -> None:
    page = await console.open(place="lab?recipe=sql%20%2B%20json", width=420, dark=True)
    await page.get_by_role("button", name="fit it to prompts of its inputs").click()
    await page.get_by_label("Version it makes").fill("labelled")
    await page.get_by_label("Fitted by").select_option("items")
    await page.get_by_label("Way").select_option("weights")
    for name in ("sql", "json"):
        line = json.dumps({"task": name, "prompt": f"{name} 1", "reference": "right"})
        await page.get_by_label(f"Items of {name}, a JSON list or one object a line").fill(line)

    def is_of_the_fit(request: Request) -> bool:
        # The lab plans the merge as it is by itself.
        return request.url.endswith("merges:plan") and "fit" in json.loads(request.post_data or "{}")

    async with page.expect_request(is_of_the_fit) as asked:
        await page.get_by_role("button", name="Say what it takes").click()
    items = {name: [{"prompt": f"{name} 1", "reference": "right"}] for name in ("sql", "json")}
    assert json.loads((await asked.value).post_data or "")["fit"] == {
        "by": "items",
        "items": items,
        "method": "weights",
    }
    await expect(page.get_by_label("What the fit takes")).to_contain_text("48 at most")
    await page.get_by_label("Items of sql").fill("{nonsense")
    await page.get_by_role("button", name="Say what it takes").click()
    await expect(page.get_by_role("alert")).to_contain_text("Line 1 of the items is no JSON")
    await page.get_by_label("Fitted by").select_option("evaluation")
    await page.get_by_label("Id of the evaluation").fill("nosuch")
    await page.get_by_role("button", name="Say what it takes").click()
    await expect(page.get_by_role("alert")).to_contain_text("evaluation_not_found")
    await assert_readable(page, "a fit by an evaluation")
    assert not console.troubles
    await page.context.close()


async def test_a_lineage_says_that_a_version_was_fitted_and_what_it_keeps(console: Console) -> None:
    """The base model of these tests is no model, so what a fit comes to is put into what the server answers."""
    page = await console.open(place="adapters/sql")
    fit = {"method": "iteris", "by": "kept", "tokens": 321, "unread": 2, "weights": {}, "sweep": None}
    kept = {"inputs": {"json@1": {"answers": 0.8, "prompts": 10, "likelihood": 0.987}}}

    async def fitted(route: Route) -> None:
        real = await route.fetch()
        graph = await real.json()
        graph["nodes"][0] |= {"fit": fit, "kept": kept}
        await route.fulfill(response=real, json=graph)

    await page.route("**/versions/1/lineage", fitted)
    await page.get_by_role("button", name="lineage").click()
    lineage = page.get_by_label("Lineage of sql@1")
    await expect(lineage.get_by_role("button", name="sql@1")).to_contain_text("fitted")
    await expect(lineage).to_contain_text(
        "Fitted by iteris, by the inputs' own answers: 321 tokens were read; 2 modules"
    )
    await expect(lineage).to_contain_text("json@1 to 8 of 10 prompts, whose tokens have 0.99 of their probability")
    await assert_readable(page, "the lineage of a fit")
    await page.context.close()
