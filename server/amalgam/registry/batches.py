"""The registry of batches: what was asked, who answers it under which lease, and how far it is."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.batch import (
    CANCELLABLE,
    LIVE,
    MAX_ATTEMPTS,
    MAX_LIVE,
    WINDOW_S,
    Batch,
    BatchDraft,
    BatchPage,
    BatchStatus,
    Tally,
)
from amalgam.domain.clock import Clock
from amalgam.domain.stored_file import FileDraft, Owner
from amalgam.errors.batches import BatchNotFound, BatchStateConflict, BatchStopped, TooManyBatches
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.files import insert_file
from amalgam.registry.tables import batches

_FIELDS: Final = [batches.c[name] for name in Batch.model_fields]


class BatchRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock, new_id: Callable[[], str]) -> None:
        self._database = database
        self.clock = clock
        self._new_id = new_id

    async def create(self, owner: Owner, draft: BatchDraft) -> Batch:
        """Queue it.

        Raises:
            TooManyBatches: the tenant has `MAX_LIVE` that have not ended.
        """
        async with self._database.write() as connection:
            live = sa.select(sa.func.count()).where(batches.c.tenant == owner.tenant, batches.c.status.in_(LIVE))
            if (await connection.execute(live)).scalar_one() >= MAX_LIVE:
                raise TooManyBatches(MAX_LIVE)
            now = self.clock()
            row = {
                "id": self._new_id(),
                "tenant": owner.tenant,
                "key_id": owner.key_id,
                "client": owner.client,
                "scopes": owner.scopes,
                "endpoint": draft.endpoint,
                "input_file": draft.input_file,
                "metadata": None if draft.metadata is None else dict(draft.metadata),
                "status": "validating",
                "output_kept_s": draft.output_kept_s,
                "created_at": now,
                "expires_at": now + timedelta(seconds=WINDOW_S),
            }
            counts = dict.fromkeys(("total", "completed", "failed", "runs", "attempts"), 0)
            await connection.execute(batches.insert().values(**row, **counts))
            return await _read(connection, str(row["id"]))

    async def claim(self, holder: str, *, lease_s: float, busy: Collection[str] = ()) -> Batch | None:
        """Take the oldest one that waits, or whose server is silent for longer than its lease; None: there is none.

        One that was cancelled or whose time is over goes first. Most looks find nothing, so they lock nothing.

        Args:
            holder: who takes it.
            lease_s: for so long without a word from it.
            busy: tenants whose batches wait for another of theirs.
        """
        async with self._database.read() as connection:
            if (await connection.execute(_free(self.clock(), busy))).first() is None:
                return None
        async with self._database.write() as connection:
            now = self.clock()
            # Their servers died also where nothing was left but to write what there is.
            worn_out = (*_unheld(now), batches.c.attempts > MAX_ATTEMPTS)
            ended = {"status": "failed", "failed_at": now, "holder": None, "lease_expires_at": None}
            await connection.execute(batches.update().where(*worn_out).values(**ended))
            batch_id = (await connection.execute(_free(now, busy))).scalar_one_or_none()
            if batch_id is None:
                return None
            lease = {"holder": holder, "lease_expires_at": now + timedelta(seconds=lease_s)}
            begun = {"runs": batches.c.runs + 1, "attempts": batches.c.attempts + 1}
            return await _change(connection, batch_id, **lease, **begun)

    async def save(self, batch_id: str, holder: str, tally: Tally, *, lease_s: float) -> Batch:
        """Write how far it is, and extend the lease.

        Returns: the batch as it is now; it may have been cancelled meanwhile.

        Raises:
            BatchStopped: another server has it.
        """
        async with self._database.write() as connection:
            await _held(connection, batch_id, holder)
            until = self.clock() + timedelta(seconds=lease_s)
            return await _change(connection, batch_id, lease_expires_at=until, **_counts(tally))

    async def move(self, batch_id: str, holder: str, status: BatchStatus, tally: Tally) -> Batch:
        """Go on to ``status``; one that is being cancelled stays so. Raises BatchStopped."""
        async with self._database.write() as connection:
            found = await _held(connection, batch_id, holder)
            is_left = found.status == "cancelling"
            fields: dict[str, Any] = {} if is_left else {"status": status, f"{status}_at": self.clock()}
            return await _change(connection, batch_id, **_counts(tally), **fields)

    async def release(self, batch_id: str, holder: str, tally: Tally, *, pause_s: float) -> None:
        """Give it back, uncounted, to be taken after ``pause_s`` seconds. Raises BatchStopped."""
        async with self._database.write() as connection:
            await _held(connection, batch_id, holder)
            free = {"holder": None, "lease_expires_at": self.clock() + timedelta(seconds=pause_s)}
            await _change(connection, batch_id, attempts=batches.c.attempts - 1, **free, **_counts(tally))

    async def finish(
        self,
        batch: Batch,
        holder: str,
        status: BatchStatus,
        tally: Tally,
        written: Sequence[FileDraft],
        errors: Sequence[Mapping[str, Any]] | None = None,
    ) -> Batch:
        """End it, and make its files known in the same moment.

        Args:
            batch: which one.
            holder: who has it.
            status: how it ended.
            tally: of its lines.
            written: output and errors; one without a line is left out.
            errors: why it failed as a whole.

        Raises:
            BatchStopped: another server has it.
        """
        owner = Owner(batch.tenant, batch.key_id, batch.client, batch.scopes)
        async with self._database.write() as connection:
            await _held(connection, batch.id, holder)
            names = [None if draft.bytes == 0 else draft.id for draft in written] or [None, None]
            for draft in written:
                if draft.bytes:
                    await insert_file(connection, owner, draft, self.clock)
            fields: dict[str, Any] = {"status": status, f"{status}_at": self.clock(), "holder": None}
            fields |= {"lease_expires_at": None, "output_file": names[0], "error_file": names[1]}
            if errors is not None:
                fields["errors"] = [dict(error) for error in errors]
            return await _change(connection, batch.id, **_counts(tally), **fields)

    async def cancel(self, owner: Owner, batch_id: str) -> Batch:
        """Have it end with what it has; one that nobody has begun ends at once.

        Raises:
            BatchNotFound.
            BatchStateConflict: it has ended, or is about to.
        """
        async with self._database.write() as connection:
            found = await _read(connection, batch_id, owner)
            if found.status == "cancelling":
                return found
            if found.status not in CANCELLABLE:
                raise BatchStateConflict(batch_id, found.status)
            now = self.clock()
            if found.runs == 0:
                return await _change(connection, batch_id, status="cancelled", cancelling_at=now, cancelled_at=now)
            return await _change(connection, batch_id, status="cancelling", cancelling_at=now)

    async def get(self, owner: Owner, batch_id: str) -> Batch:
        """One. Raises BatchNotFound."""
        async with self._database.read() as connection:
            return await _read(connection, batch_id, owner)

    async def list(self, owner: Owner, *, limit: int, after: str | None = None) -> BatchPage:
        """A page, newest first.

        Raises:
            BatchNotFound: ``after`` is none.
        """
        age = (batches.c.created_at, batches.c.id)
        query = sa.select(*_FIELDS).where(*_seen(owner)).order_by(*(column.desc() for column in age)).limit(limit + 1)
        async with self._database.read() as connection:
            if after is not None:
                last = await _read(connection, after, owner)
                there = sa.tuple_(sa.literal(last.created_at, batches.c.created_at.type), last.id)
                query = query.where(sa.tuple_(*age) < there)
            rows = (await connection.execute(query)).mappings().all()
        return BatchPage(tuple(Batch.model_validate(dict(row)) for row in rows[:limit]), len(rows) > limit)

    async def count_live(self) -> dict[tuple[str, str], int]:
        """How many are queued or running, as a kind of job, zeros included."""
        query = sa.select(batches.c.holder.is_(None), sa.func.count()).where(batches.c.status.in_(LIVE))
        async with self._database.read() as connection:
            found = {
                bool(is_free): int(count)
                for is_free, count in await connection.execute(query.group_by(batches.c.holder.is_(None)))
            }
        return {("batch", "queued"): found.get(True, 0), ("batch", "running"): found.get(False, 0)}

    async def live_ids(self) -> Collection[str]:
        """The ids of those that have not ended."""
        query = sa.select(batches.c.id).where(batches.c.status.in_(LIVE))
        async with self._database.read(statement_s=LONG_S) as connection:
            return frozenset((await connection.execute(query)).scalars())

    async def forget_older(self, keep_s: float) -> int:
        """Forget those that ended and were created longer ago; returns how many."""
        before = self.clock() - timedelta(seconds=keep_s)
        old = batches.delete().where(batches.c.status.not_in(LIVE), batches.c.created_at < before)
        async with self._database.write(statement_s=LONG_S) as connection:
            return (await connection.execute(old)).rowcount


def _counts(tally: Tally) -> dict[str, int]:
    return {"total": tally.total, "completed": tally.completed, "failed": tally.failed}


def _unheld(now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    lease = batches.c.lease_expires_at
    return batches.c.status.in_(LIVE), lease.is_(None) | (lease <= now)


def _free(now: datetime, busy: Collection[str]) -> "sa.Select[Any]":
    """The id of the oldest one that nobody works on."""
    urgent = (batches.c.status == "cancelling") | (batches.c.expires_at <= now)
    query = sa.select(batches.c.id).where(*_unheld(now))
    if busy:
        query = query.where(urgent | batches.c.tenant.not_in(list(busy)))
    first = sa.case((urgent, 0), else_=1)
    return query.order_by(first, batches.c.created_at, batches.c.id).limit(1)


def _seen(owner: Owner) -> list[sa.ColumnElement[bool]]:
    seen = [batches.c.tenant == owner.tenant]
    return seen if owner.sees_all else [*seen, batches.c.scopes == owner.scopes]


async def _read(connection: AsyncConnection, batch_id: str, owner: Owner | None = None) -> Batch:
    query = sa.select(*_FIELDS).where(batches.c.id == batch_id, *([] if owner is None else _seen(owner)))
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise BatchNotFound(batch_id)
    return Batch.model_validate(dict(row))


async def _held(connection: AsyncConnection, batch_id: str, holder: str) -> Batch:
    mine = (batches.c.id == batch_id, batches.c.status.in_(LIVE), batches.c.holder == holder)
    row = (await connection.execute(sa.select(*_FIELDS).where(*mine))).mappings().one_or_none()
    if row is None:
        raise BatchStopped(batch_id)
    return Batch.model_validate(dict(row))


async def _change(connection: AsyncConnection, batch_id: str, **fields: Any) -> Batch:
    await connection.execute(batches.update().where(batches.c.id == batch_id).values(**fields))
    return await _read(connection, batch_id)
