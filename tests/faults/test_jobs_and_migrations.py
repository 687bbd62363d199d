"""Workers and migrations that are killed half way.

| fault | what happens | test |
|---|---|---|
| F28 | the merge worker is killed at 10, 50, 90 %, and while it writes | `test_a_killed_worker_leaves_one_result` |
| F29 | a paused worker wakes after its lease | `tests/unit/registry/test_job_registry.py`, `TestLease` |
| F40 | a migration is killed half way | `test_a_killed_migration_starts_anew` |
"""

import pytest

from amalgam.domain.job import JobRequest
from amalgam.registry.database import Database
from amalgam.store.adapter_store import PUBLISH_STEPS
from tests.faults.conftest import Victims, World
from tests.faults.victims import RECIPE_DIGEST, weights

FINISHING = 5
"""The worker's fifth transaction; before it come the claim and three heartbeats."""

STEPS = [
    *((step, 1) for step in ("work.10", "work.50", "work.90", *PUBLISH_STEPS)),
    ("registry.written", 1),
    ("registry.written", FINISHING),
    ("registry.committed", FINISHING),
]


@pytest.mark.parametrize(("step", "nth"), STEPS)
async def test_a_killed_worker_leaves_one_result(step: str, nth: int, world: World, victims: Victims) -> None:
    job = (await world.jobs.submit(JobRequest("merge", "mix", {}, RECIPE_DIGEST))).job
    assert job is not None
    assert victims.run("work", die_at=step, nth=nth, **world.plan).was_killed
    left = await world.jobs.get(job.id)
    if step == "registry.committed":
        assert left.state == "built"
        claimed = await world.jobs.claim_built("server", lease_s=30)
        assert claimed is not None
        await world.jobs.publish(job.id, claimed.fencing_token)
    elif (step, nth) == ("registry.written", 1):
        assert left == job
        assert victims.run("work", **world.plan).value == 1
    else:
        assert left.state == "running"
        assert (await world.registry.load_catalog()).versions == ()
        # Nobody takes it before the lease ends; then the next worker finishes it.
        assert victims.run("work", **world.plan).value is None
        assert victims.run("work", later_s=31, **world.plan).value == 1
    done = await world.jobs.get(job.id)
    assert (done.state, done.version_number) == ("published", 1)
    assert done.attempts == (2 if left.state == "running" else 1)
    [version] = (await world.registry.load_catalog()).versions
    assert world.weights_of(version.digest) == weights(1000)
    assert (await world.registry.get_adapter("mix")).default_version == 1
    assert (await world.jobs.submit(JobRequest("merge", "mix", {}, RECIPE_DIGEST))).version == version
    await world.assert_whole()


async def test_a_worker_killed_while_another_waits(world: World, victims: Victims) -> None:
    """Two workers and one job: the loser gets nothing, the winner's death frees the job."""
    await world.jobs.submit(JobRequest("merge", "mix", {}, RECIPE_DIGEST))
    pids = [victims.start("work", die_at="work.50", **world.plan) for _ in range(2)]
    endings = [victims.wait(pid) for pid in pids]
    assert sorted(ending.was_killed for ending in endings) == [False, True]
    assert victims.run("work", later_s=31, **world.plan).value == 1
    await world.assert_whole()


async def test_a_killed_migration_starts_anew(database_url: str, victims: Victims) -> None:
    """All of its steps or none: the next process finds either no table or every table."""
    assert victims.run("migrate", url=database_url, die_at="registry.migrated").was_killed
    assert victims.run("migrate", url=database_url).value is True
    async with Database.open(database_url) as database, database.read() as connection:
        assert (await connection.exec_driver_sql("SELECT revision FROM registry_state")).scalars().all() == [0]


async def test_migrations_killed_while_others_run(database_url: str, victims: Victims) -> None:
    pids = [victims.start("migrate", url=database_url, die_at="registry.migrated" if n % 2 else None) for n in range(4)]
    endings = [victims.wait(pid) for pid in pids]
    assert all(ending.was_killed or ending.value is True for ending in endings), endings
    assert victims.run("migrate", url=database_url).value is True
