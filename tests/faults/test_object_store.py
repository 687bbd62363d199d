"""Two servers whose adapters lie in one bucket, and what becomes of them when it is slow, failing, lying or losing.

| fault of the object store | test |
|---|---|
| F35 slow or silent: hot adapters go on, a cold one is 503 in time | `test_a_silent_store_*` |
| F36 failing: the same, and an upload loses nothing | `test_a_failing_store_*` |
| F37 lying: wrong bytes are never loaded | `test_wrong_or_lost_files_*` |
| F38 losing: a coded 500, and `verify` names it | `test_wrong_or_lost_files_*` |
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest

from amalgam.registry.kept_objects import KeptObjectRegistry
from amalgam.services.retention import Retention
from tests.support.forwarder import Forwarder, forwarder
from tests.support.object_store import ADDRESS, give_credentials, names_in, objects_of, s3_server
from tests.support.postgres import Cluster, cluster
from tests.support.replicas import Replica, fresh_database, replica
from tests.support.running_app import ADMIN_KEY, assert_error, push, start_app, write_adapter

ANSWER_S = 3.0


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster") / "postgres") as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@dataclass
class Hosts:
    """Two servers without a common folder."""

    first: Replica
    second: Replica
    line: Forwarder
    """Between the second one and the object store."""
    s3: str
    folder: Path

    async def register(self, name: str, seed: int = 1) -> str:
        """A version of ``name`` at the first one; its digest."""
        there = await push(self.first.admin, name, write_adapter(self.folder / f"made-{name}", seed=seed))
        assert there.status_code == 201, there.text
        return self.first.app.services.catalog.snapshot.versions[f"{name}@1"].digest


@pytest.fixture
async def hosts(
    postgres: Cluster, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Hosts]:
    give_credentials(monkeypatch)
    for name in names_in(server):
        obstore.delete(objects_of(server), name)
    url = f"postgresql://amalgam@127.0.0.1:{postgres.port}/{await fresh_database(postgres)}"
    async with AsyncExitStack() as stack:
        line = await stack.enter_async_context(forwarder(int(server.rpartition(":")[2])))

        async def started(name: str, endpoint: str) -> Replica:
            changes = {"bucket": ADDRESS, "object_endpoint": endpoint, "load_timeout_s": ANSWER_S}
            opening = replica(tmp_path / name, tmp_path / name / "copies", url, **changes)
            return await stack.enter_async_context(opening)

        first = await started("first", server)
        second = await started("second", f"http://127.0.0.1:{line.port}")
        yield Hosts(first, second, line, server, tmp_path)
        line.let_flow()


async def test_what_one_host_has_another_answers_with(hosts: Hosts) -> None:
    digest = await hosts.register("sql")
    answer = await hosts.second.ask("sql")
    assert answer.status_code == 200, answer.text
    assert {f"objects/{digest}/adapter_config.json", f"objects/{digest}/adapter_model.safetensors"} <= names_in(
        hosts.s3
    )
    blend = await hosts.second.ask("sql + 0.5*sql")
    assert blend.status_code != 500, blend.text


async def test_a_silent_store_stops_nothing_that_is_here_and_the_rest_is_503_in_time(hosts: Hosts) -> None:
    await hosts.register("hot")
    await hosts.register("cold", seed=2)
    assert (await hosts.second.ask("hot")).status_code == 200
    hosts.line.hold_up()
    waits = asyncio.create_task(hosts.second.ask("cold"))
    assert (await hosts.second.ask("hot")).status_code == 200
    assert not waits.done()
    assert_error(await waits, 503, "object_store_unavailable")
    assert "retry-after" in (await waits).headers
    hosts.line.let_flow()
    async with asyncio.timeout(30):
        while (await hosts.second.ask("cold")).status_code != 200:
            await asyncio.sleep(0.1)


async def test_a_failing_store_loses_no_upload_and_names_none(hosts: Hosts) -> None:
    hosts.line.cut_on_request = lambda piece: True
    folder = write_adapter(hosts.folder / "made")
    assert_error(await push(hosts.second.admin, "sql", folder), 503, "object_store_unavailable")
    assert_error(await hosts.second.ask("sql"), 404, "model_not_found")
    hosts.line.cut_on_request = None
    assert (await push(hosts.second.admin, "sql", folder)).status_code == 201
    assert (await hosts.first.ask("sql")).status_code == 200


@pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "wrong"])
async def test_wrong_or_lost_files_are_never_loaded_and_verify_names_them(hosts: Hosts, is_lost: bool) -> None:
    digest = await hosts.register("sql")
    key = f"objects/{digest}/adapter_model.safetensors"
    if is_lost:
        obstore.delete(objects_of(hosts.s3), key)
    else:
        obstore.put(objects_of(hosts.s3), key, b"other bytes")
    assert_error(await hosts.second.ask("sql"), 500, "artifact_damaged")
    assert "sql@1" not in hosts.second.residents
    checked = await hosts.first.admin.post("/admin/v1/adapters/sql:verify")
    assert checked.status_code == 200
    assert "false" in checked.text.lower()
    # The host that has a sound copy goes on answering with it.
    assert (await hosts.first.ask("sql")).status_code == 200


async def test_what_was_deleted_leaves_the_bucket_when_its_time_is_over(hosts: Hosts) -> None:
    gone, stays = await hosts.register("gone"), await hosts.register("stays", seed=2)
    assert (await hosts.first.admin.delete("/admin/v1/adapters/gone")).status_code == 200
    stored = await hosts.first.app.stored()
    clock = stored.database.clock
    retention = Retention(stored.versions, stored.files, clock, kept=KeptObjectRegistry(stored.database, clock))
    report = await retention.sweep(grace_s=0.0)
    assert report.objects.count(gone) >= 1
    left = {name.split("/")[1] for name in names_in(hosts.s3)}
    assert left == {stays}


async def test_a_merge_that_a_worker_builds_lies_in_the_bucket(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_credentials(monkeypatch)
    async with (
        start_app(tmp_path, worker=True, store=tmp_path / "copies", bucket=ADDRESS, object_endpoint=server) as app,
        app.http(ADMIN_KEY) as admin,
    ):
        for name, seed in (("a", 1), ("b", 2)):
            assert (await push(admin, name, write_adapter(tmp_path / name, seed=seed))).status_code == 201
        order = {"name": "c", "expression": "a + b"}
        made = await admin.post("/admin/v1/merges?wait_s=60", json=order, timeout=90)
        assert made.status_code in (200, 201), made.text
        digest = app.services.catalog.snapshot.versions["c@1"].digest
        assert f"objects/{digest}/adapter_config.json" in names_in(server)
