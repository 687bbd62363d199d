"""Serving profiles over HTTP: kept and switched by an administrator, and put on requests of every dialect."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.api.fields.by_endpoint import FIELDS
from amalgam.api.inference.request_models import bounds_schema
from amalgam.domain.serving_profile import SamplingDefaults
from amalgam.engine.protocol import CallProfile
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, push, start_app, write_adapter

PATH = "/admin/v1/adapters/sql/versions/1/profile"
TEMPLATE = "{% for message in messages %}<{{ message.role }}:{{ message.content }}>{% endfor %}"
SAMPLING = {"temperature": 0.25, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.5, "max_tokens": 9}
PROFILE = {"chat_template": TEMPLATE, "system_prompt": "Be brief.", "sampling": SAMPLING, "stop": ["END"]}
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def running_app(tmp_path: Path) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path) as opened, opened.http(ADMIN_KEY) as admin:
        for name in ("sql", "json"):
            made = await push(admin, name, write_adapter(opened.sources / name, seed=len(name)))
            assert made.status_code == 201, made.text
        yield opened


@pytest.fixture
async def admin(running_app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with running_app.http(ADMIN_KEY) as session:
        yield session


async def asked(running_app: RunningApp, http: httpx.AsyncClient, path: str, **body: Any) -> tuple[dict[str, Any], Any]:
    """What the engine was asked, and with which profile."""
    answer = await http.post(path, json={"model": "sql"} | body)
    assert answer.status_code == 200, answer.text
    return running_app.engine.calls[-1][1], running_app.engine.profiles[-1]


# --- keeping


async def test_a_profile_is_set_switched_and_taken_away_and_its_history_tells_it(admin: httpx.AsyncClient) -> None:
    assert_error(await admin.get(PATH), 404, "profile_not_found")
    before = (await admin.get("/admin/v1/adapters/sql/versions/1")).json()
    put = await admin.put(PATH, json=PROFILE)
    assert put.status_code == 200, put.text
    assert (put.json()["model"], put.json()["active"], put.json()["profile"]) == ("sql@1", True, PROFILE)
    off = (await admin.patch(PATH, json={"active": False})).json()
    assert (off["revision"], off["active"], off["digest"]) == (2, False, put.json()["digest"])
    gone = (await admin.delete(PATH)).json()
    assert (gone["profile"], gone["active"], gone["digest"]) == (None, False, None)
    history = (await admin.get(PATH)).json()["history"]
    assert [change["action"] for change in history] == ["delete", "off", "set"]
    assert history[-1]["profile"] == PROFILE
    for request in (admin.delete(PATH), admin.patch(PATH, json={"active": True})):
        assert_error(await request, 404, "profile_not_found")
    assert (await admin.get("/admin/v1/adapters/sql/versions/1")).json() == before, "it is no part of the digest"


async def test_the_lineage_shows_which_profile_holds(admin: httpx.AsyncClient) -> None:
    path = "/admin/v1/adapters/sql/versions/1/lineage"
    assert (await admin.get(path)).json()["nodes"][0]["profile"] is None
    digest = (await admin.put(PATH, json=PROFILE)).json()["digest"]
    told = (await admin.get(path)).json()["nodes"][0]["profile"]
    assert told == {"revision": 1, "digest": digest, "active": True, "origin": "api"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_value"),
        ({"active": False}, "invalid_value"),
        ({"active": True}, "invalid_value"),
        ({"system_prompt": ""}, "invalid_value"),
        ({"system_prompt": "a\x00b"}, "invalid_value"),
        ({"system_prompt": "x" * (1 << 17)}, "invalid_value"),
        ({"chat_template": "x" * ((1 << 17) + 1)}, "invalid_value"),
        ({"stop": ["a"] * 17}, "invalid_value"),
        ({"stop": [""]}, "invalid_value"),
        ({"sampling": {"temperature": 2.5}}, "invalid_value"),
        ({"sampling": {"temperature": True}}, "invalid_value"),
        ({"sampling": {"temperature": "0.5"}}, "invalid_value"),
        ({"sampling": {"n": 2}}, "invalid_value"),
        ({"prompt": "x"}, "invalid_value"),
        ({"chat_template": "{% if %}"}, "chat_template_invalid"),
        ({"chat_template": "{{ raise_exception('never') }}"}, "chat_template_invalid"),
        ({"chat_template": "{{ 9 ** (9 ** 9) }}"}, "chat_template_invalid"),
    ],
)
async def test_what_cannot_be_a_profile_is_refused_and_nothing_is_kept(
    running_app: RunningApp, admin: httpx.AsyncClient, body: dict[str, Any], code: str
) -> None:
    assert_error(await admin.put(PATH, json=body), 400, code)
    assert_error(await admin.get(PATH), 404, "profile_not_found")


async def test_only_administrators_come_near_one(running_app: RunningApp) -> None:
    async with running_app.http(API_KEY) as client:
        for method in ("GET", "PUT", "PATCH", "DELETE"):
            assert_error(await client.request(method, PATH, json={"active": True}), 403, "invalid_api_key")


# --- with the files


def brings(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


async def test_what_a_folder_brings_is_kept_and_off_until_it_is_switched_on(
    running_app: RunningApp, admin: httpx.AsyncClient
) -> None:
    folder = brings(
        write_adapter(running_app.sources / "own", seed=8),
        tokenizer_config={"chat_template": TEMPLATE},
        generation_config={"temperature": 0.5},
    )
    made = await push(admin, "own", folder)
    assert made.status_code == 201, made.text
    assert any("serving profile" in warning for warning in made.json()["warnings"])
    path = PATH.replace("sql", "own")
    kept = (await admin.get(path)).json()
    assert (kept["active"], kept["origin"], kept["history"][0]["action"]) == (False, "folder", "found")
    assert kept["profile"] == {"chat_template": TEMPLATE, "sampling": {"temperature": 0.5}}
    body, profile = await asked(running_app, admin, "/v1/chat/completions", model="own", messages=HI)
    assert ("temperature" in body, profile) == (False, None)
    await admin.patch(path, json={"active": True})
    body, profile = await asked(running_app, admin, "/v1/chat/completions", model="own", messages=HI)
    assert (body["temperature"], profile.template.text) == (0.5, TEMPLATE)


@pytest.mark.parametrize("road", ["upload", "source"])
async def test_an_upload_may_ask_for_what_it_brings(
    running_app: RunningApp, admin: httpx.AsyncClient, road: str
) -> None:
    folder = brings(write_adapter(running_app.sources / "own", seed=8), serving_profile=PROFILE)
    if road == "upload":
        made = await push(admin, "own", folder, use_profile="true")
    else:
        body = {"name": "own", "source": f"file://{folder}", "use_profile": True}
        made = await admin.post("/admin/v1/adapters", json=body)
    assert made.status_code == 201, made.text
    assert (await admin.get(PATH.replace("sql", "own"))).json()["active"] is True
    bare = write_adapter(running_app.sources / "bare", seed=9)
    assert_error(await push(admin, "bare", bare, use_profile="true"), 400, "invalid_value")


async def test_a_template_that_fails_is_refused_where_it_is_to_be_used_and_kept_where_not(
    running_app: RunningApp, admin: httpx.AsyncClient
) -> None:
    folder = brings(write_adapter(running_app.sources / "own", seed=8), tokenizer_config={"chat_template": "{% if %}"})
    assert_error(await push(admin, "own", folder, use_profile="true"), 400, "chat_template_invalid")
    assert_error(await admin.get("/admin/v1/adapters/own"), 404, "adapter_not_found")
    assert (await push(admin, "own", folder)).status_code == 201
    path = PATH.replace("sql", "own")
    assert_error(await admin.patch(path, json={"active": True}), 400, "chat_template_invalid")
    assert (await admin.get(path)).json()["active"] is False


# --- on requests


async def test_a_conversation_gets_what_it_does_not_say(running_app: RunningApp, admin: httpx.AsyncClient) -> None:
    await admin.put(PATH, json=PROFILE)
    body, profile = await asked(running_app, admin, "/v1/chat/completions", messages=HI)
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, *HI]
    assert body["stop"] == ["END"]
    given = SAMPLING | {"max_completion_tokens": 9}
    given.pop("max_tokens")
    assert given.items() <= body.items()
    assert profile.template.text == TEMPLATE
    said = {"temperature": 1, "stop": "mine", "max_tokens": 3, "messages": [{"role": "developer", "content": "d"}, *HI]}
    body, _ = await asked(running_app, admin, "/v1/chat/completions", **said)
    assert said.items() <= body.items()
    assert "max_completion_tokens" not in body
    body, _ = await asked(running_app, admin, "/v1/chat/completions", messages=HI, min_tokens=20)
    assert "max_completion_tokens" not in body, "longer answers are asked for"


async def test_the_likeliest_token_alone_is_asked_for_as_the_engine_takes_it(
    running_app: RunningApp, admin: httpx.AsyncClient
) -> None:
    await admin.put(PATH, json={"sampling": {"top_p": 0}})
    body, _ = await asked(running_app, admin, "/v1/chat/completions", messages=HI)
    assert 0 < body["top_p"] < 1e-6


async def test_every_dialect_of_conversations_gets_it_in_its_own_words(
    running_app: RunningApp, admin: httpx.AsyncClient
) -> None:
    await admin.put(PATH, json=PROFILE)
    body, profile = await asked(running_app, admin, "/v1/responses", input="hi")
    assert body["instructions"] == "Be brief."
    assert (body["max_output_tokens"], body["min_p"], body["stop"]) == (9, 0.1, ["END"])
    assert profile.template.text == TEMPLATE
    body, profile = await asked(running_app, admin, "/v1/messages", messages=HI, max_tokens=3)
    assert (body["system"], body["stop_sequences"], body["temperature"]) == ("Be brief.", ["END"], 0.25)
    assert body["max_tokens"] == 3
    assert "min_p" not in body
    assert profile.unsaid == {"min_p": 0.1, "repetition_penalty": 1.5}
    body, profile = await asked(running_app, admin, "/v1/messages/count_tokens", messages=HI)
    assert (body["system"], "temperature" in body, profile.template.text) == ("Be brief.", False, TEMPLATE)
    body, profile = await asked(running_app, admin, "/tokenize", messages=HI)
    assert (body["messages"][0]["role"], "temperature" in body, profile.template.text) == ("system", False, TEMPLATE)
    body, _ = await asked(running_app, admin, "/v1/responses", input=[{"role": "system", "content": "s"}, *HI])
    assert "instructions" not in body
    body, _ = await asked(running_app, admin, "/v1/messages", messages=HI, max_tokens=3, system="mine")
    assert body["system"] == "mine"


async def test_texts_other_versions_blends_and_the_base_get_none_of_it(
    running_app: RunningApp, admin: httpx.AsyncClient
) -> None:
    await admin.put(PATH, json=PROFILE)
    for path, said in (
        ("/v1/completions", {"prompt": "hi"}),
        ("/tokenize", {"prompt": "hi"}),
        ("/v1/chat/completions", {"messages": HI, "model": "json"}),
        ("/v1/chat/completions", {"messages": HI, "model": "tiny"}),
    ):
        body, profile = await asked(running_app, admin, path, **said)
        assert profile is None
        assert body.keys() - {"model", "cache_salt"} == said.keys() - {"model"}
    async with running_app.http(API_KEY) as client:
        refused = {"model": "sql", "messages": HI, "chat_template": "{{ 1 }}"}
        assert_error(await client.post("/v1/chat/completions", json=refused), 400, "invalid_value")


async def test_an_alias_follows_its_version(running_app: RunningApp, admin: httpx.AsyncClient) -> None:
    await admin.put(PATH, json=PROFILE)
    await admin.put("/admin/v1/aliases/support", json={"targets": [{"model": "sql"}]})
    _, profile = await asked(running_app, admin, "/v1/chat/completions", messages=HI, model="support")
    assert isinstance(profile, CallProfile)
    await admin.delete(PATH)
    _, profile = await asked(running_app, admin, "/v1/chat/completions", messages=HI, model="support")
    assert profile is None


def test_the_bounds_of_defaults_are_those_of_the_fields() -> None:
    for name, spec in SamplingDefaults.model_json_schema()["properties"].items():
        [kind] = [one for one in spec["anyOf"] if one["type"] != "null"]
        field = bounds_schema(FIELDS["chat_completions"][name])
        assert kind in [one for one in field.get("anyOf", [field]) if one.get("type") != "null"], name
