"""Aliases that choose by content over HTTP: fitted, asked in every dialect, explained, counted, and within scopes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from amalgam.__main__ import app as cli
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, served, start_app, write_adapter

PATH = "/admin/v1/aliases"
SQL = (
    "How many users are there in the table?", "Select every order of last week", "Count the rows of the table",
    "Which city has the most customers?", "SQL for the average salary by department", "List products without an order",
)  # fmt: skip
JSON = (
    "Extract name and age as JSON", "Turn the sentence into a JSON object", "Give me JSON with the keys a and b",
    "JSON of the following invoice, please", "Parse this record into JSON", "Return a JSON list of the names",
)  # fmt: skip
ASKED_SQL = "How many orders has each customer in the table?"
ASKED_JSON = "Turn this invoice into a JSON object: 3 lamps, 20 euros"
NEITHER = "Tell me a bedtime story about a fox."
ROUTER: dict[str, Any] = {
    "candidates": ["sql@1", "json"], "otherwise": "tiny", "by": {"examples": {"sql@1": SQL, "json": JSON}},
}  # fmt: skip


@pytest.fixture(scope="module")
async def running_app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    folder = tmp_path_factory.mktemp("routed")
    async with start_app(folder) as opened, opened.http(ADMIN_KEY) as session:
        for name, seed in (("sql", 1), ("sql", 2), ("json", 3)):
            assert (await push(session, name, write_adapter(folder / f"{name}{seed}", seed=seed))).status_code == 201
        yield opened


async def put(admin: httpx.AsyncClient, name: str, **changes: Any) -> httpx.Response:
    answer = await admin.put(f"{PATH}/{name}", json={"router": ROUTER | changes})
    assert answer.status_code in (200, 201), answer.text
    return answer


@pytest.fixture
async def auto(admin: httpx.AsyncClient) -> str:
    await put(admin, "auto")
    return "auto"


def chat(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def routed(client: httpx.AsyncClient, path: str, **body: Any) -> tuple[str, dict[str, Any]]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-amalgam-adapter"], json.loads(answer.headers["x-amalgam-route"])


async def test_each_dialect_is_routed_by_what_the_user_says(client: httpx.AsyncClient, auto: str) -> None:
    asked: dict[str, Callable[[str], dict[str, Any]]] = {
        "/v1/chat/completions": lambda text: {"messages": chat(text)},
        "/v1/completions": lambda text: {"prompt": text},
        "/v1/responses": lambda text: {"input": text},
        "/v1/messages": lambda text: {"messages": chat(text), "max_tokens": 8},
    }
    for path, body in asked.items():
        for text, target in ((ASKED_SQL, "sql@1"), (ASKED_JSON, "json@1"), (NEITHER, "tiny")):
            adapter, route = await routed(client, path, model=auto, **body(text))
            assert (path, adapter) == (path, target), route
            assert set(route["scores"]) == {"sql@1", "json"}


async def test_the_answer_names_what_served_and_the_header_says_why(client: httpx.AsyncClient, auto: str) -> None:
    answer = await client.post("/v1/chat/completions", json={"model": auto, "messages": chat(ASKED_JSON)})
    route = json.loads(answer.headers["x-amalgam-route"])
    assert answer.json()["model"] == "json@1"
    assert (route["model"], route["reason"]) == ("json", "score")
    assert list(route["scores"]) == ["json", "sql@1"]
    assert route["scores"]["json"] > route["scores"]["sql@1"]
    assert (await client.post("/v1/completions", json={"model": "json", "prompt": "x"})).headers.get(
        "x-amalgam-route"
    ) is None


async def test_a_prompt_of_token_ids_goes_to_the_rest(client: httpx.AsyncClient, auto: str) -> None:
    assert await routed(client, "/v1/completions", model=auto, prompt=[1, 2, 3]) == (
        "tiny", {"model": "tiny", "reason": "no_text", "scores": {}},
    )  # fmt: skip


async def test_an_explanation_agrees_with_the_request(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, auto: str
) -> None:
    found = (await admin.post(f"{PATH}/{auto}:explain", json={"prompt": SQL[0]})).json()
    assert (found["model"], found["reason"]) == ("sql@1", "score")
    assert found["nearest"][0] == {"candidate": "sql@1", "text": SQL[0], "likeness": 1.0}
    assert found["scores"][0]["score"] >= found["threshold"]
    _, route = await routed(client, "/v1/completions", model=auto, prompt=SQL[0])
    assert route["scores"]["sql@1"] == round(found["scores"][0]["score"], 3)
    of_chat = await admin.post(f"{PATH}/{auto}:explain", json={"messages": chat(NEITHER)})
    assert (of_chat.json()["model"], of_chat.json()["reason"]) == ("tiny", "below_threshold")
    assert_error(await admin.post(f"{PATH}/{auto}:explain", json={}), 400, "invalid_value")
    assert_error(await admin.post(f"{PATH}/none:explain", json={"prompt": "x"}), 404, "alias_not_found")
    await admin.put(f"{PATH}/weighted", json={"targets": [{"model": "sql"}]})
    assert_error(await admin.post(f"{PATH}/weighted:explain", json={"prompt": "x"}), 400, "alias_not_routed")


async def test_it_is_shown_kept_and_brought_back(admin: httpx.AsyncClient, client: httpx.AsyncClient) -> None:
    made = await put(admin, "life")
    assert made.status_code == 201
    shown = made.json()
    assert [(t["model"], t["share"]) for t in shown["targets"]] == [("sql@1", None), ("json", None), ("tiny", None)]
    assert (shown["router"]["candidates"], shown["router"]["otherwise"]) == (["sql@1", "json"], "tiny")
    assert shown["router"]["examples"] == [6, 6]
    assert 0 < shown["router"]["threshold"] < 1
    assert (await put(admin, "life")).json() == shown
    stricter = (await put(admin, "life", by=ROUTER["by"] | {"threshold": 1.0})).json()
    assert (stricter["revision"], stricter["router"]["threshold"]) == (2, 1.0)
    assert (await routed(client, "/v1/completions", model="life", prompt=ASKED_SQL))[0] == "tiny"
    await admin.put(f"{PATH}/life", json={"targets": [{"model": "json"}]})
    assert (await client.post("/v1/completions", json={"model": "life", "prompt": ASKED_SQL})).headers[
        "x-amalgam-adapter"
    ] == "json@1"
    back = (await admin.post(f"{PATH}/life:rollback", json={"to_revision": 1})).json()
    assert back["router"] == shown["router"]
    assert (await routed(client, "/v1/completions", model="life", prompt=ASKED_SQL))[0] == "sql@1"
    history = (await admin.get(f"{PATH}/life/history")).json()["data"]
    assert [bool(change["router"]) for change in history] == [True, False, True, True]
    (card,) = [one for one in (await client.get("/v1/models")).json()["data"] if one["id"] == "life"]
    assert card["root"] == "by content: sql@1, json; else tiny"
    assert_error(await admin.delete("/admin/v1/adapters/json"), 409, "alias_target_in_use")


async def test_two_close_scores_give_a_blend_where_it_is_asked_for(
    admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    close = ROUTER["by"] | {"threshold": 0.0, "margin": 1.0}
    await put(admin, "mixed", blend=True, by=close)
    found = (await admin.post(f"{PATH}/mixed:explain", json={"prompt": ASKED_SQL})).json()
    assert (found["model"], found["reason"]) == ("0.5*sql@1 + 0.5*json", "blend")
    await put(admin, "close", by=close)
    assert (await routed(client, "/v1/completions", model="close", prompt=ASKED_SQL))[1]["reason"] == "within_margin"


@pytest.mark.parametrize(("changes", "status", "code", "param"), [
    ({"candidates": []}, 400, "invalid_value", "router.candidates"),
    ({"candidates": ["sql@1", "sql@1"]}, 400, "invalid_value", "router.candidates.1"),
    ({"candidates": ["sql@1", "nothing"], "by": {"examples": {"sql@1": SQL, "nothing": JSON}}}, 404, "model_not_found",
     "router.candidates.1"),
    ({"otherwise": "nothing"}, 404, "model_not_found", "router.otherwise"),
    ({"candidates": ["sql@1"], "otherwise": "sql@1", "by": {"examples": {"sql@1": SQL}}}, 400, "invalid_value",
     "router.otherwise"),
    ({"by": {"examples": {"sql@1": SQL}}}, 400, "invalid_value", "router.by.examples"),
    ({"by": {"examples": {"sql@1": SQL, "json": ["a", "a", "a"]}}}, 400, "invalid_value", "router.by.examples"),
    ({"by": {"examples": {"sql@1": SQL, "json": JSON, "sql@2": SQL}}}, 400, "invalid_value", "router.by.examples"),
    ({"by": {"examples": {"sql@1": SQL, "json": JSON}, "threshold": 2}}, 400, "invalid_value",
     "router.by.threshold"),
    ({"candidates": ["sql@1", "tiny"], "blend": True, "by": {"examples": {"sql@1": SQL, "tiny": JSON}}}, 400,
     "invalid_value", "router.candidates.1"),
    ({"sticky": True}, 400, "invalid_value", "router.sticky"),
])  # fmt: skip
async def test_what_cannot_be_fitted_is_refused_before(
    admin: httpx.AsyncClient, changes: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = await admin.put(f"{PATH}/refused", json={"router": ROUTER | changes})
    assert assert_error(answer, status, code)["param"] == param
    assert_error(await admin.get(f"{PATH}/refused"), 404, "alias_not_found")


async def test_targets_and_a_router_exclude_each_other(admin: httpx.AsyncClient) -> None:
    for body in ({}, {"router": ROUTER, "targets": [{"model": "sql"}]}):
        assert_error(await admin.put(f"{PATH}/refused", json=body), 400, "invalid_value")


async def test_an_alias_that_routes_is_no_input_of_a_blend(client: httpx.AsyncClient, auto: str) -> None:
    answer = await client.post("/v1/completions", json={"model": f"{auto} + sql", "prompt": "x"})
    assert_error(answer, 400, "ambiguous_alias")


async def test_its_choices_are_counted(running_app: RunningApp, client: httpx.AsyncClient, auto: str) -> None:
    line = 'amalgam_alias_routes_total{alias="auto",adapter="json@1",reason="score"}'

    async def count() -> float:
        text = (await client.get("/metrics")).text
        return next((float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(line)), 0.0)

    before = await count()
    await routed(client, "/v1/completions", model=auto, prompt=ASKED_JSON)
    assert await count() == before + 1


async def evaluation(admin: httpx.AsyncClient, *texts: str) -> str:
    """Questions of the tasks ``sql`` and ``json`` in turn."""
    items = [
        {"task": ("sql", "json")[place % 2], "messages": chat(text), "reference": "x"}
        for place, text in enumerate(texts)
    ]
    body = {"targets": ["tiny"], "metrics": ["exact_match"], "items": items}
    answer = await admin.post("/admin/v1/evaluations", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def test_questions_of_an_evaluation_are_examples(admin: httpx.AsyncClient, client: httpx.AsyncClient) -> None:
    given = await evaluation(admin, *(text for pair in zip(SQL, JSON, strict=True) for text in pair))
    by = {"evaluations": {"sql@1": {"evaluation": given, "task": "sql"}, "json": {"evaluation": given, "task": "json"}}}
    made = (await put(admin, "evaluated", by=by)).json()["router"]
    assert made["examples"] == [6, 6]
    await put(admin, "written-out")
    for text in (ASKED_SQL, ASKED_JSON, NEITHER):
        routes = [
            await routed(client, "/v1/completions", model=name, prompt=text) for name in ("evaluated", "written-out")
        ]
        assert routes[0] == routes[1], "the same examples make the same router"
    both = await put(
        admin,
        "evaluated",
        by={"examples": {"sql@1": SQL[:2], "json": JSON}} | {"evaluations": {"sql@1": by["evaluations"]["sql@1"]}},
    )
    assert both.json()["router"]["examples"] == [6, 6], "none counts twice"


async def test_evaluations_that_give_no_examples_are_refused(admin: httpx.AsyncClient) -> None:
    given = await evaluation(admin, *SQL)

    async def asked(**source: Any) -> httpx.Response:
        by = {"examples": {"json": JSON}, "evaluations": {"sql@1": source}}
        return await admin.put(f"{PATH}/refused", json={"router": ROUTER | {"by": by}})

    error = assert_error(await asked(evaluation=given, task="none"), 400, "invalid_value")
    assert error["param"] == "router.by.evaluations.sql@1"
    assert_error(await asked(evaluation="eval-none"), 404, "evaluation_not_found")
    error = assert_error(await admin.put(f"{PATH}/refused", json={"router": ROUTER | {"by": {}}}), 400, "invalid_value")
    assert error["param"] == "router.by.examples"


async def test_the_command_line_takes_a_file(running_app: RunningApp, admin: httpx.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "router.json").write_text(json.dumps(ROUTER))
    (tmp_path / "broken.json").write_text("{")
    async with served(running_app.app) as url:
        reach = {"AMALGAM_URL": url, "AMALGAM_ADMIN_KEY": ADMIN_KEY, "COLUMNS": "200", "NO_COLOR": "1"}

        async def amalgam(*arguments: str) -> tuple[int, str]:
            done = await asyncio.to_thread(lambda: CliRunner().invoke(cli, ["aliases", *arguments], env=reach))
            return done.exit_code, done.output

        code, text = await amalgam("route", "typed", str(tmp_path / "router.json"))
        assert (code, text) == (0, "typed -> by content: sql@1, json; else tiny  (revision 1)\n")
        assert "by content" in (await amalgam("ls", "typed"))[1]
        code, text = await amalgam("explain", "typed", ASKED_SQL)
        assert (code, json.loads(text)["model"]) == (0, "sql@1")
        code, text = await amalgam("route", "typed", str(tmp_path / "broken.json"))
        assert (code, "is no JSON" in text) == (1, True)


async def test_a_key_is_told_of_what_is_in_its_scope_alone(
    running_app: RunningApp, admin: httpx.AsyncClient, auto: str
) -> None:
    made = await admin.post("/admin/v1/tenants", json={"id": "acme"})
    assert made.status_code == 201, made.text
    body = {"tenant": "acme", "role": "publisher", "models": ["auto", "json"]}
    key = (await admin.post("/admin/v1/keys", json=body)).json()["key"]
    async with running_app.http(key) as acme:
        answer = await acme.post("/v1/completions", json={"model": auto, "prompt": ASKED_SQL})
        assert (answer.status_code, answer.headers["x-amalgam-adapter"]) == (200, "auto")
        route = json.loads(answer.headers["x-amalgam-route"])
        assert (route["model"], set(route["scores"])) == ("(not in scope)", {"json"})
        assert "sql@1" not in answer.text
        explained = await acme.post(f"{PATH}/{auto}:explain", json={"prompt": ASKED_SQL})
        assert explained.status_code == 200, explained.text
        assert {one["candidate"] for one in explained.json()["nearest"]} == {"json"}
        assert set((await acme.get(f"{PATH}/{auto}/examples")).json()["examples"]) == {"json"}
        for told in (explained, *[await acme.get(f"{PATH}/{auto}{end}") for end in ("", "/history", "/examples")]):
            assert "sql" not in told.text
            assert "tiny" not in told.text
        assert_error(await acme.put(f"{PATH}/auto", json={"router": ROUTER}), 404, "model_not_found")


async def test_what_it_was_fitted_with_is_given_back_and_can_be_set_again(admin: httpx.AsyncClient) -> None:
    made = await put(admin, "given")
    found = (await admin.get(f"{PATH}/given/examples")).json()
    assert found == {"examples": {"sql@1": list(SQL), "json": list(JSON)}}
    again = await put(admin, "given", by=found)
    assert (again.status_code, again.json()["router"]) == (200, made.json()["router"])
    assert_error(await admin.get(f"{PATH}/none/examples"), 404, "alias_not_found")
    await admin.put(f"{PATH}/given-by-weight", json={"targets": [{"model": "sql"}]})
    assert_error(await admin.get(f"{PATH}/given-by-weight/examples"), 400, "alias_not_routed")
