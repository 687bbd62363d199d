"""Tenants and keys over HTTP: what is shown once, what ends a key, and what is never written down."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.cli import client as cli_client
from tests.api.test_terminal import terminal
from tests.support.keys import key_id, make_key, make_tenant
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, push, start_app, write_adapter

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
async def keyed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path_factory.mktemp("tenants")) as running_app:
        await make_tenant(running_app, "acme", name="Acme")
        yield running_app


@pytest.fixture
async def admin(keyed: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with keyed.http(ADMIN_KEY) as session:
        yield session


async def asks(running_app: RunningApp, token: str) -> httpx.Response:
    async with running_app.http(token) as session:
        return await session.post("/v1/chat/completions", json=CHAT)


async def test_a_new_key_asks_at_once_and_its_secret_is_shown_once(keyed: RunningApp, admin: httpx.AsyncClient) -> None:
    made = await admin.post("/admin/v1/keys", json={"tenant": "acme", "name": "one"})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    token, one = made.json()["key"], made.json()["id"]
    assert token.startswith(f"ak_{one}_")
    assert len(token) >= len(f"ak_{one}_") + 43, "256 bits"
    assert (await asks(keyed, token)).status_code == 200
    for path in (f"/admin/v1/keys/{one}", "/admin/v1/keys?limit=500", "/admin/v1/audit", "/admin/v1/audit/export"):
        shown = (await admin.get(path)).text
        assert one in shown
        assert token not in shown
        assert token.rpartition("_")[2] not in shown


async def test_no_secret_is_anywhere_on_the_disk(tmp_path: Path) -> None:
    """The registry's file, its log, the kept answers of repeated requests: all of it."""
    async with start_app(tmp_path) as running_app, running_app.http(ADMIN_KEY) as admin:
        await make_tenant(running_app, "acme")
        headers = {"Idempotency-Key": "once"}
        made = (await admin.post("/admin/v1/keys", json={"tenant": "acme"}, headers=headers)).json()
        rotated = await admin.post(f"/admin/v1/keys/{made['id']}:rotate", json={}, headers={"Idempotency-Key": "two"})
        secrets = [made["key"], rotated.json()["new"]["key"]]
        for token in secrets:
            assert (await asks(running_app, token)).status_code == 200
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "registry.sqlite3" for path in files)
    for path in files:
        held = path.read_bytes()
        for token in secrets:
            assert token.split("_", 2)[2].encode() not in held, path


async def test_a_repeated_creation_is_the_same_key_without_its_secret(admin: httpx.AsyncClient) -> None:
    headers, body = {"Idempotency-Key": "create-1"}, {"tenant": "acme", "name": "twice"}
    first, again = [await admin.post("/admin/v1/keys", json=body, headers=headers) for _ in range(2)]
    assert again.headers["idempotency-replayed"] == "true"
    assert (again.status_code, again.json()) == (201, first.json() | {"key": None})
    assert_error(
        await admin.post("/admin/v1/keys", json=body | {"name": "x"}, headers=headers), 422, "idempotency_key_reused"
    )
    names = [key["name"] for key in (await admin.get("/admin/v1/keys?tenant=acme&limit=500")).json()["data"]]
    assert names.count("twice") == 1


async def test_revoked_expired_and_suspended_keys_say_what_they_are(
    keyed: RunningApp, admin: httpx.AsyncClient
) -> None:
    await make_tenant(keyed, "other")
    revoked, brief = await make_key(keyed), await make_key(keyed, expires_in_s=0.05)
    suspended = await make_key(keyed, tenant="other")
    assert (await admin.post(f"/admin/v1/keys/{key_id(revoked)}:revoke")).json()["state"] == "revoked"
    assert (await admin.post(f"/admin/v1/keys/{key_id(revoked)}:revoke")).status_code == 200
    assert_error(await asks(keyed, revoked), 401, "invalid_api_key")
    async with asyncio.timeout(30):
        while (answer := await asks(keyed, brief)).status_code == 200:
            await asyncio.sleep(0.02)
    assert_error(answer, 401, "key_expired")
    assert (await admin.patch("/admin/v1/tenants/other", json={"state": "suspended"})).json()["state"] == "suspended"
    assert_error(await asks(keyed, suspended), 403, "tenant_suspended")
    await admin.patch("/admin/v1/tenants/other", json={"state": "active"})
    assert (await asks(keyed, suspended)).status_code == 200
    assert (await admin.delete("/admin/v1/tenants/other")).status_code == 200
    assert_error(await asks(keyed, suspended), 401, "invalid_api_key")
    assert_error(await admin.get("/admin/v1/tenants/other"), 404, "tenant_not_found")


async def test_rotation_overlaps(keyed: RunningApp, admin: httpx.AsyncClient) -> None:
    old = await make_key(keyed, "publisher", "acme.*", blends="own", limits={"tokens_per_day": 9})
    rotated = (await admin.post(f"/admin/v1/keys/{key_id(old)}:rotate", json={"overlap_s": 3600})).json()
    new = rotated["new"]
    assert rotated["old"]["successor"] == new["id"]
    same = ("tenant", "role", "models", "blends", "limits", "name")
    assert {name: new[name] for name in same} == {name: rotated["old"][name] for name in same}
    async with keyed.http(old) as one, keyed.http(new["key"]) as other:
        for session in (one, other):
            assert (await session.get("/v1/models")).status_code == 200
    assert_error(await admin.post(f"/admin/v1/keys/{key_id(old)}:rotate"), 409, "key_not_live")
    ended = await admin.post(f"/admin/v1/keys/{new['id']}:rotate", json={"overlap_s": 0})
    assert ended.status_code == 200
    assert_error(await asks(keyed, new["key"]), 401, "key_expired")


async def test_what_cannot_be_is_refused_with_its_field(keyed: RunningApp, admin: httpx.AsyncClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tenant": "nobody"}, "tenant"), ({"tenant": "acme", "role": "root"}, "role"),
        ({"tenant": "acme", "models": []}, "models"), ({"tenant": "acme", "models": ["a+b"]}, "models.0"),
        ({"tenant": "acme", "blends": "some"}, "blends"), ({"tenant": "acme", "expires_in_s": 0}, "expires_in_s"),
        ({"tenant": "acme", "role": "admin", "models": ["a"]}, "models"), ({"tenant": "acme", "secret": "x"}, "secret"),
        ({"tenant": "acme", "limits": {"tokens_per_day": 0}}, "limits.tokens_per_day"), ({}, "tenant"),
        ({"tenant": "acme", "role": "metrics", "blends": "none"}, "models"),
    ]  # fmt: skip
    for body, param in cases:
        answer = await admin.post("/admin/v1/keys", json=body)
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["error"]["param"] == param, answer.text
    for body in ({"id": "acme"}, {"id": "default"}):
        assert_error(await admin.post("/admin/v1/tenants", json=body), 409, "tenant_exists")
    for body in ({"id": "a b"}, {"id": ""}, {"id": "x", "weight": 0}, {"id": "x", "weight": 1e9}, {"name": "x"}):
        assert (await admin.post("/admin/v1/tenants", json=body)).status_code == 400, body
    assert_error(await admin.patch("/admin/v1/tenants/default", json={"state": "suspended"}), 409, "tenant_kept")
    assert_error(await admin.delete("/admin/v1/tenants/default"), 409, "tenant_kept")
    for path in ("keys/none", "tenants/none"):
        assert (await admin.get(f"/admin/v1/{path}")).status_code == 404
    assert keyed.services.keys.tenant("default") is not None


async def test_keys_of_the_environment_go_on_and_belong_to_the_built_in_tenant(keyed: RunningApp) -> None:
    assert (await asks(keyed, API_KEY)).status_code == 200
    async with keyed.http(ADMIN_KEY) as admin:
        await admin.post("/admin/v1/tenants", json={"id": "seen"})
        entry = (await admin.get("/admin/v1/audit?limit=1")).json()["data"][0]
    assert (entry["tenant"], entry["verb"], entry["object"]) == ("default", "tenant.create", "seen")
    assert entry["key_id"].startswith("env-")
    assert ADMIN_KEY not in json.dumps(entry)


async def test_a_key_opens_a_server_without_configured_keys_as_what_it_is(tmp_path: Path) -> None:
    async with start_app(tmp_path, admin_key=None, api_keys="") as running_app:
        async with running_app.http() as anybody:
            await anybody.post("/admin/v1/tenants", json={"id": "acme"})
            token = (await anybody.post("/admin/v1/keys", json={"tenant": "acme"})).json()["key"]
        async with running_app.http(token) as session:
            assert (await session.get("/v1/models")).status_code == 200
            assert_error(await session.get("/admin/v1/keys"), 403, "invalid_api_key")
        async with running_app.http(token, host="elsewhere.example") as session:
            assert (await session.get("/v1/models")).status_code == 200, "who has a key may come by any name"


async def test_prompts_are_salted_by_tenant(tmp_path: Path) -> None:
    async with start_app(tmp_path) as running_app:
        for tenant, group in (("a", None), ("b", None), ("c", "shared"), ("d", "shared")):
            await make_tenant(running_app, tenant, cache_group=group)
        tokens = [await make_key(running_app, tenant=tenant) for tenant in ("a", "a", "b", "c", "d")]
        salts = []
        for token in (*tokens, API_KEY, ADMIN_KEY):
            assert (await asks(running_app, token)).status_code == 200
            salts.append(running_app.engine.calls[-1][1]["cache_salt"])
        first, same, other, shared, too, *environment = salts
        assert first == same
        assert shared == too
        assert len({first, other, shared, *environment}) == 5
        async with running_app.http(ADMIN_KEY) as admin:
            await admin.patch("/admin/v1/tenants/d", json={"cache_group": None})
        await asks(running_app, tokens[-1])
        assert running_app.engine.calls[-1][1]["cache_salt"] != shared


async def test_the_command_line_makes_lists_rotates_and_revokes(tmp_path: Path) -> None:
    async with start_app(tmp_path / "app") as running_app, terminal(running_app, ADMIN_KEY) as run:
        made = await run("tenants", "create", "acme", "--name", "Acme", "--tokens-per-minute", 90000)
        assert made.stdout == "acme: active, weight 1, limits: tokens_per_minute 90000\n", made.output
        more = await run("tenants", "update", "acme", "--weight", 2, "--requests-per-minute", 50)
        assert more.stdout == "acme: active, weight 2, limits: requests_per_minute 50, tokens_per_minute 90000\n"
        created = await run(
            "keys", "create", "--tenant", "acme", "--models", "acme.*,base", "--models", "sql", "--blends", "own",
            "--tokens-per-minute", 60000, "--expires-in-days", 30,
        )  # fmt: skip
        token = created.stdout.strip()
        assert (created.exit_code, created.stdout.count("\n")) == (0, 1), created.output
        assert (await asks(running_app, token)).status_code == 200
        listed = await run("keys", "ls", "--tenant", "acme")
        assert all(word in listed.stdout for word in (key_id(token), "acme.*, base, sql", "own", "active"))
        assert token not in listed.stdout
        rotated = await run("keys", "rotate", key_id(token), "--overlap-hours", 1)
        asked = await asks(running_app, rotated.stdout.strip())
        assert asked.status_code == 200, asked.text
        assert (await run("keys", "revoke", key_id(token))).stdout == f"{key_id(token)} is revoked\n"
        assert_error(await asks(running_app, token), 401, "invalid_api_key")
        tenants = await run("tenants", "ls")
        assert "acme" in tenants.stdout
        assert "default" in tenants.stdout
        assert (await run("tenants", "rm", "acme")).stdout == "deleted acme, and revoked its keys\n"
        assert_error(await asks(running_app, rotated.stdout.strip()), 401, "invalid_api_key")
        refused = await run("keys", "create", "--tenant", "acme")
        assert (refused.exit_code, refused.stderr.partition(":")[0]) == (1, "tenant_not_found")
    assert cli_client.DEFAULT_URL


async def test_two_servers_of_one_database_agree_within_a_look(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.sqlite3'}"
    async with (
        start_app(tmp_path / "one", database_url=url) as one,
        start_app(tmp_path / "two", database_url=url) as two,
    ):
        token = await make_key(one)
        for status in (200, 401):
            async with asyncio.timeout(30):
                while (await asks(two, token)).status_code != status:
                    await asyncio.sleep(0.05)
            async with one.http(ADMIN_KEY) as admin:
                await admin.post(f"/admin/v1/keys/{key_id(token)}:revoke")


async def test_a_publisher_registers_names_in_scope_from_files_alone(keyed: RunningApp) -> None:
    token = await make_key(keyed, "publisher", "acme.*")
    folder = write_adapter(keyed.sources / "plain")
    async with keyed.http(token) as publisher:
        assert (await push(publisher, "acme.one", folder)).status_code == 201
        assert_error(await push(publisher, "zeta.one", folder), 403, "not_in_scope")
        body = {"name": "acme.two", "source": f"file://{folder}"}
        assert_error(await publisher.post("/admin/v1/adapters", json=body), 403, "not_in_scope")
        assert_error(await publisher.post("/admin/v1/adapters:validate", json=body), 403, "not_in_scope")
        put = {"targets": [{"model": "acme.one", "weight": 1}]}
        assert (await publisher.put("/admin/v1/aliases/acme.alias", json=put)).status_code == 201
        assert_error(await publisher.put("/admin/v1/aliases/zeta.alias", json=put), 403, "not_in_scope")
        assert (await publisher.delete("/admin/v1/aliases/acme.alias")).status_code == 200
        assert (await publisher.delete("/admin/v1/adapters/acme.one")).status_code == 200
