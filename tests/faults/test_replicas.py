"""Two servers on one PostgreSQL and one store folder agree: what one does is seen, and done once, by both.

| what two servers could do wrong | test |
|---|---|
| 500 in place of 404, while one has not heard of a deletion | `test_a_server_that_missed_a_deletion_*` |
| a deleted version stays in the other's memory, pinned for ever | `test_what_was_deleted_leaves_*` |
| pins of one server alone | `test_what_one_server_pins_*` |
| every server publishes every merge, and counts it | `test_a_merge_is_published_and_counted_*` |
| nobody publishes what a killed server had begun to | `test_what_a_killed_server_*` |
| a server that was cut off publishes late (F29, F34) | `test_a_server_that_is_cut_off_*` |
| the name of a blend is known to who built it | `test_the_name_of_a_blend_*` |
| 404 right after 201 | `test_what_one_server_registered_*` |
| an evaluation of a killed server is nobody's | `test_an_evaluation_of_a_killed_server_*` |

Leases and clocks are in `test_clocks.py`, the database's outages in `test_database_outages.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from amalgam.domain.evaluation import EvaluationDraft, EvaluationItem, EvaluationTarget
from amalgam.domain.job import Job, JobRequest
from amalgam.domain.version import VersionDraft
from amalgam.engine.protocol import LoadableVersion
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.services import publish, publish_lease
from tests.api.test_blends import Instant
from tests.support.postgres import Cluster, cluster
from tests.support.replicas import Pair, Replica, pair, replica
from tests.support.running_app import assert_error

MERGES = 14


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster") / "postgres") as running:
        yield running


@pytest.fixture
async def both(postgres: Cluster, tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair(postgres, tmp_path) as started:
        yield started


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.02)


def knows(server: Replica, name: str) -> bool:
    return name in server.app.services.catalog.snapshot.versions


async def test_what_one_server_registered_is_served_by_the_other_at_once(both: Pair) -> None:
    for number in range(10):
        await both.register(f"new-{number}", seed=number)
        answer = await both.second.ask(f"new-{number}")
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == f"new-{number}@1"
        order = {"name": f"mix-{number}", "expression": f"0.5*new-{number}"}
        accepted = await both.second.admin.post("/admin/v1/merges", json=order)
        assert accepted.status_code == 202, accepted.text
        body = {"targets": [{"model": f"new-{number}@1", "weight": 1}]}
        assert (await both.first.admin.put(f"/admin/v1/aliases/now-{number}", json=body)).status_code in (200, 201)
        assert (await both.second.client.get(f"/v1/models/now-{number}")).status_code == 200
    assert_error(await both.second.ask("never"), 404, "model_not_found")


async def test_a_change_is_heard_of_and_not_only_looked_for(both: Pair) -> None:
    await until(lambda: both.second.app.services.notices is not None and both.second.app.services.notices.is_listening)
    page = (await both.second.admin.get("/metrics")).text
    assert "amalgam_registry_notices_up 1" in page
    looks = 0
    catalog = both.second.app.services.catalog
    refresh = catalog.refresh

    async def counted() -> None:
        nonlocal looks
        looks += 1
        await refresh()

    catalog.refresh = counted  # type: ignore[method-assign]
    for number in range(3):
        await both.register(f"told-{number}", seed=number)
        await until(lambda name=f"told-{number}@1": knows(both.second, name))  # type: ignore[misc]
    assert looks >= 3


@pytest.mark.parametrize("has_it_in_memory", [False, True])
async def test_a_server_that_missed_a_deletion_answers_rightly_or_with_404(both: Pair, has_it_in_memory: bool) -> None:
    await both.register("gone")
    await both.register("kept", seed=2)
    await until(lambda: knows(both.second, "gone@1") and knows(both.second, "kept@1"))
    if has_it_in_memory:
        assert (await both.second.ask("gone")).status_code == 200
    both.line.hold_up()
    assert (await both.first.admin.delete("/admin/v1/adapters/gone")).status_code == 200
    await both.first.app.services.adapters.settle()
    stale = await asyncio.gather(*(both.second.ask("gone") for _ in range(5)), both.second.ask("gone@1"))
    assert {answer.status_code for answer in stale} == {200}, [answer.text for answer in stale]
    both.line.let_flow()
    await until(lambda: not knows(both.second, "gone@1"))
    for model in ("gone", "gone@1"):
        assert_error(await both.second.ask(model), 404, "model_not_found")
    assert (await both.second.ask("kept")).status_code == 200
    await until(lambda: "gone@1" not in both.second.residents)
    page = (await both.second.admin.get("/metrics")).text
    assert "amalgam_artifacts_damaged_total 0" in page, "what was deleted is not damaged"


async def test_files_that_went_with_their_version_are_404_and_not_damaged(
    both: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they went: the second server has not heard of it, and has not read the version before."""
    await both.register("gone")
    await until(lambda: knows(both.second, "gone@1"))
    version = both.first.app.services.catalog.snapshot.versions["gone@1"]

    async def deaf() -> None:
        """What the second server does in place of reading what changed."""

    monkeypatch.setattr(both.second.app.services.catalog, "refresh", deaf)
    assert (await both.first.admin.delete("/admin/v1/adapters/gone")).status_code == 200
    (await both.first.app.stored()).files.remove(version.digest, now=2e9)
    assert knows(both.second, "gone@1")
    assert_error(await both.second.ask("gone@1"), 404, "model_not_found")


async def test_what_was_deleted_leaves_the_memory_of_every_server(both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    Instant(monkeypatch)
    await both.register("gone")
    await both.register("kept", seed=2)
    servers = (both.first, both.second)
    for server in servers:
        assert (await server.ask("gone")).status_code == 200
        assert (await server.ask("gone + 0.5*kept")).status_code == 200
    assert (await both.first.admin.post("/admin/v1/adapters/gone:pin")).status_code == 200
    await until(lambda: both.second.pinned == {"gone@1"})
    assert (await both.first.admin.delete("/admin/v1/adapters/gone")).status_code == 200
    for server in servers:
        await until(lambda server=server: not server.pinned and "gone@1" not in server.residents)  # type: ignore[misc]
        await until(lambda server=server: not any(n.startswith("blend@") for n in server.residents))  # type: ignore[misc]
        assert_error(await server.ask("gone + 0.5*kept"), 404, "model_not_found")


async def test_what_one_server_pins_is_pinned_on_all_and_after_a_restart(both: Pair, tmp_path: Path) -> None:
    await both.register("hot")
    assert (await both.second.admin.post("/admin/v1/adapters/hot:pin")).status_code == 200
    for server in (both.first, both.second):
        await until(lambda server=server: server.pinned == {"hot@1"})  # type: ignore[misc]
    async with replica(tmp_path / "third", tmp_path / "shared", both.url) as third:
        await until(lambda: third.pinned == {"hot@1"})
        assert (await both.first.admin.post("/admin/v1/adapters/hot:unpin")).status_code == 200
        for server in (both.first, both.second, third):
            await until(lambda server=server: not server.pinned)  # type: ignore[misc]


async def built_jobs(pair_of: Pair, count: int) -> list[Job]:
    """Jobs as a worker leaves them, of the bytes of an adapter that is there, all at once."""
    await pair_of.register("input")
    digest = pair_of.first.app.services.catalog.snapshot.versions["input@1"].digest
    made = []
    async with Database.open(pair_of.url) as database:
        ids = iter(range(count))
        jobs = JobRegistry(database, database.clock, lambda: f"job-{next(ids)}")
        for number in range(count):
            await jobs.submit(JobRequest("merge", f"made-{number}", {}, f"{number:064x}", True, (digest,)))
            claimed = await jobs.claim("worker", lease_s=30, max_attempts=1)
            assert claimed is not None
            draft = VersionDraft(claimed.name, digest, 2, 1, 1, "", "merge", recipe_digest=claimed.recipe_digest)
            await jobs.finish_built(claimed.id, claimed.fencing_token, draft)
            made.append(await jobs.get(claimed.id))
    return made


async def finished(server: Replica, state: str) -> int:
    """How many merges the server counted that ended in ``state``."""
    page = (await server.admin.get("/metrics")).text
    name = f'amalgam_jobs_finished_total{{kind="merge",state="{state}"}} '
    return sum(int(float(line.removeprefix(name))) for line in page.splitlines() if line.startswith(name))


async def test_a_merge_is_published_and_counted_by_one_server(both: Pair) -> None:
    made = await built_jobs(both, MERGES)
    servers = (both.first, both.second)
    states: set[str] = set()
    async with asyncio.timeout(60):
        while states != {"published"}:
            found = [await both.first.app.services.merges.get(job.id) for job in made]
            states = {job.state for job in found}
            await asyncio.sleep(0.05)
    probed = [name for server in servers for name in server.engine.probed if name.startswith("made-")]
    assert sorted(probed) == sorted(f"made-{number}@1" for number in range(MERGES)), "each is proved once"
    assert sum([await finished(server, "published") for server in servers]) == MERGES
    for number in range(MERGES):
        assert {(await server.ask(f"made-{number}")).status_code for server in servers} == {200}


async def test_what_a_killed_server_had_begun_to_publish_is_published_by_another(both: Pair) -> None:
    for server in (both.first, both.second):
        server.engine.current = "restarting"
    [job] = await built_jobs(both, 1)
    async with Database.open(both.url) as database:
        jobs = JobRegistry(database, database.clock, lambda: "unused")
        claimed = await jobs.claim_built("dead", lease_s=0.5)
        assert claimed is not None
    both.second.engine.current = "ready"
    async with asyncio.timeout(30):
        while (await both.first.app.services.merges.get(job.id)).state != "published":
            await asyncio.sleep(0.05)
    assert both.second.engine.probed == ["made-0@1"]
    assert await finished(both.second, "published") == 1


async def test_a_server_that_is_cut_off_while_it_publishes_publishes_nothing(
    both: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F29 and F34 together: its lease ends, another publishes, and what it says when it is back is refused."""
    both.first.engine.current = "restarting"
    servers = (both.first, both.second)
    monkeypatch.setattr(
        publish, "claimed", lambda jobs, server, lease_s, **more: publish_lease.claimed(jobs, server, 1.5, **more)
    )
    gate, works = asyncio.Event(), both.second.engine.probe
    reached = asyncio.Event()

    async def slow(version: LoadableVersion) -> None:
        reached.set()
        await gate.wait()
        await works(version)

    both.second.engine.probe = slow  # type: ignore[method-assign]
    [job] = await built_jobs(both, 1)
    async with asyncio.timeout(30):
        await reached.wait()
    both.line.hold_up()
    both.first.engine.current = "ready"
    async with asyncio.timeout(60):
        while (await both.first.app.services.merges.get(job.id)).state != "published":
            await asyncio.sleep(0.05)
    both.line.let_flow()
    gate.set()
    await until(lambda: both.second.engine.probed == ["made-0@1"])
    async with asyncio.timeout(30):
        while (await both.second.ask("made-0")).status_code != 200:
            await asyncio.sleep(0.05)
    assert [await finished(server, "published") for server in servers] == [1, 0]
    assert (await both.first.app.services.merges.get(job.id)).state == "published"


async def test_a_server_whose_engine_is_away_leaves_a_merge_to_another(both: Pair) -> None:
    both.first.engine.current = "restarting"
    [job] = await built_jobs(both, 1)
    async with asyncio.timeout(30):
        while (await both.first.app.services.merges.get(job.id)).state != "published":
            await asyncio.sleep(0.05)
    assert (both.first.engine.probed, both.second.engine.probed[-1]) == ([], "made-0@1")


async def test_the_name_of_a_blend_is_known_to_every_server(both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    instant = Instant(monkeypatch)
    await both.register("sql")
    await both.register("json", seed=2)
    answer = await both.first.ask("sql + 0.5*json")
    assert answer.status_code == 200, answer.text
    name = answer.json()["model"]
    there = await both.second.ask(name)
    assert (there.status_code, there.json().get("model")) == (200, name), there.text
    assert there.headers["x-amalgam-recipe"] == answer.headers["x-amalgam-recipe"]
    assert [order.recipe for order in instant.orders] == [instant.orders[0].recipe] * 2
    shown = await both.second.client.get(f"/v1/models/{name}")
    assert (shown.status_code, shown.json()["id"]) == (200, name)
    assert_error(await both.second.ask("blend@0123456789ab"), 404, "model_not_found")
    both.line.hold_up()
    assert (await both.second.ask(name)).status_code == 200, "what is known here asks no registry"
    assert (await both.second.ask("sql + 0.25*json")).status_code == 200, "an outage stops no blend"
    both.line.let_flow()


async def test_an_evaluation_of_a_killed_server_is_measured_by_another(both: Pair) -> None:
    await both.register("sql")
    target = EvaluationTarget(model="sql", pinned="sql@1", meaning="sql@1")
    items = tuple(EvaluationItem(prompt=f"say {number}", reference="words") for number in range(3))
    async with Database.open(both.url) as database:
        rows = EvaluationRegistry(database, database.clock, lambda: "eval-left")
        await rows.create(EvaluationDraft("evaluation", "", (target,), items, ("exact_match",), 8))
        # Either server may have taken it in this moment; what follows holds of both.
        await rows.claim("dead", lease_s=0.5)
        async with asyncio.timeout(30):
            while (await rows.get("eval-left")).state in ("queued", "running"):
                await asyncio.sleep(0.05)
        found = await rows.get("eval-left")
        assert (found.state, found.done) == ("done", 3)


async def test_files_of_deleted_versions_go_later_where_servers_share_them(postgres: Cluster, tmp_path: Path) -> None:
    async with pair(postgres, tmp_path, deleted_keep_s=3600.0) as both:
        await both.register("gone")
        digest = both.first.app.services.catalog.snapshot.versions["gone@1"].digest
        assert (await both.first.admin.delete("/admin/v1/adapters/gone")).status_code == 200
        await both.first.app.services.adapters.settle()
        assert digest in (await both.first.app.stored()).files.digests()
        async with Database.open(both.url) as database:
            registry = AdapterRegistry(database, database.clock)
            assert digest in await registry.digests_in_use(kept_s=3600)
            assert digest not in await registry.digests_in_use()
