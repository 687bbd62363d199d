"""The database goes away under the real application, in every way that a database can: F31 to F34.

Inference goes on, admin calls are refused in time, a scrape is answered and says how stale the server is, and all of it
heals without a restart. What is measured are limits that users have, with room for a busy machine.

| fault | what happens | test |
|---|---|---|
| F31 | the database is restarted | `test_an_outage_is_survived[stopped]` |
| F32 | it stands still, and says nothing | `test_an_outage_is_survived[frozen]` |
| F33 | every connection is cut, new ones are refused | `test_an_outage_is_survived[cut]` |
| F34 | a partition: packets go nowhere | `test_an_outage_is_survived[partitioned]` |
| | cut in the middle of a commit | `test_a_commit_whose_answer_is_lost_happens_once` |
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.errors.registry import RegistryFailed, RegistryUnavailable
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from tests.support.forwarder import Forwarder, forwarder
from tests.support.postgres import Cluster, cluster
from tests.support.running_app import (
    ADMIN_KEY,
    API_KEY,
    RunningApp,
    assert_error,
    push,
    served,
    start_app,
    write_adapter,
)

pytestmark = pytest.mark.slow
logger = logging.getLogger(__name__)

REFUSED_S = 3.0
"""An admin call is refused within."""
SCRAPE_S = 1.0
ROOM_S = 1.0
"""For the tests beside this one on a busy machine."""
ASK: Any = {"model": "sql", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster") / "postgres") as running:
        yield running


@dataclass
class Scene:
    postgres: Cluster
    line: Forwarder
    running_app: RunningApp
    admin: httpx.AsyncClient
    client: httpx.AsyncClient


@pytest.fixture
async def scene(postgres: Cluster, tmp_path: Path) -> AsyncIterator[Scene]:
    """An application whose registry is behind a line that can be cut, with the adapter ``sql`` in service."""
    async with (
        forwarder(postgres.port) as line,
        start_app(tmp_path, database_url=postgres.url_at(line.port)) as running_app,
        served(running_app.app) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=20) as admin,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {API_KEY}"}, timeout=20) as client,
    ):
        there = await push(admin, "sql", write_adapter(tmp_path / "sql", seed=1))
        assert there.status_code in (200, 201), there.text
        yield Scene(postgres, line, running_app, admin, client)
        line.let_flow()
        for name in [entry["name"] for entry in (await admin.get("/admin/v1/adapters")).json()["data"]]:
            await admin.delete(f"/admin/v1/adapters/{name}")


async def stopped(scene: Scene) -> Callable[[], Awaitable[None]]:
    await asyncio.to_thread(scene.postgres.stop)
    return lambda: asyncio.to_thread(scene.postgres.start)


async def frozen(scene: Scene) -> Callable[[], Awaitable[None]]:
    scene.postgres.freeze()
    return lambda: asyncio.to_thread(scene.postgres.thaw)


async def cut(scene: Scene) -> Callable[[], Awaitable[None]]:
    scene.line.target_port, kept = 1, scene.line.target_port
    scene.line.cut()

    async def mend() -> None:
        scene.line.target_port = kept

    return mend


async def partitioned(scene: Scene) -> Callable[[], Awaitable[None]]:
    scene.line.hold_up()

    async def mend() -> None:
        scene.line.let_flow()

    return mend


async def timed(call: Awaitable[httpx.Response], limit_s: float) -> httpx.Response:
    began = time.monotonic()
    answer = await call
    took_s = time.monotonic() - began
    logger.info("seen path=%s status=%d took_s=%.2f", answer.request.url.path, answer.status_code, took_s)
    assert took_s <= limit_s + ROOM_S
    return answer


def sample(page: httpx.Response, name: str) -> float:
    assert page.status_code == 200
    [line] = [line for line in page.text.splitlines() if line.split(" ")[0] == name]
    return float(line.rsplit(" ", 1)[1])


@pytest.mark.parametrize("outage", [stopped, frozen, cut, partitioned])
async def test_an_outage_is_survived(outage: Callable[[Scene], Awaitable[Any]], scene: Scene, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", seed=2)
    admin, client = scene.admin, scene.client
    async with asyncio.timeout(10):
        while sample(await admin.get("/metrics"), "amalgam_registry_up") != 1:
            await asyncio.sleep(0.1)
    assert sample(await admin.get("/metrics"), "amalgam_registry_staleness_seconds") < 5
    mend = await outage(scene)
    began = time.monotonic()
    try:
        calls: list[Callable[[], Awaitable[httpx.Response]]] = [
            lambda: admin.get("/admin/v1/adapters"),
            lambda: admin.get("/admin/v1/jobs"),
            lambda: admin.delete("/admin/v1/adapters/sql"),
            lambda: push(admin, "other", other),
            lambda: admin.post("/admin/v1/merges", json={"name": "mix", "expression": "0.5*sql"}),
        ]
        for _ in range(2):
            # One after the other, and then all at once on every connection of the pool and more.
            for call in calls:
                assert_error(await timed(call(), REFUSED_S), 503, "registry_unavailable")
        for answer in await asyncio.gather(*(timed(calls[n % len(calls)](), REFUSED_S) for n in range(25))):
            assert_error(answer, 503, "registry_unavailable")
            assert answer.headers["retry-after"]
        answered = await asyncio.gather(*(client.post("/v1/chat/completions", json=ASK) for _ in range(10)))
        assert [answer.status_code for answer in answered] == [200] * 10
        async with asyncio.timeout(10):
            while sample(page := await timed(admin.get("/metrics"), SCRAPE_S), "amalgam_registry_up") != 0:
                await asyncio.sleep(0.1)
        assert sample(page, "amalgam_registry_staleness_seconds") >= (time.monotonic() - began) - 4
        assert 'amalgam_jobs{kind="merge",state="queued"}' in page.text, "what was counted last stays"
        ready = await timed(admin.get("/readyz"), SCRAPE_S)
        assert (ready.status_code, ready.json()["status"]) == (200, "ready"), "an outage ends no loop"
        async with asyncio.timeout(10):
            while (await admin.get("/readyz")).json().get("registry_staleness_s", 0.0) < 5:
                await asyncio.sleep(0.1)
    finally:
        await mend()
    began = time.monotonic()
    async with asyncio.timeout(20):
        while (await push(admin, "other", other)).status_code not in (200, 201):
            await asyncio.sleep(0.1)
        while sample(await admin.get("/metrics"), "amalgam_registry_up") != 1:
            await asyncio.sleep(0.1)
        while sample(await admin.get("/metrics"), "amalgam_registry_staleness_seconds") > 5:
            await asyncio.sleep(0.1)
        assert (await admin.get("/readyz")).json() == {"status": "ready"}
        # The line on which changes are told is there again too.
        while sample(await admin.get("/metrics"), "amalgam_registry_notices_up") != 1:
            await asyncio.sleep(0.1)
    logger.info("seen healed_after_s=%.2f", time.monotonic() - began)
    assert (await client.post("/v1/chat/completions", json=ASK | {"model": "other"})).status_code == 200
    names = {entry["name"] for entry in (await admin.get("/admin/v1/adapters")).json()["data"]}
    assert names == {"sql", "other"}, "what was refused did not happen"


async def test_a_commit_whose_answer_is_lost_happens_once(scene: Scene, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lost", seed=3)
    scene.admin.headers["Idempotency-Key"] = "once"
    writes = {"versions": False, "cut": False}

    def is_commit_of_the_version(piece: bytes) -> bool:
        writes["versions"] |= b"INSERT INTO versions" in piece
        found = writes["versions"] and b"COMMIT" in piece and not writes["cut"]
        # The line is cut a moment later, and other commits may pass until then.
        writes["cut"] |= found
        return found

    scene.line.cut_on_request = is_commit_of_the_version
    lost = await push(scene.admin, "lost", folder)
    assert scene.line.cuts == 1
    assert_error(lost, 503, "registry_unavailable")
    assert "may have recorded it" in lost.json()["error"]["message"]
    assert "nothing was changed" not in lost.json()["error"]["message"]
    scene.line.cut_on_request = None
    async with asyncio.timeout(20):
        while (again := await push(scene.admin, "lost", folder)).status_code in (503, 409):
            await asyncio.sleep(0.1)
    assert again.status_code == 201, again.text
    del scene.admin.headers["Idempotency-Key"]
    shown = (await scene.admin.get("/admin/v1/adapters/lost")).json()
    assert [version["version"] for version in shown["versions"]] == [1]
    assert (await scene.client.post("/v1/chat/completions", json=ASK | {"model": "lost"})).status_code == 200


async def test_a_waiting_writer_of_a_frozen_server_does_not_keep_others_out(postgres: Cluster) -> None:
    """A server that stands still in the middle of a write gives the lock up after the time that others wait for it."""
    async with (
        # Between two statements of a server that runs, a busy machine may take a second.
        Database.open(postgres.url, busy_timeout_s=0.5, answer_timeout_s=2.5) as stands_still,
        Database.open(postgres.url, busy_timeout_s=20) as other,
    ):
        held = stands_still.write()
        await held.__aenter__()
        # Nothing is asked of its connection from here on, as of a process under SIGSTOP.
        began = time.monotonic()
        async with other.write():
            assert time.monotonic() - began < 10
        with pytest.raises(RegistryUnavailable):
            await held.__aexit__(None, None, None)


async def test_a_cancelled_reader_of_a_silent_database_ends(postgres: Cluster) -> None:
    async with forwarder(postgres.port) as line, Database.open(postgres.url_at(line.port)) as database:
        registry = AdapterRegistry(database, None)  # type: ignore[arg-type]
        await registry.revision()
        line.hold_up()
        task = asyncio.create_task(registry.revision())
        await asyncio.sleep(0.3)
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The driver asks the silent server to cancel, and gives that up after five seconds.
        assert time.monotonic() - began < 8
        line.let_flow()


async def test_a_statement_that_nobody_foresaw_is_an_error_of_the_tree(database: Database, caplog: Any) -> None:
    async def ask(text: str) -> None:
        async with database.read() as connection:
            await connection.exec_driver_sql(text)

    for text in ("SELECT * FROM no_such_table", "no SQL at all"):
        with pytest.raises((RegistryFailed, RegistryUnavailable)) as caught:
            await ask(text)
        assert "no_such_table" not in caught.value.message
    async with database.read() as connection:
        assert (await connection.exec_driver_sql("SELECT 1")).scalar_one() == 1


async def test_the_merge_worker_waits_until_the_database_is_back(postgres: Cluster, tmp_path: Path) -> None:
    """Before the outage, or started in the middle of it: it neither dies in a loop nor fails a job."""
    async with (
        forwarder(postgres.port) as line,
        start_app(tmp_path, worker=True, database_url=postgres.url_at(line.port)) as running_app,
        running_app.http(ADMIN_KEY) as http,
    ):
        assert (await push(http, "waits", write_adapter(tmp_path / "waits", seed=5))).status_code in (200, 201)
        worker = running_app.services.worker
        await _until(lambda: worker.name is not None)
        first = worker.pid
        line.target_port = 1
        line.cut()
        await asyncio.sleep(3)
        assert (worker.pid, worker.restarts) == (first, 0)
        worker.kill()
        await _until(lambda: worker.alive and worker.pid != first)
        await asyncio.sleep(6)
        assert (worker.alive, worker.restarts) == (True, 1)
        line.target_port = postgres.port
        async with asyncio.timeout(60):
            order = {"name": "made", "expression": "0.5*waits"}
            while (await http.post("/admin/v1/merges?wait_s=30", json=order)).status_code not in (200, 201):
                await asyncio.sleep(0.2)
        assert worker.restarts == 1
        for name in ("made", "waits"):
            await http.delete(f"/admin/v1/adapters/{name}")


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.05)
