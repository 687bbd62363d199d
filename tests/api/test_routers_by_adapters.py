"""Routers whose examples the adapters find among prompts: asked of the worker, once, when the alias is set."""

import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from amalgam.routing.row_labels import MEASURED_BY
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter

PATH = "/admin/v1/aliases"
WORKER = """
import json, sys
print(json.dumps({"type": "named", "name": "reader"}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["type"] != "energies":
        continue
    prompts, adapters = asked["prompts"], asked["adapters"]
    if "refuse" in prompts:
        error = {"code": "prompts_unread", "status": 422, "message": " ".join(adapters) + f" {len(prompts)}",
                 "param": "router.by.adapters"}
        print(json.dumps({"type": "refused", "id": asked["id"], "error": error}), flush=True)
        continue
    energies = [[3.0 if "table" in text else 1.0, 3.0 if "JSON" in text else 1.0][: len(adapters)] for text in prompts]
    print(json.dumps({"type": "energies_found", "id": asked["id"], "energies": energies}), flush=True)
"""
"""Tables are the first adapter's, JSON is the second's, and what has both is for two."""
TABLES = [f"How many {thing} are in the table?" for thing in ("users", "orders", "cities", "films", "flights")]
JSON = [f"Turn the {thing} into JSON, please" for thing in ("invoice", "letter", "ticket", "menu")]
BOTH = ["Turn the table into JSON", "A table as JSON", "JSON of a table"]
NEITHER = ["Tell me a story about a fox."]


@pytest.fixture(scope="module")
async def running_app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    folder = tmp_path_factory.mktemp("by_adapters")
    command = (sys.executable, "-c", WORKER)
    async with start_app(folder, worker=command) as opened, opened.http(ADMIN_KEY) as session:
        for name, seed in (("sql", 1), ("sql", 2), ("json", 3)):
            assert (await push(session, name, write_adapter(folder / f"{name}{seed}", seed=seed))).status_code == 201
        yield opened


async def put(admin: httpx.AsyncClient, prompts: list[str], **changes: Any) -> httpx.Response:
    router = {"candidates": ["sql", "json"], "by": {"adapters": {"prompts": prompts}}}
    return await admin.put(f"{PATH}/auto", json={"router": router | changes})


async def test_prompts_become_examples_of_the_adapter_that_knows_them(
    admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    made = await put(admin, [*TABLES, *NEITHER, *JSON, *BOTH, TABLES[0]])
    assert made.status_code in (200, 201), made.text
    assert made.json()["router"]["examples"] == [len(TABLES), len(JSON)]
    for text, target in (("How many actors are in the table?", "sql@2"), ("Turn the recipe into JSON", "json@1")):
        answer = await client.post("/v1/completions", json={"model": "auto", "prompt": text})
        assert (answer.status_code, answer.headers["x-amalgam-adapter"]) == (200, target), answer.text
        assert json.loads(answer.headers["x-amalgam-route"])["reason"] == "score"
    explained = (await admin.post(f"{PATH}/auto:explain", json={"prompt": TABLES[1]})).json()
    assert explained["nearest"][0] == {"candidate": "sql", "text": TABLES[1], "likeness": 1.0}


async def test_what_the_adapters_find_is_added_to_what_is_written_out(admin: httpx.AsyncClient) -> None:
    by = {"examples": {"sql": [TABLES[0], "Count the rows"]}, "adapters": {"prompts": [*TABLES, *JSON]}}
    made = await put(admin, [], by=by)
    assert made.json()["router"]["examples"] == [len(TABLES) + 1, len(JSON)], "none counts twice"


async def test_the_worker_is_asked_about_exact_versions_and_prompts_of_no_task(admin: httpx.AsyncClient) -> None:
    error = assert_error(await put(admin, ["refuse", "refuse", "other"]), 422, "prompts_unread")
    assert error["message"].startswith(f"sql@2 json@1 {len(MEASURED_BY) + 2}")
    assert error["param"] == "router.by.adapters"


@pytest.mark.parametrize(("candidates", "status", "code", "param"), [
    (["sql", "0.5*sql + 0.5*json"], 400, "invalid_value", "router.candidates.1"),
    (["tiny", "json"], 400, "invalid_value", "router.candidates.0"),
    (["sql", "nothing"], 404, "model_not_found", "router.candidates.1"),
    (["sql", "sql@2"], 400, "invalid_value", "router.candidates.1"),
    (["sql", "pointer"], 400, "invalid_value", "router.candidates.1"),
])  # fmt: skip
async def test_candidates_without_files_of_their_own_are_refused(
    admin: httpx.AsyncClient, candidates: list[str], status: int, code: str, param: str
) -> None:
    await admin.put(f"{PATH}/pointer", json={"targets": [{"model": "json"}]})
    answer = await put(admin, [*TABLES, *JSON], candidates=candidates)
    assert assert_error(answer, status, code)["param"] == param


@pytest.mark.parametrize(("prompts", "param"), [
    ([], "router.by.adapters.prompts"),
    ([" "], "router.by.adapters.prompts.0"),
    (["x"] * 501, "router.by.adapters.prompts"),
    ([*TABLES, JSON[0], *BOTH], "router.by.examples"),
])  # fmt: skip
async def test_too_few_prompts_and_too_many_are_refused(
    admin: httpx.AsyncClient, prompts: list[str], param: str
) -> None:
    assert assert_error(await put(admin, prompts), 400, "invalid_value")["param"] == param


async def test_a_key_asks_about_adapters_in_its_scope_alone(running_app: RunningApp, admin: httpx.AsyncClient) -> None:
    assert (await admin.post("/admin/v1/tenants", json={"id": "acme"})).status_code == 201
    body = {"tenant": "acme", "role": "publisher", "models": ["auto", "json"]}
    key = (await admin.post("/admin/v1/keys", json=body)).json()["key"]
    async with running_app.http(key) as acme:
        assert assert_error(await put(acme, ["refuse"]), 404, "model_not_found")["param"] == "router.candidates.0"
