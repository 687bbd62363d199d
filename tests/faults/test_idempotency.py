"""Requests that are sent again.

| fault | what happens | test |
|---|---|---|
| F16 | same idempotency key, same body, 32 at once | `test_32_at_once_are_one`, `test_one_of_32_holds_a_key` |
| F17 | same key, other body: 422 | `test_a_key_of_another_request` |
| F18 | kill after the effect, before the key is stored | `test_killed_between_the_effect_and_its_answer` |
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from amalgam.domain.idempotency import KeptAnswer
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.idempotency import IdempotencyRegistry
from amalgam.services import idempotency
from tests.registry_fixtures import FakeClock, draft
from tests.support.running_app import ADMIN_KEY, assert_error, push, served, start_app, write_adapter

VICTIM = Path(__file__).with_name("server_victim.py")
KEY = {"Idempotency-Key": "4711"}


async def test_32_at_once_are_one(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", seed=3)
    async with start_app(tmp_path / "running_app") as running_app, served(running_app.app) as url:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"} | KEY
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            answers = await asyncio.gather(*(push(http, "sql", adapter, set_default="false") for _ in range(32)))
        assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers]
        assert len({answer.content for answer in answers}) == 1
        assert sorted(answer.headers.get("idempotency-replayed", "") for answer in answers) == [""] + ["true"] * 31
        assert running_app.engine.probed == ["sql@1"]
        assert [version.number for version in (await running_app.services.adapters.get("sql")).versions] == [1]
        assert running_app.staged() == []


async def test_a_key_of_another_request(tmp_path: Path) -> None:
    one, other = write_adapter(tmp_path / "one", seed=1), write_adapter(tmp_path / "other", seed=2)
    async with start_app(tmp_path / "running_app") as running_app, running_app.http(ADMIN_KEY) as http:
        http.headers.update(KEY)
        first = await push(http, "sql", one)
        assert first.status_code == 201
        assert_error(await push(http, "sql", other), 422, "idempotency_key_reused")
        assert_error(await push(http, "sqm", one), 422, "idempotency_key_reused")
        assert_error(await http.post("/admin/v1/adapters/sql:load"), 422, "idempotency_key_reused")
        assert (await push(http, "sql", one)).headers["idempotency-replayed"] == "true"
        assert [version.number for version in (await running_app.services.adapters.get("sql")).versions] == [1]
    # A restart forgets no key.
    async with start_app(tmp_path / "running_app") as running_app, running_app.http(ADMIN_KEY) as http:
        http.headers.update(KEY)
        assert_error(await push(http, "sql", other), 422, "idempotency_key_reused")
        assert (await push(http, "sql", one)).content == first.content


async def test_killed_between_the_effect_and_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is there, unknown to its caller; the retry finds it, proves it, and makes no second one."""
    adapter, folder = write_adapter(tmp_path / "adapter", seed=5), tmp_path / "running_app"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    victim = await asyncio.create_subprocess_exec(
        sys.executable, str(VICTIM), str(folder), str(adapter), KEY["Idempotency-Key"], env=environment
    )
    assert await asyncio.wait_for(victim.wait(), 60) == -signal.SIGKILL
    monkeypatch.setattr(idempotency, "WAIT_S", 0.1)
    async with start_app(folder) as running_app, running_app.http(ADMIN_KEY) as http:
        http.headers.update(KEY)
        left = (await running_app.services.adapters.get("sql")).versions
        assert [version.number for version in left] == [1]
        # Its holder may be alive for all that anyone knows, until its lease ends.
        early = await push(http, "sql", adapter, set_default="false")
        assert_error(early, 409, "idempotency_in_progress")
        assert early.headers["retry-after"] == "1"
        assert "x-should-retry" not in early.headers
        async with (await running_app.stored()).database.write() as connection:
            await connection.exec_driver_sql("UPDATE idempotency_keys SET lease_expires_at = '2020-01-01 00:00:00'")
        retried = await push(http, "sql", adapter, set_default="false")
        assert (retried.status_code, retried.json()["model"]) == (201, "sql@1")
        assert running_app.engine.probed == ["sql@1"]
        again = await push(http, "sql", adapter, set_default="false")
        assert (again.content, again.headers["idempotency-replayed"]) == (retried.content, "true")
        assert (await running_app.services.adapters.get("sql")).versions == left
        assert running_app.staged() == []
        # Another request with these very bytes makes another version: only the key made the two one.
        http.headers["Idempotency-Key"] = "0815"
        assert (await push(http, "sql", adapter, set_default="false")).json()["model"] == "sql@2"


class TestRegistry:
    """On every database."""

    @pytest.fixture
    def keys(self, database: Database, clock: FakeClock) -> IdempotencyRegistry:
        return IdempotencyRegistry(database, clock)

    async def test_one_of_32_holds_a_key(self, keys: IdempotencyRegistry) -> None:
        begun = await asyncio.gather(*(keys.begin("k" * 64, f"h{n}", lease_s=10, keep_s=60) for n in range(32)))
        assert sorted((one.is_ours, one.is_running) for one in begun) == [(False, True)] * 31 + [(True, False)]

    async def test_a_key_is_held_renewed_answered_and_forgotten(
        self, keys: IdempotencyRegistry, clock: FakeClock
    ) -> None:
        answer = KeptAnswer("f" * 64, 201, (("content-type", "application/json"),), b"{}\x00")
        assert (await keys.begin("k", "first", lease_s=10, keep_s=3600)).is_ours
        clock.advance(9)
        await keys.renew("k", "first", lease_s=10)
        clock.advance(9)
        assert (await keys.begin("k", "second", lease_s=10, keep_s=3600)).is_running
        clock.advance(1)
        assert (await keys.begin("k", "second", lease_s=10, keep_s=3600)).is_ours
        # The first one slept: nothing that it says counts any more.
        await keys.finish("k", "first", answer)
        await keys.release("k", "first")
        assert (await keys.look("k")).is_running
        await keys.finish("k", "second", answer)
        await keys.release("k", "second")
        assert (await keys.begin("k", "third", lease_s=10, keep_s=3600)).answer == answer
        clock.advance(3600)
        assert (await keys.begin("k", "third", lease_s=10, keep_s=3600)).is_ours
        await keys.release("k", "third")
        assert (await keys.begin("k", "fourth", lease_s=10, keep_s=3600)).is_ours
        clock.advance(3599)
        assert await keys.remove_older(3600) == 0
        clock.advance(1)
        assert await keys.remove_older(3600) == 1

    async def test_a_retry_finds_what_its_key_made_and_only_that(
        self, keys: IdempotencyRegistry, registry: AdapterRegistry
    ) -> None:
        await keys.begin("k", "first", lease_s=10, keep_s=60)
        made = await registry.create_version(draft(number=1, request_key="k"), set_default=False)
        again = await registry.create_version(draft(number=1, request_key="k"), set_default=False)
        assert again == made
        assert (await registry.create_version(draft(number=2, request_key="k"), set_default=False)).version.number == 2
        assert (await registry.create_version(draft(number=1), set_default=False)).version.number == 3
        await registry.delete_version("sql", 3)
        await registry.delete_version("sql", 2)
        assert (await registry.create_version(draft(number=2, request_key="k"), set_default=False)).version.number == 4
