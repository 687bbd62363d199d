"""The registry of jobs: who builds what, under which lease, and what came of it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.clock import Clock
from amalgam.domain.fit import FitRecord
from amalgam.domain.job import JOB_KINDS, LIVE_STATES, Job, JobPage, JobRequest, JobState, Submission, check_transition
from amalgam.domain.skill_probe import KeptRecord
from amalgam.domain.version import VersionDraft
from amalgam.errors.adapters import NameTaken, VersionNotFound
from amalgam.registry.alias_rows import refuse_alias_name
from amalgam.registry.database import Database
from amalgam.registry.job_rows import (
    change_job,
    fail_job,
    find_job,
    job_of,
    leased_job,
    made_before,
    probe_row,
    read_job,
    read_stored_by,
    select_jobs,
    version_of_job,
)
from amalgam.registry.stored_bytes import require_storage, stored_by_columns
from amalgam.registry.tables import jobs
from amalgam.registry.version_rows import insert_version, mark_proved, move_default


class JobRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock, new_id: Callable[[], str]) -> None:
        self._database = database
        self._clock = clock
        self._new_id = new_id

    async def submit(self, request: JobRequest) -> Submission:
        """Queue the request, unless it is being built or has been: the same recipe under the same name is built once.

        A request for the default moves it: to the version that is there already, or when the live job publishes. One
        with a probe is met by what was asked the very same alone.

        Raises:
            NameTaken: an alias has the name, or a live job of the same recipe asks something else.
            StorageSpent: the result would not fit into a limit of whose it will be.
        """
        async with self._database.write() as connection:
            await refuse_alias_name(connection, request.name)
            same = (jobs.c.name == request.name, jobs.c.recipe_digest == request.recipe_digest)
            job = await find_job(connection, *same, jobs.c.state.in_(LIVE_STATES))
            if job is not None:
                if request.probe is not None and job.probe != probe_row(request):
                    raise NameTaken(request.name, f"the same merge without this probe is job {job.id}; wait for it")
                if request.set_default and not job.set_default:
                    job = await change_job(connection, job.id, self._clock(), set_default=True)
                return Submission(job, None, created=False)
            version = await made_before(connection, request)
            if version is not None:
                return Submission(None, version, created=False)
            if request.stored_by is not None:
                await require_storage(connection, request.stored_by, request.output_bytes)
            job = await self._insert(connection, request)
        return Submission(job, None, created=True)

    async def require_storage(self, request: JobRequest) -> None:
        """Nothing where the result would fit now. Raises StorageSpent."""
        if request.stored_by is not None:
            async with self._database.read() as connection:
                await require_storage(connection, request.stored_by, request.output_bytes)

    async def submit_export(self, request: JobRequest) -> Submission:
        """Queue the export, unless the same one is under way. Its name is a folder's, not an adapter's.

        Raises:
            NameTaken: another export of that name is under way.
        """
        async with self._database.write() as connection:
            same_name = (jobs.c.name == request.name, jobs.c.kind == request.kind)
            job = await find_job(connection, *same_name, jobs.c.state.in_(LIVE_STATES))
            if job is None:
                return Submission(await self._insert(connection, request), None, created=True)
            if job.recipe_digest != request.recipe_digest:
                raise NameTaken(request.name, f"wait for job {job.id}, or cancel it")
        return Submission(job, None, created=False)

    async def _insert(self, connection: AsyncConnection, request: JobRequest) -> Job:
        now = self._clock()
        row = {
            "id": self._new_id(),
            "kind": request.kind,
            "name": request.name,
            "recipe": dict(request.recipe),
            "recipe_digest": request.recipe_digest,
            "input_digests": list(request.input_digests),
            "set_default": request.set_default,
            "state": "queued",
            "attempts": 0,
            "fencing_token": 0,
            "timings": {},
            "probe": probe_row(request),
            "fit": None if request.fit is None else request.fit.model_dump(mode="json"),
            "reading": None if request.reading is None else request.reading.model_dump(mode="json"),
            "waits_for": None if request.fit is None else request.fit.sweep,
            "created_at": now,
            "updated_at": now,
            **stored_by_columns(request.stored_by),
        }
        await connection.execute(jobs.insert().values(**row))
        return await read_job(connection, str(row["id"]))

    async def claim(self, worker: str, *, lease_s: float, max_attempts: int) -> Job | None:
        """Take the oldest job that nobody works on, under the next fencing token; None where there is none.

        A job that was started ``max_attempts`` times without an end is failed on the way (``attempts_exhausted``).
        """
        async with self._database.write() as connection:
            now = self._clock()
            queued = (jobs.c.state == "queued") & jobs.c.waits_for.is_(None)
            free = queued | ((jobs.c.state == "running") & (jobs.c.lease_expires_at <= now))
            while True:
                job = await find_job(connection, free)
                if job is None:
                    return None
                if job.attempts < max_attempts:
                    break
                message = f"The job was started {job.attempts} times and its worker died or fell silent each time."
                await fail_job(connection, job, now, code="attempts_exhausted", status=500, message=message)
            check_transition(job.id, job.state, "running")
            # Clocks of two machines may differ by more than a job waits.
            queued_s = max(0.0, (now - job.created_at).total_seconds())
            return await change_job(
                connection,
                job.id,
                now,
                state="running",
                timings=job.timings | {"queue": queued_s},
                worker=worker,
                attempts=job.attempts + 1,
                fencing_token=job.fencing_token + 1,
                lease_expires_at=now + timedelta(seconds=lease_s),
                progress=None,
            )

    async def heartbeat(
        self, job_id: str, token: int, *, lease_s: float, progress: Mapping[str, Any] | None = None
    ) -> Job:
        """Extend the lease from now on, and say how far the work is.

        Raises:
            JobNotFound: no such job.
            LeaseLost: the lease ran out or was taken, or the job was cancelled: stop working.
        """
        async with self._database.write() as connection:
            now = self._clock()
            await leased_job(connection, job_id, token, now, "running", "publishing")
            fields: dict[str, Any] = {"lease_expires_at": now + timedelta(seconds=lease_s)}
            if progress is not None:
                fields["progress"] = dict(progress)
            return await change_job(connection, job_id, now, **fields)

    async def abandon(self, worker: str) -> tuple[str, ...]:
        """End the leases of a worker that is known to be dead, so that its jobs are claimed again at once.

        Returns: the jobs.
        """
        async with self._database.write() as connection:
            now = self._clock()
            held = (jobs.c.worker == worker, jobs.c.state == "running", jobs.c.lease_expires_at > now)
            query = jobs.update().where(*held).values(lease_expires_at=now, updated_at=now).returning(jobs.c.id)
            return tuple((await connection.execute(query)).scalars())

    async def is_overdue(self, worker: str, *, grace_s: float) -> bool:
        """Whether ``worker`` has a running job whose lease ended more than ``grace_s`` seconds ago: it hangs."""
        async with self._database.read() as connection:
            since = self._clock() - timedelta(seconds=grace_s)
            late = (jobs.c.worker == worker, jobs.c.state == "running", jobs.c.lease_expires_at < since)
            return (await connection.execute(sa.select(jobs.c.id).where(*late).limit(1))).first() is not None

    async def count_live(self) -> dict[tuple[str, str], int]:
        """How many unfinished jobs there are, by kind and state, zeros included."""
        group = (jobs.c.kind, jobs.c.state)
        query = sa.select(*group, sa.func.count()).where(jobs.c.state.in_(LIVE_STATES)).group_by(*group)
        async with self._database.read() as connection:
            found = {(kind, state): int(count) for kind, state, count in await connection.execute(query)}
        return dict.fromkeys(((kind, state) for kind in JOB_KINDS for state in LIVE_STATES), 0) | found

    async def release(self, job_id: str, token: int) -> Job:
        """Give the job back, uncounted, to who builds or publishes: the holder stops for reasons of its own.

        Raises:
            JobNotFound, LeaseLost: as `heartbeat`.
        """
        async with self._database.write() as connection:
            now = self._clock()
            job = await leased_job(connection, job_id, token, now, "running", "publishing")
            fields: dict[str, Any] = {"state": "built"}
            if job.state == "running":
                fields = {"state": "queued", "attempts": job.attempts - 1, "progress": None}
            check_transition(job.id, job.state, fields["state"])
            return await change_job(connection, job_id, now, lease_expires_at=None, **fields)

    async def finish_built(
        self,
        job_id: str,
        token: int,
        draft: VersionDraft,
        timings: Mapping[str, float] | None = None,
        fit: FitRecord | None = None,
    ) -> AdapterVersion:
        """Record the result: version and job in one transaction. Nobody is served it before `publish`.

        Args:
            draft: Its files are in the store already.
            timings: Seconds by step, added to the job's.
            fit: How it was fitted, where the worker did that.

        Raises:
            JobNotFound, LeaseLost: as `heartbeat`; nothing was written.
            StorageSpent: the result does not fit into a limit of whose it is; nothing was written.
        """
        async with self._database.write() as connection:
            now = self._clock()
            job = await leased_job(connection, job_id, token, now, "running")
            check_transition(job.id, job.state, "built")
            whose = replace(draft, stored_by=await read_stored_by(connection, job_id))
            version = await insert_version(connection, whose, now=now, set_default=False, proved=False)
            await change_job(
                connection,
                job_id,
                now,
                state="built",
                version_id=version.id,
                lease_expires_at=None,
                timings=job.timings | dict(timings or {}),
                fit=job.fit if fit is None else fit.model_dump(mode="json"),
            )
        return version

    async def finish_export(self, job_id: str, token: int, timings: Mapping[str, float]) -> Job:
        """Record that the exported folder has its name.

        Args:
            timings: Seconds by step, added to the job's.

        Raises:
            JobNotFound, LeaseLost: as `heartbeat`; nothing was written.
        """
        async with self._database.write() as connection:
            now = self._clock()
            job = await leased_job(connection, job_id, token, now, "running")
            check_transition(job.id, job.state, "built")
            # Nothing is left to prove of it.
            fields = {"state": "published", "lease_expires_at": None, "timings": job.timings | dict(timings)}
            return await change_job(connection, job_id, now, **fields)

    async def claim_built(self, server: str, *, lease_s: float, probed: bool | None = None) -> Job | None:
        """Take the oldest built job that no server publishes, under the next fencing token; None where there is none.

        Most looks find nothing, so they lock nothing. ``probed``: of those with a probe alone, or without; None: any.
        """
        async with self._database.read() as connection:
            if await find_job(connection, _unpublished(self._clock(), probed)) is None:
                return None
        async with self._database.write() as connection:
            now = self._clock()
            job = await find_job(connection, _unpublished(now, probed))
            if job is None:
                return None
            check_transition(job.id, job.state, "publishing")
            return await change_job(
                connection,
                job.id,
                now,
                state="publishing",
                worker=server,
                fencing_token=job.fencing_token + 1,
                lease_expires_at=now + timedelta(seconds=lease_s),
            )

    async def publish(
        self,
        job_id: str,
        token: int,
        timings: Mapping[str, float] | None = None,
        kept: KeptRecord | None = None,
    ) -> Job:
        """Let the built version serve: the default moves if the job asks for it. Repeating it changes nothing.

        Args:
            job_id: Of the job.
            token: Of the server that publishes it.
            timings: Seconds by step, added to the job's.
            kept: What the version keeps of its inputs, for its lineage and its warnings.

        Raises:
            JobNotFound: no such job.
            LeaseLost: the lease ran out or was taken, or the job has another end.
            VersionNotFound: its version was deleted meanwhile.
        """
        async with self._database.write() as connection:
            job = await read_job(connection, job_id)
            if job.state == "published" and job.fencing_token == token:
                return job
            now = self._clock()
            job = await leased_job(connection, job_id, token, now, "publishing")
            version = await version_of_job(connection, job)
            if version is None:
                raise VersionNotFound(job.name, job.version_number or 0)
            await mark_proved(connection, version, kept, job.fit)
            if job.set_default:
                await move_default(connection, version)
            fields = {"state": "published", "lease_expires_at": None, "timings": job.timings | dict(timings or {})}
            return await change_job(connection, job_id, now, **fields)

    async def fail(self, job_id: str, *, code: str, status: int, message: str, token: int | None = None) -> Job:
        """End a job with the error's own values. A version that it had built is deleted with it.

        Args:
            token: Of the worker or server that holds it; None for one that nobody holds.

        Raises:
            JobNotFound, LeaseLost: as `heartbeat`.
            JobStateConflict: it has ended already.
        """
        async with self._database.write() as connection:
            now = self._clock()
            if token is None:
                job = await read_job(connection, job_id)
            else:
                job = await leased_job(connection, job_id, token, now, "running", "publishing")
            return await fail_job(connection, job, now, code=code, status=status, message=message)

    async def cancel(self, job_id: str) -> Job:
        """Stop a job that is queued or running; its worker learns it from `LeaseLost`. Repeating it changes nothing.

        Raises:
            JobNotFound: no such job.
            JobStateConflict: it has a result already, or failed.
        """
        async with self._database.write() as connection:
            job = await read_job(connection, job_id)
            if job.state == "cancelled":
                return job
            check_transition(job.id, job.state, "cancelled")
            return await change_job(connection, job_id, self._clock(), state="cancelled", lease_expires_at=None)

    async def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            JobNotFound: no such job.
        """
        async with self._database.read() as connection:
            return await read_job(connection, job_id)

    async def list(self, *, states: Collection[JobState] = (), limit: int = 50, cursor: str | None = None) -> JobPage:
        """Jobs, newest first.

        Args:
            states: Which; empty for all.
            limit: Most items of a page, from 1.
            cursor: ``next_cursor`` of the page before.

        Raises:
            JobNotFound: no such cursor.
        """
        query = select_jobs().order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit + 1)
        if states:
            query = query.where(jobs.c.state.in_(states))
        async with self._database.read() as connection:
            if cursor is not None:
                last = await read_job(connection, cursor)
                place = sa.tuple_(sa.literal(last.created_at, jobs.c.created_at.type), sa.literal(last.id))
                query = query.where(sa.tuple_(jobs.c.created_at, jobs.c.id) < place)
            rows = (await connection.execute(query)).mappings().all()
        items = tuple(job_of(row) for row in rows[:limit])
        return JobPage(items, items[-1].id if len(rows) > limit else None)


def _unpublished(now: datetime, probed: bool | None) -> "sa.ColumnElement[bool]":
    """Built, and held by no server whose lease lasts."""
    free = (jobs.c.state == "built") | ((jobs.c.state == "publishing") & (jobs.c.lease_expires_at <= now))
    if probed is None:
        return free
    return free & (jobs.c.probe.is_not(sa.null()) if probed else jobs.c.probe.is_(sa.null()))
