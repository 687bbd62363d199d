"""Of several servers one publishes a built job, under a lease like a worker's."""

import asyncio

import pytest

from amalgam.errors.jobs import JobStateConflict, LeaseLost
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.jobs import JobRegistry
from tests.registry_fixtures import FakeClock
from tests.unit.registry.job_steps import build, claim_built, result


async def test_one_of_many_takes_it(jobs: JobRegistry) -> None:
    built = await build(jobs)
    taken = [job for job in await asyncio.gather(*(jobs.claim_built(f"s{n}", lease_s=30) for n in range(20))) if job]
    [job] = taken
    assert (job.id, job.state, job.fencing_token) == (built.id, "publishing", built.fencing_token + 1)
    assert (job.attempts, job.version_id) == (built.attempts, built.version_id), "it is not built again"
    with pytest.raises(JobStateConflict):
        await jobs.cancel(job.id)
    assert await jobs.claim("w2", lease_s=30, max_attempts=3) is None


async def test_the_lease_is_renewed_and_taken_over_at_its_end(jobs: JobRegistry, clock: FakeClock) -> None:
    await build(jobs)
    job = await claim_built(jobs, "dead")
    clock.advance(20)
    await jobs.heartbeat(job.id, job.fencing_token, lease_s=30)
    clock.advance(20)
    assert await jobs.claim_built("s2", lease_s=30) is None
    clock.advance(10)
    again = await claim_built(jobs, "s2")
    assert (again.id, again.fencing_token) == (job.id, job.fencing_token + 1)


@pytest.mark.parametrize("how", ["expired", "taken over", "given back", "published", "failed", "wrong token"])
async def test_without_the_lease_nothing_can_be_written(
    how: str, jobs: JobRegistry, registry: AdapterRegistry, clock: FakeClock
) -> None:
    await build(jobs)
    job = await claim_built(jobs)
    token = job.fencing_token
    if how in ("expired", "taken over"):
        clock.advance(30)
    if how == "taken over":
        await claim_built(jobs, "s2")
    elif how == "given back":
        assert (await jobs.release(job.id, token)).state == "built"
    elif how == "published":
        clock.advance(30)
        other = await claim_built(jobs, "s2")
        await jobs.publish(job.id, other.fencing_token)
    elif how == "failed":
        await jobs.fail(job.id, code="x", status=500, message="y", token=token)
    elif how == "wrong token":
        token -= 1
    before, rows = await jobs.get(job.id), await registry.load_catalog()
    for attempt in (
        lambda: jobs.heartbeat(job.id, token, lease_s=30),
        lambda: jobs.publish(job.id, token),
        lambda: jobs.fail(job.id, code="late", status=500, message="late", token=token),
        lambda: jobs.release(job.id, token),
        lambda: jobs.finish_built(job.id, token, result(number=2)),
    ):
        with pytest.raises(LeaseLost):
            await attempt()
    assert await jobs.get(job.id) == before
    assert await registry.load_catalog() == rows


async def test_what_is_given_back_is_free_at_once(jobs: JobRegistry) -> None:
    built = await build(jobs)
    job = await claim_built(jobs)
    released = await jobs.release(job.id, job.fencing_token)
    assert (released.state, released.attempts, released.lease_expires_at) == ("built", built.attempts, None)
    assert (await claim_built(jobs, "s2")).fencing_token > job.fencing_token
