"""SIGKILL between the row of an upload and its probe: nobody is served it before it has answered."""

import asyncio
import dataclasses
import signal
import sys
from pathlib import Path

import httpx
import pytest

from amalgam.domain.version import VersionDraft
from amalgam.engine.protocol import LoadableVersion
from amalgam.errors.engine import EngineNotReady
from tests.api.fake_engine import FakeEngine
from tests.faults.unproved_victim import STEPS
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, push, start_app, write_adapter

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


async def killed(folder: Path, adapter: Path, step: str) -> None:
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.unproved_victim", folder, adapter, step, cwd=Path(__file__).parents[2]
    )
    async with asyncio.timeout(120):
        assert await victim.wait() == -signal.SIGKILL


async def served_names(client: httpx.AsyncClient) -> set[str]:
    return {card["id"] for card in (await client.get("/v1/models")).json()["data"]}


async def status_of(client: httpx.AsyncClient, model: str) -> int:
    return (await client.post("/v1/chat/completions", json=CHAT | {"model": model})).status_code


async def settled(running_app: RunningApp) -> None:
    """Nothing is left that waits for its proof."""
    versions = (await running_app.stored()).versions
    async with asyncio.timeout(20):
        while await versions.unproved():
            await asyncio.sleep(0.02)
    await running_app.services.catalog.refresh()


@pytest.mark.parametrize("step", STEPS)
async def test_it_is_proved_by_the_next_server_and_served_by_none_before(step: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", seed=1)
    await killed(tmp_path / "running_app", adapter, step)
    engine = FakeEngine(current="starting")
    async with start_app(tmp_path / "running_app", engine) as running_app, running_app.http(ADMIN_KEY) as client:
        assert await served_names(client) == {"tiny"}
        # The engine is not there yet either; the name is what is unknown.
        assert [await status_of(client, model) for model in ("sql", "sql@1")] == [404, 404]
        assert engine.probed == []
        engine.current = "ready"
        await settled(running_app)
        assert engine.probed == ["sql@1"]
        assert await status_of(client, "sql@1") == 200
        # Its caller was told nothing, and asks again: the same version, now the one that its name means.
        async with (await running_app.stored()).database.write() as connection:
            await connection.exec_driver_sql("UPDATE idempotency_keys SET lease_expires_at = '2020-01-01 00:00:00'")
        client.headers["Idempotency-Key"] = "once"
        again = await push(client, "sql", adapter)
        assert (again.status_code, again.json()["model"]) == (201, "sql@1"), again.text
        assert await status_of(client, "sql") == 200
    async with start_app(tmp_path / "running_app", FakeEngine()) as running_app, running_app.http(API_KEY) as client:
        assert await status_of(client, "sql") == 200
        await settled(running_app)
        assert running_app.engine.probed == []


async def test_one_that_does_not_answer_is_withdrawn_and_stops_no_other(tmp_path: Path) -> None:
    await killed(tmp_path / "running_app", write_adapter(tmp_path / "adapter", seed=1), "before its probe")
    async with start_app(tmp_path / "running_app", FakeEngine(current="starting")) as running_app:
        versions = (await running_app.stored()).versions
        [version] = await versions.unproved()
        fields = {
            f.name: getattr(version, f.name) for f in dataclasses.fields(VersionDraft) if hasattr(version, f.name)
        }
        other = VersionDraft(**fields | {"name": "json"})
        await versions.create_version(other, set_default=False, proved=False)
    engine = FakeEngine(refuse_probe={"sql@1"})
    async with start_app(tmp_path / "running_app", engine) as running_app, running_app.http(ADMIN_KEY) as client:
        await settled(running_app)
        assert [await status_of(client, model) for model in ("sql@1", "json@1")] == [404, 200]
        assert [resident.engine_name for resident in engine.info().residents] == ["json@1"]
        assert (await client.get("/admin/v1/adapters/sql")).status_code == 404


class Restarting(FakeEngine):
    """Dies under the first probe that it is asked for."""

    async def probe(self, version: LoadableVersion) -> None:
        await super().probe(version)
        if len(self.probed) == 1:
            raise EngineNotReady("restarting")


async def test_a_proof_that_the_engine_does_not_live_to_give_is_tried_again(tmp_path: Path) -> None:
    await killed(tmp_path / "running_app", write_adapter(tmp_path / "adapter", seed=1), "before its probe")
    async with start_app(tmp_path / "running_app", Restarting()) as running_app, running_app.http(ADMIN_KEY) as client:
        await settled(running_app)
        assert running_app.engine.probed == ["sql@1", "sql@1"]
        assert await status_of(client, "sql@1") == 200


async def test_a_default_that_has_not_answered_leaves_the_other_names_alone(tmp_path: Path) -> None:
    async with start_app(tmp_path / "running_app") as running_app, running_app.http(ADMIN_KEY) as client:
        assert (await push(client, "json", write_adapter(tmp_path / "json", seed=3))).status_code == 201
    await killed(tmp_path / "running_app", write_adapter(tmp_path / "adapter", seed=1), "before its probe")
    async with (
        start_app(tmp_path / "running_app", FakeEngine(current="starting")) as running_app,
        running_app.http(ADMIN_KEY) as client,
    ):
        moved = await client.patch("/admin/v1/adapters/sql", json={"default_version": 1})
        assert moved.status_code == 200, moved.text
    async with (
        start_app(tmp_path / "running_app", FakeEngine(current="starting")) as running_app,
        running_app.http(ADMIN_KEY) as client,
    ):
        assert await served_names(client) >= {"tiny", "json"}
        assert "sql" not in await served_names(client)
