"""What a job goes through, a step a function."""

from typing import Any

from amalgam.domain.job import Job, JobRequest
from amalgam.registry.jobs import JobRegistry
from tests.registry_fixtures import draft

RECIPE = "a" * 64


def request(name: str = "mix", recipe: str = RECIPE, **changes: Any) -> JobRequest:
    return JobRequest("merge", name, {"inputs": ["sql@1"], "weight": 0.5}, recipe, **changes)


async def submit(jobs: JobRegistry, *args: Any, **changes: Any) -> Job:
    job = (await jobs.submit(request(*args, **changes))).job
    assert job is not None
    return job


async def claim(jobs: JobRegistry, worker: str = "w1", lease_s: float = 30, max_attempts: int = 3) -> Job:
    job = await jobs.claim(worker, lease_s=lease_s, max_attempts=max_attempts)
    assert job is not None
    return job


async def claim_built(jobs: JobRegistry, server: str = "s1", lease_s: float = 30) -> Job:
    job = await jobs.claim_built(server, lease_s=lease_s)
    assert job is not None
    return job


async def publish(jobs: JobRegistry, job: Job, timings: dict[str, float] | None = None) -> Job:
    claimed = await claim_built(jobs)
    assert (claimed.id, claimed.state) == (job.id, "publishing")
    return await jobs.publish(job.id, claimed.fencing_token, timings)


def result(name: str = "mix", number: int = 1, recipe: str = RECIPE) -> Any:
    return draft(name, number, source="merge", recipe_digest=recipe)


async def build(jobs: JobRegistry, **changes: Any) -> Job:
    await submit(jobs, **changes)
    job = await claim(jobs)
    await jobs.finish_built(job.id, job.fencing_token, result())
    return await jobs.get(job.id)
