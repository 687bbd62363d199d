"""Rows of jobs within an open transaction."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.job import Job, JobError
from amalgam.errors.jobs import JobNotFound
from amalgam.registry.tables import jobs, versions
from amalgam.registry.version_rows import version_of


def select_jobs() -> "sa.Select[Any]":
    """Every column of a job, and its version's number."""
    joined = jobs.outerjoin(versions, jobs.c.version_id == versions.c.id)
    return sa.select(jobs, versions.c.number.label("version_number")).select_from(joined)


def job_of(row: sa.RowMapping) -> Job:
    """The domain's job from a row of `select_jobs`."""
    fields = {field: row[field] for field in Job.model_fields if field != "error"}
    error = None
    if row["error_code"] is not None:
        error = JobError(code=row["error_code"], status=row["error_status"], message=row["error_message"])
    return Job.model_validate(fields | {"error": error})


async def read_job(connection: AsyncConnection, job_id: str) -> Job:
    """The job of that id.

    Raises:
        JobNotFound: there is none.
    """
    row = (await connection.execute(select_jobs().where(jobs.c.id == job_id))).mappings().one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return job_of(row)


async def find_job(connection: AsyncConnection, *conditions: "sa.ColumnElement[bool]") -> Job | None:
    """The oldest job that meets the conditions."""
    query = select_jobs().where(*conditions).order_by(jobs.c.created_at, jobs.c.id).limit(1)
    row = (await connection.execute(query)).mappings().one_or_none()
    return job_of(row) if row is not None else None


async def change_job(connection: AsyncConnection, job_id: str, now: datetime, **fields: Any) -> Job:
    """Write ``fields`` of a job and return it as it is then."""
    await connection.execute(jobs.update().where(jobs.c.id == job_id).values(updated_at=now, **fields))
    return await read_job(connection, job_id)


async def version_of_job(connection: AsyncConnection, job: Job) -> AdapterVersion | None:
    """The live version that the job built; None where it built none or that was deleted."""
    query = sa.select(versions).where(versions.c.id == job.version_id, versions.c.deleted_at.is_(None))
    row = (await connection.execute(query)).mappings().one_or_none()
    return version_of(row) if row is not None else None
