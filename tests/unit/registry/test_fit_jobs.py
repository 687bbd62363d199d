"""Jobs that wait for a search, on every database."""

import pytest

from amalgam.domain.fit import FitRecord
from amalgam.errors.evaluations import EvaluationStopped
from amalgam.registry.database import Database
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.registry.fit_jobs import FitJobRegistry
from amalgam.registry.jobs import JobRegistry
from tests.registry_fixtures import FakeClock
from tests.unit.registry.job_steps import claim, claim_built, request, result, submit
from tests.unit.registry.test_evaluation_registry import DRAFT, TARGETS, one

FIT = FitRecord(by="kept", sweep="eval-1", prompts_digest="d", seed=0, max_tokens=8, candidates=4, budget_s=9)
FOUND = FIT.model_copy(update={"tried": 4, "weights": {"sql@1": 0.5}, "kept": {"sql@1": 1.0}})


@pytest.fixture
def waiting(database: Database, clock: FakeClock) -> FitJobRegistry:
    return FitJobRegistry(database, clock)


async def test_a_job_is_built_when_its_weights_are_found(jobs: JobRegistry, waiting: FitJobRegistry) -> None:
    job = await submit(jobs, fit=FIT)
    assert (job.waits_for, job.fit) == ("eval-1", FIT.model_dump(mode="json"))
    assert await jobs.claim("w1", lease_s=30, max_attempts=3) is None
    assert [one.id for one in await waiting.waiting()] == [job.id]
    assert (await waiting.find_live("mix", job.recipe_digest)) == job
    found = await waiting.found(job.id, {"inputs": ["sql@1"]}, "b" * 64, FOUND)
    assert found is not None
    assert (found.recipe_digest, found.waits_for, found.fit) == ("b" * 64, None, FOUND.model_dump(mode="json"))
    assert await waiting.waiting() == ()
    assert await waiting.found(job.id, {}, "c" * 64, FOUND) is None
    claimed = await claim(jobs)
    version = await jobs.finish_built(claimed.id, claimed.fencing_token, result(recipe="b" * 64))
    held = await claim_built(jobs)
    await jobs.publish(held.id, held.fencing_token)
    again = await jobs.submit(request(recipe="b" * 64))
    assert again.version is not None
    assert again.version.id == version.id
    assert (again.version.lineage or {})["fit"] == FOUND.model_dump(mode="json")


async def test_a_job_waits_on_while_another_builds_the_same(jobs: JobRegistry, waiting: FitJobRegistry) -> None:
    job = await submit(jobs, fit=FIT)
    other = await submit(jobs, recipe="b" * 64)
    assert await waiting.found(job.id, {}, "b" * 64, FOUND) is None
    await jobs.cancel(other.id)
    assert await waiting.found(job.id, {}, "b" * 64, FOUND) is not None


async def test_a_cancelled_job_waits_until_its_search_is_ended(jobs: JobRegistry, waiting: FitJobRegistry) -> None:
    job = await submit(jobs, fit=FIT)
    await jobs.cancel(job.id)
    assert await waiting.found(job.id, {}, "b" * 64, FOUND) is None
    assert [one.state for one in await waiting.waiting()] == ["cancelled"]
    await waiting.forget_search(job.id)
    assert await waiting.waiting() == ()


async def test_a_search_grows_under_its_lease_and_ends_with_what_it_did(database: Database, clock: FakeClock) -> None:
    rows = EvaluationRegistry(database, clock, lambda: "eval-1")
    await rows.create(DRAFT)
    claimed = await rows.claim("me", lease_s=10)
    assert claimed is not None
    with pytest.raises(EvaluationStopped):
        await rows.extend("eval-1", "other", TARGETS, {})
    grown = await rows.extend("eval-1", "me", (*TARGETS, *TARGETS), {"points": [1]})
    assert (len(grown.targets), grown.search, grown.total) == (4, {"points": [1]}, 6)
    await rows.save("eval-1", "me", [one(3, 0)], lease_s=10)
    done = await rows.finish("eval-1", "me", "done")
    assert (done.done, done.total) == (1, 1)
