"""A server that keeps no version in memory: requests, lists, limits and numbers are those of one that keeps all."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from amalgam.api.inference import model_cards
from tests.support.keys import make_key, make_tenant
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, push, start_app, write_adapter

NAMES = ("acme.json", "acme.sql", "code", "json", "sql")
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture(scope="module")
async def beyond(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    folder = tmp_path_factory.mktemp("beyond")
    async with start_app(folder, blender=True, catalog_versions=0, blends_per_minute=10_000) as opened:
        async with opened.http(ADMIN_KEY) as admin:
            for seed, name in enumerate(NAMES):
                made = await push(admin, name, write_adapter(opened.sources / name, seed=seed))
                assert made.status_code == 201, made.text
            body = {"targets": [{"model": "sql", "weight": 1}, {"model": "json", "weight": 1}]}
            assert (await admin.put("/admin/v1/aliases/both", json=body)).status_code == 201
            one = {"targets": [{"model": "code", "weight": 1}]}
            assert (await admin.put("/admin/v1/aliases/one", json=one)).status_code == 201
            profile = {"system_prompt": "Be brief.", "active": True}
            assert (await admin.put("/admin/v1/adapters/code/versions/1/profile", json=profile)).status_code < 300
        assert not opened.services.catalog.snapshot.is_whole
        yield opened


@pytest.fixture
async def http(beyond: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with beyond.http(API_KEY) as session:
        yield session


async def chat(http: httpx.AsyncClient, model: str) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=CHAT | {"model": model})


@pytest.mark.parametrize(
    ("model", "answers"),
    [("sql", "sql@1"), ("tiny:json@1", "json@1"), ("one", "code@1"), ("tiny", "tiny"), ("acme.sql", "acme.sql@1")],
)
async def test_a_name_is_answered(http: httpx.AsyncClient, model: str, answers: str) -> None:
    answer = await chat(http, model)
    assert (answer.status_code, answer.json()["model"]) == (200, answers), answer.text


async def test_an_alias_of_several_and_a_blend_are_answered(http: httpx.AsyncClient) -> None:
    assert {(await chat(http, "both")).json()["model"] for _ in range(40)} == {"sql@1", "json@1"}
    first, again = await chat(http, "0.5*sql + 0.5*json"), await chat(http, "0.5*json + 0.5*sql")
    assert (first.status_code, again.status_code) == (200, 200), first.text
    assert first.json()["model"] == again.json()["model"]
    assert (await chat(http, first.json()["model"])).status_code == 200


async def test_what_is_not_there_is_not_found_with_near_names(http: httpx.AsyncClient) -> None:
    for model, near in (("sqll", "sql"), ("sql@9", "sql@1"), ("bth", "both"), ("acme/sql", "acme.sql")):
        assert near in assert_error(await chat(http, model), 404, "model_not_found")["message"]
    missing = await chat(http, "sql + jsn")
    assert 400 <= missing.status_code < 500
    assert "json" in missing.json()["error"]["message"]


async def test_a_profile_is_applied(beyond: RunningApp, http: httpx.AsyncClient) -> None:
    await chat(http, "code")
    _, body = beyond.engine.calls[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


async def test_lists_join_up_to_the_whole(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ["tiny", *sorted((*NAMES, "both", "one"))]
    page = (await http.get("/v1/models")).json()
    assert [card["id"] for card in page["data"]] == everything
    assert page["has_more"] is False
    assert page["data"][1]["root"] == "acme.json@1"
    monkeypatch.setattr(model_cards, "PART", 3)
    part = (await http.get("/v1/models", params={"after": "tiny"})).json()
    assert ([card["id"] for card in part["data"]], part["has_more"]) == (everything[1:4], True)
    for limit in (1, 2, 3, 7, 8, 9):
        seen: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = (await http.get("/v1/models", params={"limit": str(limit)} | after)).json()
            seen += [card["id"] for card in page["data"]]
            if not page["has_more"]:
                break
            after = {"after": seen[-1]}
        assert seen == everything, limit


async def test_a_key_sees_its_own_and_is_limited_by_it(beyond: RunningApp) -> None:
    await make_tenant(beyond, "acme", model_limits=[{"pattern": "acme.*", "limits": {"requests_per_minute": 1}}])
    key = await make_key(beyond, "client", "acme.*", "one")
    async with beyond.http(key) as http:
        listed = [card["id"] for card in (await http.get("/v1/models")).json()["data"]]
        assert listed == ["acme.json", "acme.sql", "one"]
        for hidden, unknown in (("sql", "sqk"), ("json@1", "json@2")):
            errors = [assert_error(await chat(http, model), 404, "model_not_found") for model in (hidden, unknown)]
            assert errors[0]["message"].replace(hidden, "_") == errors[1]["message"].replace(unknown, "_")
        assert (await chat(http, "acme.sql")).status_code == 200
        assert_error(await chat(http, "acme.json"), 429, "rate_limit_exceeded")
        assert (await chat(http, "one")).status_code == 200


async def test_what_a_list_showed_changes_with_the_registry(beyond: RunningApp, http: httpx.AsyncClient) -> None:
    async with beyond.http(ADMIN_KEY) as admin:
        await push(admin, "later", write_adapter(beyond.sources / "later", seed=50))
        assert "later" in [card["id"] for card in (await http.get("/v1/models")).json()["data"]]
        assert (await chat(http, "later")).status_code == 200
        assert (await admin.delete("/admin/v1/adapters/later")).status_code == 200
    assert "later" not in [card["id"] for card in (await http.get("/v1/models")).json()["data"]]
    assert_error(await chat(http, "later"), 404, "model_not_found")


async def test_numbers_count_what_is_registered(beyond: RunningApp) -> None:
    async with beyond.http(ADMIN_KEY) as admin:
        page = (await admin.get("/metrics")).text
    assert f'amalgam_adapter_versions{{tier="registered"}} {len(NAMES)}' in page


async def test_merges_plan_over_names_that_are_not_in_memory(beyond: RunningApp) -> None:
    async with beyond.http(ADMIN_KEY) as admin:
        recipe = {"inputs": [{"adapter": "sql"}, {"adapter": "json"}]}
        planned = await admin.post("/admin/v1/merges:plan?diagnostics=false", json={"name": "mix", "recipe": recipe})
        assert planned.status_code == 200, planned.text
        missing = {"inputs": [{"adapter": "sql"}, {"adapter": "nope"}]}
        refused = await admin.post("/admin/v1/merges:plan?diagnostics=false", json={"name": "mix", "recipe": missing})
        assert_error(refused, 404, "adapter_not_found")


async def test_the_openai_client_lists(beyond: RunningApp) -> None:
    async with (
        beyond.http() as http,
        openai.AsyncOpenAI(
            base_url="http://localhost/v1",
            api_key=API_KEY,
            http_client=http,
            max_retries=0,
            _strict_response_validation=True,
        ) as client,
    ):
        assert {"tiny", *NAMES} <= {model.id async for model in client.models.list()}
        assert (await client.models.retrieve("sql@1")).id == "sql@1"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nope")
