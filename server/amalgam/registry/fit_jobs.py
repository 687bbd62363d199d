"""Jobs that are fitted: those that wait for the end of a search for their weights, and what workers read for others."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from amalgam.domain.clock import Clock
from amalgam.domain.fit import FitRecord, ReadingFit
from amalgam.domain.job import LIVE_STATES, Job
from amalgam.registry.database import Database
from amalgam.registry.job_rows import change_job, find_job, job_of, read_job, select_jobs
from amalgam.registry.tables import jobs


class FitJobRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def find_live(self, name: str, recipe_digest: str) -> Job | None:
        """The unfinished job that asks the very same under this name."""
        same = (jobs.c.name == name, jobs.c.recipe_digest == recipe_digest, jobs.c.state.in_(LIVE_STATES))
        async with self._database.read() as connection:
            return await find_job(connection, *same)

    async def waiting(self) -> tuple[Job, ...]:
        """Jobs that wait for a search, the oldest first; those that were cancelled meanwhile too."""
        query = select_jobs().where(jobs.c.waits_for.is_not(None)).order_by(jobs.c.created_at, jobs.c.id)
        async with self._database.read() as connection:
            return tuple(job_of(row) for row in (await connection.execute(query)).mappings())

    async def found(self, job_id: str, recipe: Mapping[str, Any], recipe_digest: str, fit: FitRecord) -> Job | None:
        """Give a waiting job its weights, so that it is built; None where it does not wait any more, or not yet.

        It waits on where another job builds this very recipe under its name: a recipe is built once at a time.
        """
        async with self._database.write() as connection:
            job = await read_job(connection, job_id)
            if job.waits_for is None or job.state != "queued":
                return None
            same = (jobs.c.name == job.name, jobs.c.recipe_digest == recipe_digest, jobs.c.state.in_(LIVE_STATES))
            if await find_job(connection, *same) is not None:
                return None
            fields = {"recipe": dict(recipe), "recipe_digest": recipe_digest, "fit": fit.model_dump(mode="json")}
            return await change_job(connection, job_id, self._clock(), waits_for=None, **fields)

    async def reading_of(self, version_id: int) -> ReadingFit | None:
        """The prompts that a version was fitted to; None where no job has them."""
        query = sa.select(jobs.c.reading).where(jobs.c.version_id == version_id, jobs.c.reading.is_not(sa.null()))
        async with self._database.read() as connection:
            found = (await connection.execute(query.limit(1))).scalar_one_or_none()
        return None if found is None else ReadingFit.model_validate(found)

    async def forget_search(self, job_id: str) -> None:
        """The job waits for nothing any more: it has ended."""
        async with self._database.write() as connection:
            await connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(waits_for=None))
