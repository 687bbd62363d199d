"""A key that is changed: name, scopes, limits and end; and one that is suspended for a while."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.test_terminal import terminal
from tests.support.keys import key_id, make_key, make_tenant
from tests.support.running_app import ADMIN_KEY, RunningApp, assert_error, push, start_app, write_adapter

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path_factory.mktemp("key_changes")) as running_app:
        await make_tenant(running_app, "acme")
        async with running_app.http(ADMIN_KEY) as admin:
            assert (await push(admin, "sql", write_adapter(running_app.sources / "sql"))).status_code == 201
        yield running_app


@pytest.fixture
async def admin(running: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with running.http(ADMIN_KEY) as session:
        yield session


async def asks(running: RunningApp, token: str, model: str = "tiny") -> httpx.Response:
    async with running.http(token) as session:
        return await session.post("/v1/chat/completions", json=CHAT | {"model": model})


def at(token: str) -> str:
    return f"/admin/v1/keys/{key_id(token)}"


async def test_what_is_given_changes_and_the_rest_stays(running: RunningApp, admin: httpx.AsyncClient) -> None:
    token = await make_key(running, "publisher", "sql", blends="own", limits={"tokens_per_day": 9}, name="one")
    before = (await admin.get(at(token))).json()
    changed = await admin.patch(at(token), json={"name": "two"})
    assert changed.status_code == 200, changed.text
    assert changed.json() == before | {"name": "two"}
    assert (await admin.get(at(token))).json() == changed.json()
    assert (await admin.patch(at(token), json={})).json() == changed.json()
    nothing = {"name": None, "models": None, "blends": None, "limits": None, "state": None}
    assert (await admin.patch(at(token), json=nothing)).json() == changed.json()
    assert "key" not in changed.json(), "no secret is shown a second time"
    entry = (await admin.get("/admin/v1/audit?limit=10")).json()["data"]
    assert [one["verb"] for one in entry if one["object"] == key_id(token)][:1] == ["key.change"]


async def test_scopes_and_limits_hold_for_the_next_request(running: RunningApp, admin: httpx.AsyncClient) -> None:
    token = await make_key(running, "client", "sql")
    assert_error(await asks(running, token), 403, "not_in_scope")
    await admin.patch(at(token), json={"models": ["base"]})
    assert (await asks(running, token)).status_code == 200
    assert_error(await asks(running, token, "sql"), 404, "model_not_found")
    await admin.patch(at(token), json={"limits": {"requests_per_minute": 1}})
    assert [(await asks(running, token)).status_code for _ in range(2)] == [200, 429]
    await admin.patch(at(token), json={"limits": {}})
    assert (await asks(running, token)).status_code == 200


async def test_a_suspended_key_opens_nothing_until_it_is_active(running: RunningApp, admin: httpx.AsyncClient) -> None:
    token = await make_key(running, "publisher")
    assert (await admin.patch(at(token), json={"state": "suspended"})).json()["state"] == "suspended"
    assert_error(await asks(running, token), 403, "key_suspended")
    assert_error(await admin.post(f"{at(token)}:rotate"), 409, "key_not_live")
    assert (await admin.patch(at(token), json={"state": "active"})).json()["state"] == "active"
    assert (await asks(running, token)).status_code == 200
    await admin.patch(at(token), json={"state": "suspended"})
    assert (await admin.post(f"{at(token)}:revoke")).json()["state"] == "revoked"
    assert_error(await asks(running, token), 401, "invalid_api_key")


async def test_an_end_is_set_moved_and_taken_away(running: RunningApp, admin: httpx.AsyncClient) -> None:
    token = await make_key(running)
    assert (await admin.patch(at(token), json={"expires_in_s": 0.05})).json()["expires_at"] is not None
    async with asyncio.timeout(30):
        while (answer := await asks(running, token)).status_code == 200:
            await asyncio.sleep(0.02)
    assert_error(answer, 401, "key_expired")
    later = (await admin.patch(at(token), json={"expires_in_s": 3600})).json()["expires_at"]
    assert (await asks(running, token)).status_code == 200
    assert (await admin.patch(at(token), json={"name": "x"})).json()["expires_at"] == later
    assert (await admin.patch(at(token), json={"expires_in_s": None})).json()["expires_at"] is None


async def test_a_key_that_has_ended_or_given_way_is_not_brought_back(
    running: RunningApp, admin: httpx.AsyncClient
) -> None:
    gone, old = await make_key(running), await make_key(running)
    await admin.post(f"{at(gone)}:revoke")
    for change in ({"state": "active"}, {"name": "x"}):
        assert_error(await admin.patch(at(gone), json=change), 409, "key_not_live")
    assert (await admin.post(f"{at(old)}:rotate", json={"overlap_s": 60})).status_code == 200
    assert_error(await admin.patch(at(old), json={"expires_in_s": None}), 409, "key_not_live")
    assert (await admin.patch(at(old), json={"limits": {"requests_per_minute": 5}})).status_code == 200


async def test_what_cannot_be_is_refused_with_its_field(running: RunningApp, admin: httpx.AsyncClient) -> None:
    token, operator = await make_key(running), await make_key(running, "admin")
    before = (await admin.get(at(token))).json()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"role": "admin"}, "role"), ({"tenant": "default"}, "tenant"), ({"state": "revoked"}, "state"),
        ({"models": []}, "models"), ({"models": ["a+b"]}, "models.0"), ({"blends": "some"}, "blends"),
        ({"expires_in_s": 0}, "expires_in_s"), ({"limits": {"tokens_per_day": 0}}, "limits.tokens_per_day"),
        ({"name": "x" * 257}, "name"), ({"key": "x"}, "key"),
    ]  # fmt: skip
    for body, param in cases:
        error = assert_error(await admin.patch(at(token), json=body), 400, "invalid_value")
        assert error["param"] == param, error
    assert (await admin.get(at(token))).json() == before
    assert_error(await admin.patch(at(operator), json={"models": ["sql"]}), 400, "scopes_unfit")
    assert_error(await admin.patch("/admin/v1/keys/none", json={"name": "x"}), 404, "key_not_found")
    async with running.http(await make_key(running, "publisher")) as publisher:
        assert_error(await publisher.patch(at(token), json={"models": ["*"]}), 403, "invalid_api_key")


async def test_the_command_line_changes_keys_and_limits_tenants_by_name(tmp_path: Path) -> None:
    async with start_app(tmp_path / "app") as running_app, terminal(running_app, ADMIN_KEY) as run:
        await make_tenant(running_app, "acme")
        token = await make_key(running_app, "client", "base", limits={"requests_per_minute": 5})
        changed = await run(
            "keys", "update", key_id(token), "--models", "acme.*,base", "--blends", "none", "--name", "n",
            "--tokens-per-day", 70, "--stored-bytes", 1000, "--expires-in-days", 1,
        )  # fmt: skip
        assert changed.exit_code == 0, changed.output
        assert "models acme.*, base, blends none" in changed.stdout
        assert "limits: requests_per_minute 5, tokens_per_day 70, stored_bytes 1000" in changed.stdout
        open_again = ("--no-limit", "requests-per-minute", "--no-limit", "stored_bytes", "--never-expires")
        fewer = await run("keys", "update", key_id(token), *open_again)
        assert fewer.stdout.endswith("models acme.*, base, blends none, limits: tokens_per_day 70\n"), fewer.output
        assert "expires" not in fewer.stdout
        suspended = await run("keys", "update", key_id(token), "--state", "suspended")
        assert suspended.stdout.startswith(f"{key_id(token)}: suspended"), suspended.output
        listed = await run("keys", "ls")
        assert all(word in listed.stdout for word in ("suspended", "tokens_per_day 70", "0 B")), listed.output
        for wrong in (("--no-limit", "speed"), ("--never-expires", "--expires-in-days", 3)):
            refused = await run("keys", "update", key_id(token), *wrong)
            assert (refused.exit_code, refused.stderr.partition(":")[0]) == (2, "invalid_value"), refused.output
        by_name = await run("tenants", "limit", "acme", "sql*", "--requests-per-minute", 3, "--tokens-per-day", 5)
        assert by_name.stdout.endswith("limits: none; sql*: requests_per_minute 3, tokens_per_day 5\n"), by_name.output
        more = await run("tenants", "limit", "acme", "base", "--concurrent-requests", 1)
        assert "sql*: requests_per_minute 3, tokens_per_day 5; base: concurrent_requests 1" in more.stdout, more.output
        less = await run("tenants", "limit", "acme", "sql*", "--no-limit", "requests-per-minute")
        assert "sql*: tokens_per_day 5; base" in less.stdout, less.output
        gone = await run("tenants", "limit", "acme", "sql*", "--no-limit", "tokens-per-day")
        assert gone.stdout.endswith("limits: none; base: concurrent_requests 1\n"), gone.output
        stored = await run("tenants", "update", "acme", "--stored-bytes", 2000000)
        assert "limits: stored_bytes 2000000" in stored.stdout, stored.output
        unlimited = await run("tenants", "update", "acme", "--no-limit", "stored-bytes")
        assert unlimited.stdout.endswith("limits: none; base: concurrent_requests 1\n"), unlimited.output
