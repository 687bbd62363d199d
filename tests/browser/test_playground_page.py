"""The playground in a browser: what is sent, what of two answers differs, and the link that opens it again."""

import json

from playwright.async_api import expect

from tests.browser.chromium import PATIENCE_MS
from tests.browser.conftest import Console
from tests.support.running_app import API_KEY

expect.set_options(timeout=PATIENCE_MS)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}


async def test_everything_of_the_form_is_sent_and_comes_back_by_the_link(console: Console) -> None:
    page = await console.open(API_KEY, place="playground?models=sql|json")
    await page.get_by_label("System prompt").fill("be short")
    await page.get_by_label("Prompt", exact=True).fill("hello")
    await page.get_by_label("top_p").fill("0.5")
    await page.get_by_label("stop, with | between").fill("a|b")
    await page.get_by_text("Tools, JSON schema and other fields").click()
    await page.get_by_label("JSON schema of the answer").fill("{")
    await page.get_by_role("button", name="Ask").click()
    await expect(page.get_by_role("alert")).to_contain_text("The fields of the JSON schema are no JSON")
    await page.get_by_label("JSON schema of the answer").fill(json.dumps(SCHEMA))
    console.running_app.engine.calls.clear()
    await page.get_by_role("button", name="Ask").click()
    await expect(page.locator(".column .first")).to_have_count(2)
    sent = [body for _, body in console.running_app.engine.calls]
    assert sorted(body["model"] for body in sent) == ["json@1", "sql@1"]
    assert sent[0]["messages"][0] == {"role": "system", "content": "be short"}
    assert (sent[0]["top_p"], sent[0]["stop"]) == (0.5, ["a", "b"])
    assert sent[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.get_by_role("button", name="copy link to this").click()
    link = await page.evaluate("navigator.clipboard.readText()")
    await page.goto("about:blank")
    await page.goto(link)
    await expect(page.get_by_label("stop, with | between")).to_have_value("a|b")
    await expect(page.get_by_label("JSON schema of the answer")).to_have_value(json.dumps(SCHEMA))
    assert not console.troubles
    await page.context.close()


async def test_tools_that_may_be_called_are_sent(console: Console) -> None:
    page = await console.open(API_KEY, place="playground?models=sql")
    await page.get_by_label("Prompt", exact=True).fill("hello")
    await page.get_by_text("Tools, JSON schema and other fields").click()
    await page.get_by_label("Tools, a JSON list").fill(json.dumps(TOOLS))
    await page.get_by_label("tool_choice").select_option("none")
    console.running_app.engine.calls.clear()
    await page.get_by_role("button", name="Ask").click()
    await expect(page.locator(".column .first")).to_have_count(1)
    body = console.running_app.engine.calls[0][1]
    assert (body["tools"][0]["function"]["name"], body["tool_choice"]) == ("weather", "none")
    await page.context.close()


async def test_the_tokens_that_the_other_answer_does_not_have_are_marked(console: Console) -> None:
    page = await console.open(API_KEY, place="playground?models=sql")
    found = await page.evaluate(
        """async () => {
            const { differing } = await import("./js/difference.js");
            const of = (one, other) => [...differing(one.split(" "), other.split(" "))];
            const pairs = [["a b c", "a b c"], ["a x c", "a b c"], ["a c d", "a b c d"], ["x a b", "a b"], ["a", "b"]];
            return pairs.map(([one, other]) => of(one, other));
        }"""
    )
    assert found == [[], [1], [], [0], [0]]
    await page.context.close()
