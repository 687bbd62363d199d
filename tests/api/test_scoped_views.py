"""A key's view never names what is out of its scope: every answer that it can get is searched for foreign names.

Two tenants have everything there is on one application. Keys of the one go through every route, with everything that
may stand in a path, a query or a body, and what they are told is searched, all of it, for what is the other's. Where a
request itself names a foreign thing, the answer has to be, word for word, the one for a thing that does not exist.
"""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.api.fake_engine import FakeEngine
from tests.api.test_blends import Instant
from tests.support.every_path import paths, plain, routes, told, values
from tests.support.running_app import ADMIN_KEY, assert_error, push, start_app, write_adapter
from tests.support.two_tenants import ABSENT, CHAT, FOREIGN, OWN, TwoTenants, furnish

pytestmark = pytest.mark.slow

IDS = ("job_id", "evaluation_id", "sweep_id", "key_id", "file_id", "batch_id")
KINDS = ("client", "publisher", "reader", "own blends", "no blends", "one version")
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": {"messages": CHAT["messages"]},
    "/v1/embeddings": {"input": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
}


@pytest.fixture(scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TwoTenants]:
    folder = tmp_path_factory.mktemp("two_tenants")
    with pytest.MonkeyPatch.context() as monkeypatch:
        Instant(monkeypatch)
        async with start_app(
            folder, FakeEngine(capacity=64), worker=True, export_root=folder / "exports", blends_per_minute=10_000
        ) as running_app:
            yield await furnish(running_app)


QUERIES = (
    "", "?limit=1", "?search=zet", "?limit=2&cursor=acme.json", "?after=acme.json", "?kind=sweep", "?format=csv",
    "?tenant=acme",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_that_is_read_names_a_foreign_thing(two: TwoTenants, kind: str) -> None:
    answered = 0
    async with two.running_app.http(two.keys[kind]) as session:
        for _, template in routes(two, "GET"):
            for path in paths(two, template, OWN):
                for query in QUERIES if "{" not in template else ("", "?baseline=0&candidate=1"):
                    answer = await session.get(path + query)
                    # What the search is for is not repeated.
                    assert FOREIGN not in told(answer), (path + query, told(answer))
                    answered += answer.status_code == 200
    assert answered > (10 if kind in ("client", "one version") else 50)


@pytest.mark.parametrize("kind", KINDS)
async def test_lists_are_whole_but_for_what_is_foreign(two: TwoTenants, kind: str) -> None:
    """Page by page, with cursors: what is in scope is all there, once, and no cursor names another thing."""
    if kind in ("client", "one version"):
        return
    async with two.running_app.http(two.keys[kind]) as session:
        for listing, place in (("adapters", "name"), ("aliases", "name"), ("jobs", "id"), ("evaluations", "id")):
            seen, cursor = [], None
            while True:
                page = (
                    await session.get(
                        f"/admin/v1/{listing}", params={"limit": 1} | ({"cursor": cursor} if cursor else {})
                    )
                ).json()
                seen += [row[place] for row in page["data"]]
                cursor = page["next_cursor"]
                assert cursor is None or cursor == seen[-1]
                if cursor is None:
                    break
            assert len(seen) == len(set(seen))
            expected = {
                "adapters": {"acme.sql", "acme.json", "acme.mix", "acme.across", "acme.deeper"},
                "aliases": {"acme.live", "acme.via", "acme.weighted", "acme.viablend"},
                "jobs": set(two.jobs[OWN]),
                "evaluations": set(two.evaluations[OWN]),
            }[listing]
            assert set(seen) == expected, listing
        exports = (await session.get("/admin/v1/exports")).json()["data"]
        experiments = (await session.get("/admin/v1/experiments")).json()["data"]
        assert [one["alias"] for one in experiments] == ["acme.weighted"]
        assert [one["model"] for one in experiments[0]["targets"]] == ["acme.sql", *["(not in scope)"] * 3]
        assert [export["name"] for export in exports] == ["acme.whole"]
        assert [tenant["id"] for tenant in (await session.get("/admin/v1/tenants")).json()["data"]] == [OWN]


async def test_the_models_that_a_key_is_shown(two: TwoTenants) -> None:
    named = [
        "acme.across",
        "acme.deeper",
        "acme.json",
        "acme.live",
        "acme.mix",
        "acme.sql",
        "acme.via",
        "acme.viablend",
        "acme.weighted",
    ]
    for kind, expected in (("client", ["tiny", *named]), ("no blends", ["tiny", *named]), ("one version", [])):
        async with two.running_app.http(two.keys[kind]) as session:
            for _ in range(2):
                models = (await session.get("/v1/models")).json()
                assert [model["id"] for model in models["data"]] == expected, kind
                assert models["has_more"] is False
    async with two.running_app.http(ADMIN_KEY) as admin:
        assert any(FOREIGN in model["id"] for model in (await admin.get("/v1/models")).json()["data"])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_foreign_thing_is_answered_as_one_that_does_not_exist(two: TwoTenants, kind: str) -> None:
    """Each request that names a foreign thing beside its twin, which names nothing: the same bytes."""
    tried = 0
    async with two.running_app.http(two.keys[kind]) as session:

        async def same(method: str, path: str, body: Any = None) -> None:
            nonlocal tried
            answer = await session.request(method, path, json=body)
            twin = await session.request(method, path.replace(FOREIGN, ABSENT), json=_twin(body))
            assert plain(told(answer)) == plain(told(twin)), (method, path, body)
            assert answer.status_code in (400, 403, 404, 405, 409, 422) or FOREIGN not in told(answer), told(answer)
            tried += 1

        for method, template in routes(two, "GET", "POST", "PUT", "PATCH", "DELETE"):
            if any(place in template for place in IDS):
                continue
            for path in paths(two, template, FOREIGN):
                if FOREIGN in path:
                    await same(method, path, None if method in ("GET", "DELETE") else BODIES.get(template, {}))
        for path, body in ENDPOINTS.items():
            for model in NAMING if path == "/v1/chat/completions" else NAMING[:2]:
                await same("POST", path, body | {"model": model})
        for path, body in ORDERS:
            await same("POST", path, body)
    assert tried > 60


def _twin(body: Any) -> Any:
    if isinstance(body, dict):
        return {_twin(name): _twin(value) for name, value in body.items()}
    if isinstance(body, list):
        return [_twin(value) for value in body]
    return body.replace(FOREIGN, ABSENT) if isinstance(body, str) else body


NAMING = (
    "zeta-one", "zeta-one@1", "zeta-one@7", "zeta-live", "zeta-onto", "tiny:zeta-one", "zeta-on",
    "acme.sql + zeta-one", "zeta-one - 0.5*zeta-two", "ties(acme.sql, zeta-live; density=0.5)",
    "task_arithmetic(acme.sql, acme.json; orthogonalize_against=zeta-one)",
)  # fmt: skip
BODIES: dict[str, Any] = {
    "/admin/v1/aliases/{name}": {"targets": [{"model": "acme.sql", "weight": 1}]},
    "/admin/v1/aliases/{name}/experiment": {"metric": "thumb", "shadows": ["zeta-one"]},
    "/admin/v1/adapters/{name}": {"description": "mine"},
    "/admin/v1/adapters/{name}/versions/{number}/profile": {"system_prompt": "x", "active": True},
}
QUESTION = {"items": [{"prompt": "x", "reference": "1"}], "metrics": ["exact_match"]}
ORDERS: tuple[tuple[str, Any], ...] = (
    ("/admin/v1/merges", {"name": "acme.new", "expression": "acme.sql + zeta-one"}),
    ("/admin/v1/merges", {"name": "zeta-new", "expression": "acme.sql + acme.json"}),
    ("/admin/v1/merges", {"name": "zeta-one", "expression": "acme.sql + acme.json"}),
    ("/admin/v1/merges:plan?diagnostics=false", {"name": "acme.new", "expression": "acme.sql + zeta-live"}),
    ("/admin/v1/evaluations", QUESTION | {"targets": ["acme.sql", "zeta-one"]}),
    ("/admin/v1/evaluations", QUESTION | {"targets": ["zeta-live"]}),
    ("/admin/v1/evaluations", QUESTION | {"targets": ["acme.sql + 0.5*zeta-one"]}),
    (
        "/admin/v1/sweeps",
        {
            "tasks": {"a": {"adapter": "acme.sql"}, "b": {"adapter": "zeta-one"}},
            "items": [{"task": task, "prompt": "x", "reference": "1"} for task in "ab"],
            "search": {"kind": "grid", "weights": {"acme.sql": [1.0], "zeta-one": [1.0]}},
        },
    ),
    ("/v1/unload_lora_adapter", {"lora_name": "zeta-one"}),
    ("/v1/load_lora_adapter", {"lora_name": "zeta-one", "lora_path": "/x"}),
    ("/admin/v1/keys", {"tenant": "zeta"}),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
async def test_foreign_ids_are_not_there(two: TwoTenants, kind: str) -> None:
    """Ids cannot be guessed; one that was learned is answered as any other."""
    if kind == "client":
        return
    absent = {"job_id": "job-none", "evaluation_id": "eval-none", "sweep_id": "eval-none", "key_id": "none"}
    tried = 0
    async with two.running_app.http(two.keys[kind]) as session:
        for method, template in routes(two, "GET", "POST", "PATCH", "DELETE"):
            place = next((place for place in absent if place in template), None)
            if place is None:
                continue
            missing = await session.request(
                method, template.replace(f"{{{place}}}", absent[place]) + "?baseline=0&candidate=0"
            )
            for value in values(two, FOREIGN)[place]:
                path = template.replace(f"{{{place}}}", value)
                answer = await session.request(method, f"{path}?baseline=0&candidate=0")
                assert plain(told(answer)).replace(value, absent[place]) == plain(told(missing)), (method, path)
                tried += 1
        compared = await session.get(
            f"/admin/v1/evaluations/{two.evaluations[OWN][0]}/compare",
            params={"baseline": "0", "candidate": "0", "other": two.evaluations[FOREIGN][0]},
        )
        assert_error(compared, 404, "evaluation_not_found")
    assert tried > 10


async def test_an_alias_in_scope_answers_by_its_own_name(two: TwoTenants) -> None:
    """Whatever it means, whole answers and streams, headers and errors: of its targets nothing is told."""
    engine = two.running_app.engine
    async with two.running_app.http(two.keys["client"]) as session:
        for model in ("acme.via", "acme.viablend"):
            for path, body in ENDPOINTS.items():
                for stream in (False, True):
                    sent = body | {"model": model} | ({"stream": True} if stream else {})
                    answer = await session.post(path, json=sent)
                    assert FOREIGN not in told(answer), (path, told(answer))
                    assert "blend@" not in told(answer), (path, told(answer))
                    if answer.status_code == 200:
                        assert answer.headers["x-amalgam-adapter"] == model
                        assert f'"model":"{model}"' in answer.text.replace('": "', '":"')
            assert engine.calls[-1][1]["model"] != model, "the engine was asked for what it means"
        shown = [
            (await session.post("/v1/chat/completions", json=CHAT | {"model": "acme.weighted"})).json()["model"]
            for _ in range(40)
        ]
        assert set(shown) == {"acme.weighted", "acme.sql@1"}, "what is in scope is named exactly"
        engine.stream_error = (1, 'data: {"error": {"message": "zeta-one@1 is broken", "code": 400}}\n\n')
        try:
            told_late = await session.post("/v1/chat/completions", json=CHAT | {"model": "acme.via", "stream": True})
            assert FOREIGN not in told(told_late), told(told_late)
        finally:
            engine.stream_error = None


async def test_a_recipe_that_another_has_published_is_answered_as_a_blend(two: TwoTenants) -> None:
    async with two.running_app.http(ADMIN_KEY) as admin, two.running_app.http(two.keys["client"]) as session:
        model = {"model": "acme.sql + acme.json"}
        assert (await admin.post("/v1/chat/completions", json=CHAT | model)).json()["model"] == "zeta-same@1"
        answer = await session.post("/v1/chat/completions", json=CHAT | model)
        assert answer.json()["model"].startswith("blend@"), told(answer)
        assert FOREIGN not in told(answer)


async def test_who_may_ask_for_blends_and_by_which_names(two: TwoTenants) -> None:
    async def ask(kind: str, model: str) -> httpx.Response:
        async with two.running_app.http(two.keys[kind]) as session:
            return await session.post("/v1/chat/completions", json=CHAT | {"model": model})

    theirs, across, own = two.blends[FOREIGN], two.blends["across"], two.blends[OWN]
    for kind in KINDS:
        for name in (theirs, across):
            answer = await ask(kind, name)
            assert answer.status_code in (403, 404), (kind, told(answer))
    assert_error(await ask("own blends", own), 404, "model_not_found")
    assert (await ask("client", own)).status_code == 200, "any: all of its inputs are in scope"
    assert (await ask("own blends", own)).status_code == 200, "its tenant has asked for it by now"
    mine = await ask("own blends", "acme.sql + 0.875*acme.json")
    assert (await ask("own blends", mine.json()["model"])).status_code == 200
    assert_error(await ask("no blends", "acme.sql + acme.json"), 403, "not_in_scope")
    assert_error(await ask("no blends", mine.json()["model"]), 403, "not_in_scope")
    assert (await ask("no blends", "acme.viablend")).status_code == 200, "an alias is allowed where its name is"
    assert_error(await ask("client", "acme.sql + 0.5*acme.via"), 403, "not_in_scope")
    assert_error(await ask("one version", "tiny"), 403, "not_in_scope")
    assert_error(await ask("one version", ""), 403, "not_in_scope")
    assert_error(await ask("one version", "acme.sql"), 404, "model_not_found")
    assert (await ask("one version", "acme.sql@1")).json()["model"] == "acme.sql@1"


async def test_hints_are_of_names_in_scope(two: TwoTenants) -> None:
    async with two.running_app.http(two.keys["client"]) as session, two.running_app.http(ADMIN_KEY) as admin:
        for model in ("zeta-on", "zeta-tw", "zeta-liv", "acme.sqk", "zeta-one@9", "acme.sql@9"):
            body = CHAT | {"model": model}
            hinted, operator = [
                (await one.post("/v1/chat/completions", json=body)).json()["error"]["message"]
                for one in (session, admin)
            ]
            assert FOREIGN not in hinted.replace(model, ""), hinted
            if model.startswith("zeta"):
                assert "Did you mean: zeta" in operator
        near = (await session.post("/v1/chat/completions", json=CHAT | {"model": "acme.sqk"})).json()["error"][
            "message"
        ]
        assert "acme.sql" in near


async def test_changes_by_a_publisher_meet_no_foreign_name(two: TwoTenants) -> None:
    async with two.running_app.http(two.keys["publisher"]) as session:
        refused = await session.delete("/admin/v1/adapters/acme.json")
        assert_error(refused, 409, "alias_target_in_use")
        assert "acme.live" in refused.text
        assert FOREIGN not in told(refused)
        back = await session.post("/admin/v1/aliases/acme.live:rollback", json={"to_revision": 2})
        assert_error(back, 403, "not_in_scope")
        assert FOREIGN not in told(back)
        for target in ("acme.via", "zeta-live", "zeta-one", "acme.sql + zeta-one"):
            body = {"targets": [{"model": target, "weight": 1}]}
            put = await session.put("/admin/v1/aliases/acme.new", json=body)
            twin = await session.put("/admin/v1/aliases/acme.new", json=_twin(body))
            assert put.status_code in (400, 404), told(put)
            assert plain(told(put)) == plain(told(twin))
        for targets in (["acme.via"], ["acme.weighted"], ["acme.viablend"]):
            order = {"targets": targets, "items": [{"prompt": "x", "reference": "1"}], "metrics": ["exact_match"]}
            asked = await session.post("/admin/v1/evaluations", json=order)
            assert_error(asked, 403, "not_in_scope")
            assert FOREIGN not in told(asked)
        assert_error(
            await session.post("/admin/v1/merges", json={"name": "acme.n", "expression": "acme.sql + acme.via"}),
            403,
            "not_in_scope",
        )
        rebuilt = await session.post("/admin/v1/adapters/acme.across/versions/1:rebuild")
        assert FOREIGN not in told(rebuilt)


async def test_the_files_of_a_version_tell_no_foreign_name(two: TwoTenants) -> None:
    async with two.running_app.http(two.keys["reader"]) as session, two.running_app.http(ADMIN_KEY) as admin:
        path = "/admin/v1/adapters/acme.across/versions/1/files"
        assert FOREIGN.encode() in (await admin.get(path)).content, "its lineage is among the files"
        assert FOREIGN.encode() not in (await session.get(path)).content
        assert b"lineage.json" in (await session.get("/admin/v1/adapters/acme.mix/versions/1/files")).content
        lineage = (await session.get("/admin/v1/adapters/acme.deeper/versions/1/lineage")).json()
        assert {node["model"] for node in lineage["nodes"]} == {
            "acme.deeper@1",
            "acme.across@1",
            "acme.json@1",
            "acme.sql@1",
        }
        assert "(not in scope)" in {edge["input"] for edge in lineage["edges"]}


async def test_a_repeated_key_of_idempotency_is_each_callers_own(two: TwoTenants) -> None:
    body = {"name": "acme.again", "expression": "acme.sql + 2*zeta-two"}
    headers = {"Idempotency-Key": "the same"}
    async with two.running_app.http(ADMIN_KEY) as admin, two.running_app.http(two.keys["publisher"]) as session:
        first = await admin.post("/admin/v1/merges?wait_s=60", json=body, headers=headers)
        assert first.status_code == 201, first.text
        again = await session.post("/admin/v1/merges?wait_s=60", json=body, headers=headers)
        assert_error(again, 404, "adapter_not_found")
        assert (await admin.delete("/admin/v1/adapters/acme.again")).status_code == 200


async def test_the_audit_shows_a_tenant_its_own_changes(two: TwoTenants) -> None:
    app = two.running_app
    async with app.http(two.keys["publisher"]) as mine, app.http(two.foreign_keys["publisher"]) as theirs:
        for session, name in ((mine, "acme.audited"), (theirs, "zeta-audited")):
            assert (await push(session, name, write_adapter(app.sources / name, seed=9))).status_code == 201
        shown = (await mine.get("/admin/v1/audit?limit=500")).json()["data"]
        assert {entry["tenant"] for entry in shown} == {OWN}
        assert "acme.audited" in {entry["object"] for entry in shown}
        for query in ("?tenant=zeta", "?tenant=default"):
            assert (await mine.get(f"/admin/v1/audit{query}")).json()["data"] == []
            assert (await mine.get(f"/admin/v1/audit/export{query}")).text == ""
        for session, name in ((mine, "acme.audited"), (theirs, "zeta-audited")):
            assert (await session.delete(f"/admin/v1/adapters/{name}")).status_code == 200
