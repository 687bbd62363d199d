"""The registry of stored files: whose they are, how large, and until when they are kept. The store has their bytes."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.batch import LIVE
from amalgam.domain.clock import Clock
from amalgam.domain.stored_file import MAX_FILES, FileDraft, FilePage, FilePurpose, Owner, StoredFile
from amalgam.errors.batches import FileInUse, FileNotFound, TooManyFiles
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.stored_bytes import require_storage
from amalgam.registry.tables import batches, files

_FIELDS: Final = [files.c[name] for name in StoredFile.model_fields]


@dataclass(frozen=True, slots=True)
class FileList:
    """What of a list is asked for.

    Attributes:
        purpose: of these alone.
        limit: most of them.
        after: id of the last file of the page before.
        newest_first: the order.
    """

    purpose: FilePurpose | None = None
    limit: int = 100
    after: str | None = None
    newest_first: bool = True


class FileRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(self, owner: Owner, draft: FileDraft) -> StoredFile:
        """Write the row of a file whose bytes are stored.

        Raises:
            TooManyFiles: the tenant has `MAX_FILES`.
            StorageSpent: the file does not fit into a limit of the tenant or the key.
        """
        async with self._database.write() as connection:
            count = sa.select(sa.func.count()).where(files.c.tenant == owner.tenant)
            if (await connection.execute(count)).scalar_one() >= MAX_FILES:
                raise TooManyFiles(MAX_FILES)
            await require_storage(connection, owner.stored_by, draft.bytes)
            return await insert_file(connection, owner, draft, self._clock)

    async def require_storage(self, owner: Owner, needed: int) -> None:
        """Nothing where ``needed`` bytes more fit now. Raises StorageSpent."""
        async with self._database.read() as connection:
            await require_storage(connection, owner.stored_by, needed)

    async def get(self, owner: Owner, file_id: str) -> StoredFile:
        """One that has not expired. Raises FileNotFound."""
        async with self._database.read() as connection:
            return await self._read(connection, owner, file_id)

    async def list(self, owner: Owner, asked: FileList) -> FilePage:
        """A page.

        Raises:
            FileNotFound: ``after`` is none.
        """
        age = (files.c.created_at, files.c.id)
        query = sa.select(*_FIELDS).where(*self._seen(owner))
        if asked.purpose is not None:
            query = query.where(files.c.purpose == asked.purpose)
        async with self._database.read() as connection:
            if asked.after is not None:
                last = await self._read(connection, owner, asked.after)
                here, there = sa.tuple_(*age), sa.tuple_(sa.literal(last.created_at, files.c.created_at.type), last.id)
                query = query.where(here < there if asked.newest_first else here > there)
            order = [column.desc() if asked.newest_first else column.asc() for column in age]
            rows = (await connection.execute(query.order_by(*order).limit(asked.limit + 1))).mappings().all()
        items = tuple(StoredFile.model_validate(dict(row)) for row in rows[: asked.limit])
        return FilePage(items, len(rows) > asked.limit)

    async def delete(self, owner: Owner, file_id: str) -> None:
        """Forget one.

        Raises:
            FileNotFound.
            FileInUse: a batch that has not ended reads it.
        """
        async with self._database.write() as connection:
            await self._read(connection, owner, file_id)
            reader = sa.select(batches.c.id).where(batches.c.input_file == file_id, batches.c.status.in_(LIVE))
            batch_id = (await connection.execute(reader.limit(1))).scalar_one_or_none()
            if batch_id is not None:
                raise FileInUse(file_id, str(batch_id))
            await connection.execute(files.delete().where(files.c.id == file_id))

    async def forget_expired(self) -> int:
        """Forget those whose time is over and that no batch reads; returns how many."""
        read = sa.select(batches.c.input_file).where(batches.c.status.in_(LIVE))
        async with self._database.write(statement_s=LONG_S) as connection:
            over = files.delete().where(files.c.expires_at <= self._clock(), files.c.id.not_in(read))
            return (await connection.execute(over)).rowcount

    async def ids(self) -> Collection[str]:
        """The ids of all."""
        async with self._database.read(statement_s=LONG_S) as connection:
            return frozenset((await connection.execute(sa.select(files.c.id))).scalars())

    def _seen(self, owner: Owner) -> tuple[sa.ColumnElement[bool], ...]:
        seen = (files.c.tenant == owner.tenant, files.c.expires_at > self._clock())
        return seen if owner.sees_all else (*seen, files.c.scopes == owner.scopes)

    async def _read(self, connection: AsyncConnection, owner: Owner, file_id: str) -> StoredFile:
        query = sa.select(*_FIELDS).where(files.c.id == file_id, *self._seen(owner))
        row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise FileNotFound(file_id)
        return StoredFile.model_validate(dict(row))


async def insert_file(connection: AsyncConnection, owner: Owner, draft: FileDraft, clock: Clock) -> StoredFile:
    """Write a row within a transaction; the file exists from now on."""
    now = clock()
    row: dict[str, Any] = {
        "id": draft.id,
        "tenant": owner.tenant,
        "key_id": owner.key_id,
        "scopes": owner.scopes,
        "purpose": draft.purpose,
        "filename": draft.filename,
        "bytes": draft.bytes,
        "created_at": now,
        "expires_at": now + timedelta(seconds=draft.kept_s),
    }
    await connection.execute(files.insert().values(**row))
    return StoredFile.model_validate(row)
