"""Rows of jobs within an open transaction."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.job import Job, JobRequest, JobState, check_transition
from amalgam.domain.skill_probe import SkillProbe
from amalgam.domain.stored_bytes import StoredBy
from amalgam.errors.jobs import JobNotFound, LeaseLost
from amalgam.registry.tables import adapters, jobs, versions
from amalgam.registry.version_rows import move_default, remove_version, version_of


def select_jobs() -> "sa.Select[Any]":
    """Every column of a job, and its version's number."""
    joined = jobs.outerjoin(versions, jobs.c.version_id == versions.c.id)
    return sa.select(jobs, versions.c.number.label("version_number")).select_from(joined)


def job_of(row: sa.RowMapping) -> Job:
    """The domain's job from a row of `select_jobs`."""
    fields = {field: row[field] for field in Job.model_fields if field != "error"}
    error = None
    if row["error_code"] is not None:
        error = ErrorReport(code=row["error_code"], status=row["error_status"], message=row["error_message"])
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


async def read_stored_by(connection: AsyncConnection, job_id: str) -> StoredBy:
    """Whose bytes the result of a job that is there counts as."""
    row = (await connection.execute(sa.select(jobs.c.tenant, jobs.c.key_id).where(jobs.c.id == job_id))).one()
    return StoredBy(*row)


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


async def leased_job(connection: AsyncConnection, job_id: str, token: int, now: datetime, *states: JobState) -> Job:
    """The job in one of ``states`` whose lease ``token`` is.

    Raises:
        JobNotFound: no such job.
        LeaseLost: it ran out, was taken, or the job is in another state.
    """
    job = await read_job(connection, job_id)
    is_held = job.state in states and job.fencing_token == token
    if not is_held or job.lease_expires_at is None or job.lease_expires_at <= now:
        raise LeaseLost(job_id)
    return job


async def fail_job(
    connection: AsyncConnection, job: Job, now: datetime, *, code: str, status: int, message: str
) -> Job:
    """End ``job`` with the values of an error; a version that it had built is deleted with it.

    Raises:
        JobStateConflict: it has ended already.
    """
    check_transition(job.id, job.state, "failed")
    version = await version_of_job(connection, job)
    if version is not None:
        await remove_version(connection, version, now=now)
    return await change_job(
        connection,
        job.id,
        now,
        state="failed",
        lease_expires_at=None,
        error_code=code[:64],
        error_status=status,
        error_message=message,
    )


async def made_before(connection: AsyncConnection, request: JobRequest) -> AdapterVersion | None:
    """The newest live version that this recipe made under this name; made the default where that is asked for."""
    query = (
        sa.select(versions, adapters.c.default_version)
        .join(adapters)
        .where(
            versions.c.name == request.name,
            versions.c.recipe_digest == request.recipe_digest,
            versions.c.deleted_at.is_(None),
        )
        .order_by(versions.c.number.desc())
    )
    rows = (await connection.execute(query)).mappings().all()
    row = next((row for row in rows if _answers_to(version_of(row), request.probe)), None)
    if row is None:
        return None
    version = version_of(row)
    if request.set_default and row["default_version"] != version.number:
        await move_default(connection, version)
    return version


def _answers_to(version: AdapterVersion, probe: SkillProbe | None) -> bool:
    """Whether the version was asked what ``probe`` asks, and answered; any was where that is nothing."""
    if probe is None:
        return True
    kept = (version.lineage or {}).get("kept")
    return kept is not None and kept["probe_digest"] == probe.digest() and kept["failure"] is None


def probe_row(request: JobRequest) -> dict[str, Any] | None:
    """The column of what the result is asked."""
    return None if request.probe is None else request.probe.model_dump(mode="json")
