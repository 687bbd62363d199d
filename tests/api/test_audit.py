"""Every change of the admin plane is recorded before it is acknowledged: who, what, before and after."""

import csv
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from amalgam.api.admin.audited import AUDITED, CHANGES_NOTHING
from amalgam.errors.registry import RegistryUnavailable
from amalgam.registry import audit as audit_registry
from amalgam.registry.audit import AuditRegistry
from tests.api.fake_engine import FakeEngine
from tests.api.test_blends import Instant
from tests.support.keys import key_id, make_key
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter


@pytest.fixture(scope="module")
async def audited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    folder = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as monkeypatch:
        Instant(monkeypatch)
        async with start_app(folder, FakeEngine(), export_root=folder / "exports") as running_app:
            yield running_app


@pytest.fixture
async def admin(audited: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with audited.http(ADMIN_KEY) as session:
        yield session


async def entries(admin: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await admin.get("/admin/v1/audit", params=query)).json()["data"]
    return found


def test_every_route_that_changes_something_says_what(audited: RunningApp) -> None:
    changing = {
        (method, route.path)
        for route in audited.app.routes
        if isinstance(route, APIRoute) and ("/admin/" in route.path or "lora_adapter" in route.path)
        for method in route.methods
        if method != "GET"
    }
    assert changing == set(AUDITED) | CHANGES_NOTHING
    assert not set(AUDITED) & CHANGES_NOTHING


async def test_one_entry_for_each_change_and_none_for_what_changes_nothing(
    audited: RunningApp, admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    """One request by each route of the table, in an order in which each has something to change."""
    done: list[tuple[str, str]] = []

    async def does(verb: str, about: str | None, answer: httpx.Response) -> dict[str, Any]:
        assert answer.status_code < 300, answer.text
        newest = (await entries(admin, limit=1))[0]
        assert newest["request_id"] == answer.headers["x-request-id"], (verb, newest)
        assert newest["verb"] == verb
        assert about is None or newest["object"] == about
        assert newest["key_id"].startswith("env-")
        done.append((newest["verb"], newest["kind"]))
        return newest

    folder = write_adapter(audited.sources / "one")
    adapters, one = "/admin/v1/adapters", "/admin/v1/adapters/one"
    new = await does("adapter.register", "one", await push(admin, "one", folder))
    assert (new["before"], len(new["after"])) == (None, 64)
    second = await does("adapter.register", "one", await push(admin, "one", write_adapter(tmp_path / "x", seed=3)))
    assert second["before"] == new["after"] != second["after"]
    source = {"name": "two", "source": f"file://{folder}"}
    await does("adapter.register", "two", await admin.post(adapters, json=source))
    await does("adapter.change", "one", await admin.patch(one, json={"default_version": 1, "description": "d"}))
    for verb in ("load", "pin", "unpin", "unload"):
        await does(f"version.{verb}", "one", await admin.post(f"{one}:{verb}"))
    profile = f"{one}/versions/1/profile"
    await does("profile.set", "one@1", await admin.put(profile, json={"system_prompt": "x"}))
    await does("profile.switch", "one@1", await admin.patch(profile, json={"active": False}))
    await does("profile.delete", "one@1", await admin.delete(profile))
    for model in ("one", "two"):
        body = {"targets": [{"model": model, "weight": 1}]}
        await does("alias.set", "name", await admin.put("/admin/v1/aliases/name", json=body))
    await _experiment(admin, does)
    await does("alias.rollback", "name", await admin.post("/admin/v1/aliases/name:rollback"))
    gone = await does("alias.delete", "name", await admin.delete("/admin/v1/aliases/name"))
    assert (gone["after"], len(gone["before"])) == (None, 64)
    job = (await admin.post("/admin/v1/merges", json={"name": "both", "expression": "one + two"})).json()["job"]["id"]
    assert (await entries(admin, limit=1))[0] | {"verb": "merge.submit", "object": job, "before": None} == (
        await entries(admin, limit=1)
    )[0]
    done.append(("merge.submit", "job"))
    await does("job.cancel", job, await admin.post(f"/admin/v1/jobs/{job}:cancel"))
    await does("export.submit", None, await admin.post("/admin/v1/exports", json={"name": "out", "expression": "one"}))
    asked = {"targets": ["one"], "items": [{"prompt": "x", "reference": "y"}], "metrics": ["exact_match"]}
    evaluation = await does("evaluation.submit", None, await admin.post("/admin/v1/evaluations", json=asked))
    assert evaluation["before"] is None
    await _rest_of_evaluations(admin, done)
    await _rest_of_keys(admin, does)
    await does("adapter.register", "three", await _load(admin, folder))
    await does("adapter.delete", "three", await admin.post("/v1/unload_lora_adapter", json={"lora_name": "three"}))
    await does("version.delete", "one", await admin.delete(f"{one}/versions/2"))
    await does("adapter.delete", "one", await admin.delete(one))
    assert {verb for verb, _ in done} == {spec.verb for spec in AUDITED.values()}


async def _experiment(admin: httpx.AsyncClient, does: Any) -> None:
    path = "/admin/v1/aliases/tried"
    targets = {"targets": [{"model": "one", "weight": 1}, {"model": "two", "weight": 1}]}
    await does("alias.set", "tried", await admin.put(path, json=targets))
    begun = await does("experiment.start", "tried", await admin.put(f"{path}/experiment", json={"metric": "thumb"}))
    assert begun["before"] != begun["after"]
    await does("experiment.stop", "tried", await admin.delete(f"{path}/experiment"))
    await does("alias.delete", "tried", await admin.delete(path))


async def _load(admin: httpx.AsyncClient, folder: Path) -> httpx.Response:
    return await admin.post("/v1/load_lora_adapter", json={"lora_name": "three", "lora_path": str(folder)})


async def _rest_of_evaluations(admin: httpx.AsyncClient, done: list[tuple[str, str]]) -> None:
    """What a running evaluation lets happen depends on when; each of these is tried on a row that allows it."""
    body = {
        "tasks": {"a": {"adapter": "one"}, "b": {"adapter": "two"}},
        "items": [{"task": task, "prompt": "x", "reference": "y"} for task in "ab"],
        "search": {"kind": "grid", "weights": {"one": [1.0], "two": [1.0]}},
    }
    sweep = (await admin.post("/admin/v1/sweeps", json=body)).json()["id"]
    assert (await entries(admin, limit=1))[0]["object"] == sweep
    calls = (
        ("evaluation.cancel", f"/admin/v1/evaluations/{sweep}:cancel", None),
        ("evaluation.resume", f"/admin/v1/evaluations/{sweep}:resume", None),
        ("sweep.promote", f"/admin/v1/sweeps/{sweep}:promote", {"name": "won", "candidate": "2"}),
    )
    done.append(("sweep.submit", "evaluation"))
    for verb, path, sent in calls:
        answer = await admin.post(path, json=sent)
        newest = (await entries(admin, limit=1))[0]
        # Where its state does not allow it nothing was changed, and nothing is recorded.
        assert (newest["request_id"] == answer.headers["x-request-id"]) is answer.is_success, (verb, answer.text)
        done.append((verb, newest["kind"]))
    await admin.post(f"/admin/v1/evaluations/{sweep}:cancel")
    answer = await admin.delete(f"/admin/v1/evaluations/{sweep}")
    newest = (await entries(admin, limit=1))[0]
    assert (newest["request_id"] == answer.headers["x-request-id"]) is answer.is_success
    done.append(("evaluation.delete", "evaluation"))


async def _rest_of_keys(admin: httpx.AsyncClient, does: Any) -> None:
    await does("tenant.create", "acme", await admin.post("/admin/v1/tenants", json={"id": "acme"}))
    await does("tenant.change", "acme", await admin.patch("/admin/v1/tenants/acme", json={"weight": 2}))
    made = await admin.post("/admin/v1/keys", json={"tenant": "acme"})
    key = made.json()["id"]
    await does("key.create", key, made)
    await does("key.change", key, await admin.patch(f"/admin/v1/keys/{key}", json={"name": "other"}))
    await does("key.rotate", key, await admin.post(f"/admin/v1/keys/{key}:rotate"))
    revoked = await does("key.revoke", key, await admin.post(f"/admin/v1/keys/{key}:revoke"))
    assert revoked["before"] != revoked["after"]
    await does("tenant.delete", "acme", await admin.delete("/admin/v1/tenants/acme"))


async def test_what_is_refused_or_changes_nothing_leaves_no_entry(
    audited: RunningApp, admin: httpx.AsyncClient
) -> None:
    folder = write_adapter(audited.sources / "plain")
    assert (await push(admin, "plain", folder)).status_code == 201
    before = await entries(admin, limit=500)
    assert_error(await admin.delete("/admin/v1/adapters/nobody"), 404, "adapter_not_found")
    assert_error(await admin.patch("/admin/v1/adapters/plain", json={"default_version": 9}), 404, "version_not_found")
    assert (await admin.post("/admin/v1/adapters:validate", json={"source": f"file://{folder}"})).status_code == 200
    assert (await admin.post("/admin/v1/adapters/plain:verify")).status_code == 200
    for path in (
        "adapters/%00",
        "adapters/a%20b/versions/1/profile",
        "adapters/plain/versions/x/profile",
        f"jobs/{'x' * 300}:cancel",
    ):
        answer = await admin.request("DELETE" if "cancel" not in path else "POST", f"/admin/v1/{path}")
        assert answer.status_code in (400, 404), answer.text
    assert await entries(admin, limit=500) == before
    half = await admin.patch("/admin/v1/adapters/plain", json={"description": "new", "default_version": 9})
    assert half.status_code == 404
    assert await entries(admin, limit=500) == before


async def test_a_repeated_request_is_one_entry(admin: httpx.AsyncClient) -> None:
    for _ in range(3):
        answer = await admin.post("/admin/v1/tenants", json={"id": "once"}, headers={"Idempotency-Key": "audit once"})
        assert answer.status_code == 201
    assert len([entry for entry in await entries(admin, limit=500) if entry["object"] == "once"]) == 1


async def test_without_an_entry_a_change_is_not_acknowledged(
    admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object) -> None:
        raise RegistryUnavailable("gone")

    monkeypatch.setattr(AuditRegistry, "append", gone)
    headers = {"Idempotency-Key": "unacknowledged"}
    answer = await admin.post("/admin/v1/tenants", json={"id": "later"}, headers=headers)
    assert_error(answer, 503, "audit_unavailable")
    assert answer.headers["retry-after"]
    monkeypatch.undo()
    patched = await admin.patch("/admin/v1/tenants/later", json={"name": "Later"}, headers=headers)
    assert patched.status_code == 200
    assert (await entries(admin, limit=1))[0]["object"] == "later"


async def test_pages_go_back_to_the_first_entry_and_times_narrow_them(
    audited: RunningApp, admin: httpx.AsyncClient
) -> None:
    for number in range(5):
        await admin.post("/admin/v1/tenants", json={"id": f"page-{number}"})
    everything = await entries(admin, limit=500)
    seen: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await admin.get("/admin/v1/audit", params=query)).json()
        seen += page["data"]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == everything
    assert [entry["id"] for entry in seen] == sorted((entry["id"] for entry in seen), reverse=True)
    middle = everything[2]["at"]
    since = await entries(admin, since=middle, limit=500)
    until = await entries(admin, until=middle, limit=500)
    assert {entry["id"] for entry in since} | {entry["id"] for entry in until} == {entry["id"] for entry in everything}
    assert not {entry["id"] for entry in since} & {entry["id"] for entry in until}
    for wrong in ({"since": "2030-01-01T00:00:00"}, {"until": "yesterday"}, {"cursor": "x"}, {"tenant": "a b"}):
        assert (await admin.get("/admin/v1/audit", params=wrong)).status_code == 400, wrong
    token = await make_key(audited, "publisher", tenant="pages")
    async with audited.http(token) as publisher:
        assert (await push(publisher, "mine", write_adapter(audited.sources / "mine"))).status_code == 201
    assert [entry["key_id"] for entry in await entries(admin, tenant="pages")] == [key_id(token)]


async def test_all_of_it_comes_as_lines_and_as_a_table(admin: httpx.AsyncClient) -> None:
    expected = (await entries(admin, limit=500))[::-1]
    lines = await admin.get("/admin/v1/audit/export")
    assert lines.headers["content-type"] == "application/jsonl"
    assert [json.loads(line) for line in lines.text.splitlines()] == expected
    table = await admin.get("/admin/v1/audit/export?format=csv")
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert [row["id"] for row in rows] == [str(entry["id"]) for entry in expected]
    assert list(rows[0]) == list(expected[0])


async def test_a_spreadsheet_runs_nothing_of_it(admin: httpx.AsyncClient) -> None:
    """A request's id is the client's own text."""
    headers = {"X-Request-Id": "-2-3"}
    assert (await admin.post("/admin/v1/tenants", json={"id": "formula"}, headers=headers)).status_code == 201
    assert ",'-2-3\n" in (await admin.get("/admin/v1/audit/export?format=csv")).text


def test_nothing_in_the_code_changes_an_entry() -> None:
    text = Path(audit_registry.__file__).read_text()
    assert ".update(" not in text
    assert ".delete(" not in text
    package = Path(audit_registry.__file__).parents[1]
    users = [
        path.name
        for path in package.rglob("*.py")
        if "tables import" in path.read_text() and " audit" in path.read_text()
    ]
    assert users == ["audit.py"]


async def test_the_changes_of_one_thing_are_asked_for_by_its_kind_and_name(
    audited: RunningApp, admin: httpx.AsyncClient
) -> None:
    folder = write_adapter(audited.sources / "asked")
    assert (await push(admin, "asked", folder)).status_code == 201
    for name in ("asked-for", "another"):
        assert (await admin.put(f"/admin/v1/aliases/{name}", json={"targets": [{"model": "asked"}]})).status_code == 201
    assert (await admin.delete("/admin/v1/aliases/asked-for")).status_code == 200
    found = await entries(admin, kind="alias", object="asked-for")
    assert [(one["verb"], one["object"]) for one in found] == [
        ("alias.delete", "asked-for"), ("alias.set", "asked-for"),
    ]  # fmt: skip
    assert await entries(admin, kind="adapter", object="asked-for") == []
    assert {one["object"] for one in await entries(admin, kind="alias")} >= {"asked-for", "another"}
    lines = (await admin.get("/admin/v1/audit/export", params={"kind": "alias", "object": "asked-for"})).text
    assert [json.loads(line)["verb"] for line in lines.splitlines()] == ["alias.set", "alias.delete"]
    for query in ({"kind": "nothing"}, {"object": "a b"}, {"object": ""}):
        assert_error(await admin.get("/admin/v1/audit", params=query), 400, "invalid_value")
