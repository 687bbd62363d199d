"""Experiments and routers in a browser: begun, watched, decided, brought back; made, explained and changed."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from playwright.async_api import Page, expect

from amalgam.registry.tables import experiment_outcomes
from tests.browser.chromium import PATIENCE_MS
from tests.browser.conftest import Console, assert_readable
from tests.browser.test_admin_pages import CHANGING, buttons
from tests.support.running_app import ADMIN_KEY

expect.set_options(timeout=PATIENCE_MS)
PATH = "/admin/v1/aliases"
SQL = ("How many users are there in the table?", "Select every order\nof last week", "Count the rows of the table",
       "Which city has the most customers?")  # fmt: skip
JSON = ("Extract name and age as JSON", "Turn the sentence into a JSON object", "JSON of the invoice, with a \\ in it",
        "Return a JSON list of the names")  # fmt: skip


async def put(console: Console, path: str, body: dict[str, Any]) -> Any:
    async with console.running_app.http(ADMIN_KEY) as admin:
        answer = await admin.put(f"{PATH}/{path}", json=body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def weighted(console: Console, name: str, *models: str, **experiment: Any) -> str:
    """An alias of as many requests for each model; the id of the experiment that it carries, if one is asked for."""
    await put(console, name, {"targets": [{"model": model} for model in models]})
    return str((await put(console, f"{name}/experiment", experiment))["id"]) if experiment else ""


async def hear(console: Console, experiment: str, outcomes: Iterable[tuple[str, int, int]]) -> None:
    """Feedback as other front ends would have written it: targets, how often they were judged, and how often well."""
    stored = await console.running_app.stored()
    async with stored.database.write() as connection:
        for target, count, total in outcomes:
            row = {"experiment": experiment, "target": target, "count": count, "total": total}
            await connection.execute(experiment_outcomes.insert().values(row))


async def test_an_experiment_is_begun_watched_promotes_and_is_rolled_back(console: Console) -> None:
    await weighted(console, "assistant", "sql", "json")
    page = await console.open(place="aliases/assistant")
    await page.get_by_text("New experiment").click()
    await page.get_by_label("let the alias mean the winner alone").check()
    await page.get_by_label("Least difference that matters").fill("0.05")
    await page.get_by_role("button", name="Begin the experiment").click()
    verdict = page.get_by_role("group", name="Verdict")
    await expect(verdict).to_contain_text("running, 0 outcomes")
    await expect(verdict).to_contain_text("No feedback has come yet.")
    async with console.running_app.http(ADMIN_KEY) as admin:
        begun = (await admin.get(f"{PATH}/assistant/experiment")).json()
    assert (begun["minimum_effect"], begun["promote"], begun["errors"]["most_above"]) == (0.05, True, 0.02)
    await hear(console, begun["id"], [("sql", 10, 5), ("json", 10, 6)])
    await expect(page.get_by_label("Difference in thumb").get_by_role("row", name="json")).to_contain_text(" to ")
    await hear_more(console, begun["id"])
    await expect(verdict).to_contain_text("json is better, promoted")
    await expect(verdict).to_contain_text("json less sql: 0.")
    await expect(verdict).to_contain_text("Promoted: the alias means json alone.")
    await expect(page.get_by_label("target", exact=True)).to_have_count(1)
    await expect(page.get_by_label("target", exact=True)).to_have_value("json")
    await expect(page.get_by_label("History").get_by_role("row").nth(1)).to_contain_text("changed by its experiment")
    who = page.get_by_label("Who did what")
    await expect(who.get_by_role("row", name="ended the experiment")).to_contain_text("the server, by itself")
    await expect(who.get_by_role("row", name="began an experiment")).to_contain_text("key env-")
    await page.get_by_role("button", name="Roll back").click()
    await expect(page.get_by_label("target", exact=True)).to_have_count(2)
    await page.get_by_role("link", name="All aliases").click()
    await expect(page.get_by_role("row", name="assistant")).to_contain_text("json is better, promoted")
    assert not console.troubles
    await page.context.close()


async def hear_more(console: Console, experiment: str) -> None:
    stored = await console.running_app.stored()
    async with stored.database.write() as connection:
        of = experiment_outcomes.c
        for target, total in (("sql", 400), ("json", 900)):
            changed = experiment_outcomes.update().where(of.experiment == experiment, of.target == target)
            await connection.execute(changed.values(count=1000, total=total))


async def test_what_a_guard_took_out_is_told_with_its_interval(console: Console) -> None:
    guards = {"errors": {"most_above": 0.02}, "latency": {"slow_ms": 900, "most_above": 0.05}}
    begun = await weighted(console, "guarded", "sql", "json", "code", **guards)
    counts = console.running_app.services.experiment_counts
    for number in range(200):
        for target in ("sql", "json", "code"):
            counts.add(begun, target, is_error=target == "code" and number % 2 == 0, is_slow=False)
    for width, dark in ((1280, False), (400, True)):
        page = await console.open(place="aliases/guarded", width=width, dark=dark)
        verdict = page.get_by_role("group", name="Verdict")
        await expect(verdict).to_contain_text("code taken out for errors")
        await expect(verdict).to_contain_text("2 percentage points more are allowed")
        await expect(verdict).to_contain_text("The alias was changed by itself: without code.")
        await expect(page.get_by_label("Guard on errors").get_by_role("row")).to_have_count(3)
        await expect(page.get_by_label("Guard on slow answers").get_by_role("row", name="json")).to_contain_text(" to ")
        await expect(page.get_by_label("target", exact=True)).to_have_count(2)
        await assert_readable(page, "a verdict")
        await page.goto(f"{console.url}/console/#/overview")
        await expect(page.get_by_role("alert").filter(has_text="alias guarded")).to_contain_text("taken out for errors")
        await page.context.close()
    assert not console.troubles


async def test_a_verdict_that_changes_nothing_by_itself_is_carried_out_by_a_button(console: Console) -> None:
    begun = await weighted(console, "told", "sql", "json", metric="score")
    await hear(console, begun, [("sql", 1000, 900), ("json", 1000, 400)])
    page = await console.open(place="aliases/told")
    await expect(page.get_by_role("group", name="Verdict")).to_contain_text("The alias stayed as it was.")
    await page.get_by_role("button", name="Let it mean sql alone").click()
    await expect(page.get_by_label("target", exact=True)).to_have_count(1)
    await expect(page.get_by_label("target", exact=True)).to_have_value("sql")
    await page.context.close()


async def test_an_experiment_is_stopped_and_told_so(console: Console) -> None:
    await weighted(console, "halted", "sql", "json", metric="thumb")
    page = await console.open(place="aliases/halted")
    page.on("dialog", lambda dialog: dialog.accept())
    await page.get_by_role("button", name="Stop the experiment").click()
    await expect(page.get_by_role("group", name="Verdict")).to_contain_text("stopped before it was decided")
    await expect(page.get_by_label("Who did what").get_by_role("row", name="stopped the experiment")).to_be_visible()
    await page.context.close()


async def fill_candidate(page: Page, at: int, name: str, examples: Iterable[str]) -> None:
    await page.get_by_label("Candidate", exact=True).nth(at).fill(name)
    texts = [text.replace("\\", "\\\\").replace("\n", "\\n") for text in examples]
    await page.get_by_label(f"Examples of {name}, one a line").fill("\n".join(texts))


async def test_a_router_is_made_explains_a_prompt_and_is_changed(console: Console) -> None:
    page = await console.open(place="aliases")
    await page.get_by_label("Name", exact=True).fill("auto")
    await page.get_by_role("link", name="or choose by content").click()
    await fill_candidate(page, 0, "sql", SQL)
    await page.get_by_label("Candidate", exact=True).nth(1).fill("json")
    await expect(page.get_by_text("json: 3 examples or more are needed")).to_be_visible()
    await expect(page.get_by_role("button", name="Save the router")).to_be_disabled()
    await fill_candidate(page, 1, "json", JSON)
    await page.get_by_label("Examples that are for no candidate").fill("Tell me a story\nWrite a poem")
    await page.get_by_label("Threshold").fill("0.05")
    await page.get_by_role("button", name="Save the router").click()
    await expect(page.get_by_label("Candidates", exact=True).get_by_role("row", name="json")).to_contain_text("4")
    async with console.running_app.http(ADMIN_KEY) as admin:
        kept = (await admin.get(f"{PATH}/auto/examples")).json()["examples"]
        shown = (await admin.get(f"{PATH}/auto")).json()["router"]
    assert kept == {"sql": list(SQL), "json": list(JSON), "tiny": ["Tell me a story", "Write a poem"]}
    assert (shown["threshold"], shown["blend"], shown["otherwise"]) == (0.05, False, "tiny")
    await page.get_by_label("How would it decide about this prompt?").fill("How many customers are in the table?")
    await page.get_by_role("button", name="Explain").click()
    await expect(page.get_by_text("It goes to sql: its score is the highest")).to_be_visible()
    await expect(page.get_by_label("Examples most like it").get_by_role("row").nth(1)).to_contain_text("sql")
    for width in (400, 1280):
        await page.set_viewport_size({"width": width, "height": 900})
        await assert_readable(page, "a router")
    await page.get_by_text("Change the router").click()
    await page.get_by_role("button", name="Add a candidate").click()
    await fill_candidate(page, 2, "code", ["Write a function", "A Python loop, please", "Fix this class"])
    await page.get_by_label("two close scores give a blend").check()
    await assert_readable(page, "the form of a router")
    await page.get_by_role("button", name="Save the router").click()
    await expect(page.get_by_text("Two close scores give a blend of both.")).to_be_visible()
    async with console.running_app.http(ADMIN_KEY) as admin:
        assert (await admin.get(f"{PATH}/auto/examples")).json()["examples"]["sql"] == list(SQL), "as they were"
    await page.get_by_role("button", name="Roll back").click()
    await expect(page.get_by_label("Candidates", exact=True).get_by_role("row")).to_have_count(4)
    assert not console.troubles
    await page.context.close()


async def test_prompts_that_adapters_tell_apart_are_sent_and_a_refusal_is_shown(console: Console) -> None:
    """The base model of the tests cannot be read; that it is said so is what the page has to show."""
    page = await console.open(place="aliases/by-adapters?by=content")
    for at, name in enumerate(("sql", "json")):
        await page.get_by_label("Candidate", exact=True).nth(at).fill(name)
    await page.get_by_text("Let the adapters find examples").click()
    await page.get_by_label("Prompts without a target").fill(
        "How many users are there?\n\nTurn this into JSON: Ann, 34"
    )
    async with page.expect_request(lambda sent: sent.method == "PUT") as waiting:
        await page.get_by_role("button", name="Save the router").click()
    body = json.loads((await waiting.value).post_data or "")
    prompts = ["How many users are there?", "Turn this into JSON: Ann, 34"]
    by = {"examples": {}, "adapters": {"prompts": prompts}}
    assert body == {"router": {"candidates": ["sql", "json"], "by": by, "blend": False}, "revision": 0}
    await expect(page.get_by_role("alert")).to_contain_text("cannot be told apart by the adapters")
    await page.context.close()


async def test_a_key_that_only_reads_sees_verdicts_and_routers_and_no_button(console: Console) -> None:
    await weighted(console, "watched", "sql", "json", metric="thumb")
    await put(
        console, "chosen", {"router": {"candidates": ["sql", "json"], "by": {"examples": {"sql": SQL, "json": JSON}}}}
    )
    page = await console.open(console.reader_key, place="aliases/watched")
    await expect(page.get_by_role("group", name="Verdict")).to_contain_text("running")
    assert not CHANGING & await buttons(page)
    await page.goto(f"{console.url}/console/#/aliases/chosen")
    await expect(page.get_by_label("Candidates", exact=True)).to_be_visible()
    assert not CHANGING & await buttons(page)
    await page.context.close()


async def test_shares_are_moved_and_an_experiment_is_unfolded_without_a_mouse(console: Console) -> None:
    await weighted(console, "keyed", "sql", "json")
    page = await console.open(place="aliases/keyed")
    await page.get_by_label("weight of sql", exact=True).focus()
    for _ in range(2):
        await page.keyboard.press("ArrowRight")
    await page.get_by_role("button", name="Save").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("History").get_by_role("row").nth(1)).to_contain_text("75 % sql, 25 % json")
    await page.locator("summary", has_text="New experiment").focus()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.closest('label').textContent") != ""
    await expect(page.get_by_role("button", name="Begin the experiment")).to_be_visible()
    await page.context.close()


@pytest.mark.parametrize("width", [1280, 400])
async def test_the_form_of_an_experiment_is_readable(console: Console, width: int) -> None:
    await weighted(console, "formed", "sql", "json")
    page = await console.open(place="aliases/formed", width=width, dark=width == 400)
    await page.get_by_text("New experiment").click()
    await assert_readable(page, "the form of an experiment")
    await page.context.close()
