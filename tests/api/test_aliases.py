"""Aliases over HTTP: set, drawn from, counted, changed under load, guarded, and in the way of deletions."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from amalgam.__main__ import app as cli
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, served, start_app, write_adapter

PATH = "/admin/v1/aliases"
FLIPS = 100
"""A thousand are made on the real engine."""
CHAT: Any = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
async def running_app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    folder = tmp_path_factory.mktemp("aliases")
    async with start_app(folder) as opened, opened.http(ADMIN_KEY) as session:
        for name, seed in (("sql", 1), ("sql", 2), ("json", 3)):
            assert (await push(session, name, write_adapter(folder / f"{name}{seed}", seed=seed))).status_code == 201
        yield opened


def to(*models: str, **more: int) -> dict[str, Any]:
    return {"targets": [{"model": model} for model in models], **more}


async def put(admin: httpx.AsyncClient, name: str, *models: str, **more: int) -> httpx.Response:
    answer = await admin.put(f"{PATH}/{name}", json=to(*models, **more))
    assert answer.status_code in (200, 201), answer.text
    return answer


async def asked(client: httpx.AsyncClient, model: str, path: str = "/v1/chat/completions", **more: Any) -> str:
    prompt = {"prompt": "hi"} if path == "/v1/completions" else CHAT
    answer = await client.post(path, json=prompt | {"model": model} | more)
    assert answer.status_code == 200, answer.text
    served_as: str = answer.json()["model"]
    assert answer.headers["x-amalgam-adapter"] == served_as
    return served_as


async def test_its_life(admin: httpx.AsyncClient) -> None:
    body = {"targets": [{"model": "sql@1", "weight": 90}, {"model": " tiny:sql ", "weight": 10}]}
    made = await admin.put(f"{PATH}/life", json=body)
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    assert made.json()["targets"] == [
        {"model": "sql@1", "weight": 90, "share": 0.9}, {"model": "sql", "weight": 10, "share": 0.1},
    ]  # fmt: skip
    shown = await admin.get(f"{PATH}/life")
    assert (shown.json(), shown.headers["etag"]) == (made.json(), '"1"')
    changed = await put(admin, "life", "json", "tiny")
    assert (changed.status_code, changed.json()["revision"]) == (200, 2)
    assert (await put(admin, "life", "json", "tiny")).json() == changed.json()
    back = await admin.post(f"{PATH}/life:rollback")
    assert (back.json()["revision"], back.headers["etag"]) == (3, '"3"')
    assert back.json()["targets"] == made.json()["targets"]
    assert_error(await admin.post(f"{PATH}/life:rollback"), 409, "nothing_to_roll_back")
    back = await admin.post(f"{PATH}/life:rollback", json={"to_revision": 2, "revision": 3})
    assert back.json()["targets"] == changed.json()["targets"]
    page = (await admin.get(PATH, params={"search": "LIF"})).json()
    assert (page["data"], page["next_cursor"]) == ([back.json()], None)
    assert (await admin.delete(f"{PATH}/life")).json() == {"deleted": "life"}
    history = (await admin.get(f"{PATH}/life/history", params={"limit": 3})).json()
    assert [(c["revision"], c["action"], c["restores"]) for c in history["data"]] == [
        (5, "delete", None), (4, "rollback", 2), (3, "rollback", 1),
    ]  # fmt: skip
    assert history["next_cursor"] == 3
    for answer in (await admin.get(f"{PATH}/life"), await admin.delete(f"{PATH}/life")):
        assert_error(answer, 404, "alias_not_found")
    assert_error(await admin.get(f"{PATH}/never/history"), 404, "alias_not_found")
    assert_error(await admin.post("/v1/chat/completions", json=CHAT | {"model": "life"}), 404, "model_not_found")


async def test_a_change_for_another_state_is_refused(admin: httpx.AsyncClient) -> None:
    await put(admin, "cas", "sql@1", revision=0)
    for answer in (
        await admin.put(f"{PATH}/cas", json=to("sql@2", revision=0)),
        await admin.put(f"{PATH}/cas", json=to("sql@2", revision=2)),
        await admin.post(f"{PATH}/cas:rollback", json={"revision": 2}),
    ):
        error = assert_error(answer, 409, "stale_revision")
        assert error["param"] == "revision"
        assert "stands at revision 1" in error["message"]
        assert answer.headers["x-should-retry"] == "false"
    for header in ({"If-Match": '"2"'}, {"If-None-Match": "*"}):
        assert_error(await admin.put(f"{PATH}/cas", json=to("sql@2"), headers=header), 412, "stale_revision")
    assert_error(await admin.delete(f"{PATH}/cas", headers={"If-Match": '"2"'}), 412, "stale_revision")
    assert_error(await admin.post(f"{PATH}/cas:rollback", headers={"If-Match": '"2"'}), 412, "stale_revision")
    for header in ({"If-Match": "*"}, {"If-Match": "2"}, {"If-Match": 'W/"2"'}, {"If-Match": '"1", "2"'},
                   {"If-None-Match": '"2"'}, {"If-Match": '"1"', "If-None-Match": "*"}):  # fmt: skip
        assert_error(await admin.put(f"{PATH}/cas", json=to("sql@2"), headers=header), 400, "invalid_value")
    assert (await admin.get(f"{PATH}/cas")).json()["revision"] == 1
    changed = await admin.put(f"{PATH}/cas", json=to("sql@2", revision=1), headers={"If-Match": '"1"'})
    assert changed.json()["revision"] == 2
    assert (await admin.delete(f"{PATH}/cas", headers={"If-Match": '"2"'})).status_code == 200


async def test_of_many_changes_for_one_state_one_wins(admin: httpx.AsyncClient) -> None:
    await put(admin, "race", "tiny")
    answers = await asyncio.gather(
        *(
            admin.put(f"{PATH}/race", json={"targets": [{"model": "sql", "weight": w + 1}], "revision": 1})
            for w in range(16)
        )
    )
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 15}
    winner = next(answer for answer in answers if answer.status_code == 200)
    assert (await admin.get(f"{PATH}/race")).json() == winner.json()


@pytest.mark.parametrize(("body", "status", "code", "param"), [
    (to(), 400, "invalid_value", "targets"),
    (to(*["sql"] * 17), 400, "invalid_value", "targets"),
    (to("sql", "json", "tiny:sql"), 400, "invalid_value", "targets.2.model"),
    (to("  "), 400, "invalid_value", "targets.0.model"),
    (to("sq\x00l"), 400, "invalid_value", "targets.0.model"),
    (to("x" * 1025), 400, "invalid_value", "targets.0.model"),
    *(({"targets": [{"model": "sql", "weight": weight}]}, 400, "invalid_value", "targets.0.weight")
      for weight in (0, -1, 0.5, 1.0, "1", True, 1_000_001)),
    ({"targets": [{"model": "sql"}], "more": 1}, 400, "invalid_value", "more"),
    (to("sql", revision=-1), 400, "invalid_value", "revision"),
    (to("json", "sqll"), 404, "model_not_found", "targets.1.model"),
    (to("sql@3"), 404, "model_not_found", "targets.0.model"),
    (to("sql + 0.5*sqll"), 404, "model_not_found", "targets.0.model"),
    (to("there"), 400, "alias_of_alias", "targets.0.model"),
    (to("tiny:there"), 400, "alias_of_alias", "targets.0.model"),
])  # fmt: skip
async def test_what_it_cannot_mean(
    body: dict[str, Any], status: int, code: str, param: str, admin: httpx.AsyncClient
) -> None:
    await put(admin, "there", "sql")
    error = assert_error(await admin.put(f"{PATH}/refused", json=body), status, code)
    assert error["param"] == param
    assert_error(await admin.get(f"{PATH}/refused"), 404, "alias_not_found")


async def test_near_names_are_suggested_among_aliases_too(admin: httpx.AsyncClient) -> None:
    await put(admin, "support-prod", "sql")
    error = assert_error(await admin.put(f"{PATH}/x", json=to("jsn")), 404, "model_not_found")
    assert "Did you mean: json" in error["message"]
    error = assert_error(
        await admin.post("/v1/chat/completions", json=CHAT | {"model": "suport-prod"}), 404, "model_not_found"
    )
    assert "support-prod" in error["message"]


async def test_one_space_of_names(running_app: RunningApp, admin: httpx.AsyncClient, tmp_path: Path) -> None:
    await put(admin, "named", "sql")
    folder = write_adapter(tmp_path / "a", seed=9)
    assert_error(await push(admin, "named", folder), 409, "name_taken")
    merge = {"name": "named", "expression": "sql + 0.5*json"}
    assert_error(await admin.post("/admin/v1/merges", json=merge), 409, "name_taken")
    body = {"lora_name": "named", "lora_path": str(folder), "load_inplace": True}
    assert_error(await admin.post("/v1/load_lora_adapter", json=body), 409, "name_taken")
    assert_error(await admin.put(f"{PATH}/sql", json=to("json")), 409, "name_taken")
    assert_error(await admin.put(f"{PATH}/tiny", json=to("json")), 409, "name_reserved")
    assert_error(await admin.put(f"{PATH}/a+b", json=to("json")), 400, "invalid_value")
    assert running_app.staged() == []


async def test_requests_go_where_the_weights_say_and_users_stay(
    running_app: RunningApp, client: httpx.AsyncClient
) -> None:
    async with running_app.http(ADMIN_KEY) as admin:
        body = {"targets": [{"model": "sql@1", "weight": 3}, {"model": "tiny", "weight": 1}]}
        assert (await admin.put(f"{PATH}/drawn", json=body)).status_code == 201
    seen = Counter([await asked(client, "drawn") for _ in range(100)])
    assert seen.keys() == {"sql@1", "tiny"}
    assert 50 < seen["sql@1"] < 95, "a hundred draws of three in four"
    first = {user: await asked(client, "drawn", user=user) for user in map(str, range(20))}
    assert set(first.values()) == {"sql@1", "tiny"}
    for user, model in first.items():
        assert await asked(client, "tiny:drawn", "/v1/completions", user=user) == model
        assert await asked(client, " drawn ", "/v1/messages", metadata={"user_id": user}, max_tokens=8) == model
    oddities: tuple[dict[str, Any], ...] = ({"user": ""}, {"metadata": {"user_id": 7}}, {"metadata": {}})
    for odd in oddities:
        assert await asked(client, "drawn", **odd) in seen


async def test_a_target_follows_the_default_and_an_exact_version_does_not(admin: httpx.AsyncClient) -> None:
    await put(admin, "follows", "sql")
    await put(admin, "stays", "sql@2")
    assert [await asked(admin, "follows"), await asked(admin, "stays")] == ["sql@2", "sql@2"]
    assert (await admin.patch("/admin/v1/adapters/sql", json={"default_version": 1})).status_code == 200
    assert [await asked(admin, "follows"), await asked(admin, "stays")] == ["sql@1", "sql@2"]
    assert (await admin.patch("/admin/v1/adapters/sql", json={"default_version": 2})).status_code == 200


async def test_the_model_list_says_what_it_means(admin: httpx.AsyncClient) -> None:
    body = {"targets": [{"model": "sql@1", "weight": 90}, {"model": "json", "weight": 10}]}
    await admin.put(f"{PATH}/a-canary", json=body)
    await put(admin, "z-single", "sql@2")
    listed = (await admin.get("/v1/models")).json()["data"]
    ids = [card["id"] for card in listed]
    assert ids[0] == "tiny"
    assert ids[1:] == sorted(ids[1:])
    assert {"a-canary", "z-single", "sql", "json"} <= set(ids)
    cards = {card["id"]: card for card in listed}
    assert cards["a-canary"]["root"] == "90 % sql@1, 10 % json"
    assert (cards["z-single"]["root"], cards["z-single"]["parent"]) == ("sql@2", "tiny")
    assert cards["sql"].keys() == cards["a-canary"].keys()
    after = (await admin.get("/v1/models", params={"after": "a-canary", "limit": 1})).json()
    assert after["data"][0]["id"] == ids[ids.index("a-canary") + 1]
    for name in ("a-canary", "tiny:a-canary"):
        assert (await admin.get(f"/v1/models/{name}")).json() == cards["a-canary"] | {"id": name}


async def test_nothing_is_deleted_that_it_means(
    running_app: RunningApp, admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    for seed in (31, 32):
        assert (await push(admin, "kept", write_adapter(tmp_path / str(seed), seed=seed))).status_code == 201
    await put(admin, "keeps", "sql", "kept@1")
    for path in ("/admin/v1/adapters/kept/versions/1", "/admin/v1/adapters/kept"):
        answer = await admin.delete(path)
        error = assert_error(answer, 409, "alias_target_in_use")
        assert "'keeps'" in error["message"]
        assert answer.headers["x-should-retry"] == "false"
    assert_error(await admin.post("/v1/unload_lora_adapter", json={"lora_name": "kept"}), 409, "alias_target_in_use")
    digest = (await admin.get("/admin/v1/adapters/kept/versions/1")).json()["digest"]
    assert (await running_app.stored()).files.path(digest).is_dir()
    await admin.delete(f"{PATH}/keeps")
    assert (await admin.delete("/admin/v1/adapters/kept/versions/1")).status_code == 200
    assert_error(await admin.post(f"{PATH}/keeps:rollback"), 404, "model_not_found")


async def test_what_is_withdrawn_for_a_failed_probe_is_said_to_be_gone(
    running_app: RunningApp, admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    """The window is small: a version was made a target while it was still being proved."""
    folder = write_adapter(tmp_path / "a", seed=41)
    assert (await push(admin, "unproved", folder)).status_code == 201
    await put(admin, "hasty", "unproved")
    await (await running_app.stored()).versions.withdraw_version("unproved", 1)
    await running_app.services.catalog.refresh()
    error = assert_error(
        await admin.post("/v1/chat/completions", json=CHAT | {"model": "hasty"}), 404, "alias_target_gone"
    )
    assert "'hasty'" in error["message"]
    assert "'unproved'" in error["message"]
    assert (await put(admin, "hasty", "sql")).status_code == 200
    assert await asked(admin, "hasty") == "sql@2"


async def test_a_merge_takes_an_alias_of_one_target_only(admin: httpx.AsyncClient) -> None:
    await put(admin, "one", "sql@1")
    await put(admin, "two", "sql@1", "json")
    await put(admin, "plain", "tiny")

    async def plan(expression: str) -> httpx.Response:
        headers_alone = {"diagnostics": False}
        body = {"name": "m", "expression": expression}
        return await admin.post("/admin/v1/merges:plan", params=headers_alone, json=body)

    inputs = (await plan("one + 0.5*json")).json()["recipe"]["inputs"]
    assert {entry["adapter"]: entry["weight"] for entry in inputs} == {"sql@1": 1.0, "json@1": 0.5}
    error = assert_error(await plan("two + 0.5*json"), 400, "ambiguous_alias")
    assert "50 % sql@1, 50 % json" in error["message"]
    assert_error(await plan("plain + json"), 404, "adapter_not_found")
    assert_error(await plan("one + sql@1"), 400, "duplicate_input")


async def test_numbers_by_alias_and_target(running_app: RunningApp, admin: httpx.AsyncClient) -> None:
    await put(admin, "measured", "sql@1")
    await asked(admin, "measured")
    await put(admin, "measured", "json")
    await asked(admin, "measured")
    running_app.engine.failure = RuntimeError("broken")
    try:
        assert (await admin.post("/v1/chat/completions", json=CHAT | {"model": "measured"})).status_code == 500
    finally:
        running_app.engine.failure = None
    await asked(admin, "json")
    page = (await admin.get("/metrics")).text
    for adapter, code in (("sql@1", 200), ("json@1", 200), ("json@1", 500)):
        assert f'amalgam_alias_requests_total{{alias="measured",adapter="{adapter}",code="{code}"}} 1.0' in page
    assert 'amalgam_alias_request_duration_seconds_count{alias="measured",adapter="json@1"} 2.0' in page


async def test_flipped_all_the_time_each_request_keeps_what_it_was_admitted_to(running_app: RunningApp) -> None:
    """F20 without a model: what the engine was asked for, what the answer says and every part of a stream agree."""
    asked_for: list[str] = []
    done = asyncio.Event()
    async with running_app.http(ADMIN_KEY) as admin:
        await put(admin, "flipped", "sql@1")

        async def load() -> None:
            while not done.is_set():
                async with admin.stream(
                    "POST", "/v1/chat/completions", json=CHAT | {"model": "flipped", "stream": True}
                ) as answer:
                    assert answer.status_code == 200
                    text = "".join([part async for part in answer.aiter_text()])
                admitted = answer.headers["x-amalgam-adapter"]
                assert text.count(f'"model": "{admitted}"') == text.count('"model": ') == running_app.engine.chunks
                asked_for.append(admitted)

        running_app.engine.chunk_pause_s = 0.01
        clients = [asyncio.create_task(load()) for _ in range(4)]
        try:
            for index in range(FLIPS):
                await put(admin, "flipped", "sql@2" if index % 2 else "sql@1", "json" if index % 2 else "sql@2")
                if index % 25 == 0:
                    allowed = {"sql@2", "json@1"} if index % 2 else {"sql@1", "sql@2"}
                    assert await asked(admin, "flipped") in allowed
        finally:
            done.set()
            running_app.engine.chunk_pause_s = 0.0
            await asyncio.gather(*clients)
        assert (await admin.get(f"{PATH}/flipped")).json()["revision"] == FLIPS + 1
    assert len(asked_for) > 10
    assert set(asked_for) == {"sql@1", "sql@2", "json@1"}
    assert running_app.engine.residency.held == 0


async def test_the_command_line(running_app: RunningApp) -> None:
    async with served(running_app.app) as url:

        def run(*arguments: str) -> tuple[int, str]:
            reach = {"AMALGAM_URL": url, "AMALGAM_ADMIN_KEY": ADMIN_KEY, "COLUMNS": "200", "NO_COLOR": "1"}
            done = CliRunner().invoke(cli, ["aliases", *arguments], env=reach)
            return done.exit_code, done.output

        async def amalgam(*arguments: str) -> tuple[int, str]:
            return await asyncio.to_thread(run, *arguments)

        assert await amalgam("set", "typed", "sql@1=90", "tiny=10", "--revision", "0") == (
            0, "typed -> 90 % sql@1, 10 % tiny  (revision 1)\n",
        )  # fmt: skip
        code, text = await amalgam("set", "typed", "json", "--revision", "0")
        assert (code, "stale_revision" in text) == (1, True)
        assert (await amalgam("set", "typed", "json"))[1] == "typed -> 100 % json  (revision 2)\n"
        assert "90 % sql@1, 10 % tiny" in (await amalgam("rollback", "typed"))[1]
        assert "(revision 4)" in (await amalgam("rollback", "typed", "--to", "2"))[1]
        assert "typed" in (await amalgam("ls", "type"))[1]
        assert '"revision": 4' in (await amalgam("show", "typed"))[1]
        assert '"restores": 1' in (await amalgam("show", "typed", "--history"))[1]
        code, text = await amalgam("rm", "typed", "--revision", "3")
        assert (code, "stale_revision" in text) == (1, True)
        assert await amalgam("rm", "typed", "--revision", "4") == (0, "deleted typed\n")
        # What stands after the last = is a weight only where it is a number.
        code, text = await amalgam("set", "typed", "ties(sql, json; density=0.5)")
        assert (code, "-> 100 % ties(sql, json; density=0.5)" in text) == (0, True)
