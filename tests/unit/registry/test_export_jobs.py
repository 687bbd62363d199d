"""Jobs of exports: one of a name at a time, under the lease of any job, ended in one step and without a version."""

import pytest

from amalgam.domain.alias import AliasTarget
from amalgam.domain.job import JobKind, JobRequest
from amalgam.errors.adapters import NameTaken
from amalgam.errors.jobs import JobStateConflict, LeaseLost
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.aliases import AliasRegistry
from amalgam.registry.jobs import JobRegistry
from tests.registry_fixtures import FakeClock, digest_of, draft


def request(name: str = "out", number: int = 1, kind: JobKind = "export") -> JobRequest:
    return JobRequest(kind, name, {"recipe": {}}, digest_of(number), False, (digest_of(9),))


async def test_one_of_a_name_at_a_time(jobs: JobRegistry) -> None:
    first = await jobs.submit_export(request())
    assert first.created
    assert first.job is not None
    same = await jobs.submit_export(request())
    assert (same.created, same.job) == (False, first.job)
    with pytest.raises(NameTaken, match=first.job.id):
        await jobs.submit_export(request(number=2))
    assert (await jobs.submit_export(request("other", 2))).created
    await jobs.cancel(first.job.id)
    assert (await jobs.submit_export(request(number=2))).created


async def test_a_merge_of_the_same_name_is_another_matter(
    jobs: JobRegistry, registry: AdapterRegistry, aliases: AliasRegistry
) -> None:
    await registry.create_version(draft("sql"))
    assert (await jobs.submit(request("one", 1, "merge"))).created
    assert (await jobs.submit_export(request("one", 2))).created
    assert (await jobs.submit_export(request("free", 3))).created
    _, is_new = await aliases.put("free", [AliasTarget(model="sql", weight=1)])
    assert is_new
    with pytest.raises(NameTaken):
        await aliases.put("one", [AliasTarget(model="sql", weight=1)])


async def test_it_ends_under_its_lease_only(jobs: JobRegistry, registry: AdapterRegistry, clock: FakeClock) -> None:
    await jobs.submit_export(request())
    first = await jobs.claim("a", lease_s=10, max_attempts=3)
    assert first is not None
    assert digest_of(9) in await registry.digests_in_use()
    clock.advance(11)
    with pytest.raises(LeaseLost):
        await jobs.finish_export(first.id, first.fencing_token, {})
    second = await jobs.claim("b", lease_s=10, max_attempts=3)
    assert second is not None
    with pytest.raises(LeaseLost):
        await jobs.finish_export(first.id, first.fencing_token, {})
    done = await jobs.finish_export(second.id, second.fencing_token, {"export": 2.0})
    assert (done.state, done.version_id, done.lease_expires_at) == ("published", None, None)
    assert done.timings.keys() == {"queue", "export"}
    assert digest_of(9) not in await registry.digests_in_use()
    with pytest.raises(JobStateConflict):
        await jobs.cancel(done.id)
    with pytest.raises(LeaseLost):
        await jobs.finish_export(second.id, second.fencing_token, {})
