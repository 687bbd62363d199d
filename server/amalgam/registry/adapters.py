"""The registry of adapters: names, their immutable versions, and which version a bare name means."""

from collections.abc import Collection, Sequence, Set
from datetime import timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.adapter import Adapter, AdapterVersion, VersionRef
from amalgam.domain.clock import Clock
from amalgam.domain.job import LIVE_STATES
from amalgam.domain.lineage import KnownVersion
from amalgam.domain.stored_bytes import StoredBy
from amalgam.domain.version import AdapterPage, CatalogChange, CatalogRows, CreatedVersion, VersionDraft
from amalgam.errors.adapters import DefaultVersionInUse, NameTaken, VersionNotFound
from amalgam.registry.alias_rows import live_aliases, refuse_targeted
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.pins import read_pins
from amalgam.registry.scoped_names import page_of
from amalgam.registry.stored_bytes import require_storage
from amalgam.registry.tables import adapters, aliases, idempotency_keys, jobs, pins, versions
from amalgam.registry.version_rows import (
    adapter_of,
    any_of,
    bump_revision,
    by_name,
    insert_version,
    live_adapter,
    live_version,
    live_versions,
    mark_proved,
    move_default,
    read_revision,
    remove_version,
    served_of,
    version_of,
    versions_by_id,
)

_DIGESTS_AT_ONCE: Final = 1000
_REFS_AT_ONCE: Final = 200


class AdapterRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create_version(
        self, draft: VersionDraft, *, set_default: bool = True, if_absent: bool = False, proved: bool = True
    ) -> CreatedVersion:
        """Write the draft as the next version of its name; its bytes are durable before.

        Where the default version already holds these bytes, that version is the answer and nothing is written: a
        retried upload is no new version.

        Args:
            draft: Its files are in the store already. The same bytes under the same ``request_key`` are the version
                that this request made when it was cut short.
            set_default: Whether the bare name means the new version from now on.
            if_absent: Whether the name must be new.
            proved: Whether the commit makes it visible to requests; else `enter_service` does.

        Raises:
            NameTaken: ``if_absent``, and the name has other versions; or an alias has the name.
            StorageSpent: it does not fit into a limit of whose bytes it counts as.
        """
        async with self._database.write() as connection:
            begun = await _made_by_request(connection, draft)
            if begun is not None:
                return CreatedVersion(begun, created=True)
            query = (
                sa.select(versions)
                .join(adapters, (adapters.c.name == versions.c.name) & adapters.c.deleted_at.is_(None))
                .where(versions.c.name == draft.name, versions.c.deleted_at.is_(None))
                .add_columns(adapters.c.default_version)
            )
            live = (await connection.execute(query)).mappings().all()
            for row in live:
                if row["number"] == row["default_version"] and row["digest"] == draft.digest:
                    return CreatedVersion(version_of(row), created=False)
            if live and if_absent:
                raise NameTaken(draft.name)
            version = await insert_version(connection, draft, now=self._clock(), set_default=set_default, proved=proved)
            if draft.request_key is not None:
                this = idempotency_keys.c.key == draft.request_key
                await connection.execute(idempotency_keys.update().where(this).values(version_id=version.id))
        return CreatedVersion(version, created=True)

    async def require_storage(self, who: StoredBy, needed: int) -> None:
        """Nothing where ``needed`` bytes more fit now. Raises StorageSpent."""
        async with self._database.read() as connection:
            await require_storage(connection, who, needed)

    async def get_adapter(self, name: str) -> Adapter:
        """A live adapter with its live versions.

        Raises:
            AdapterNotFound: there is none.
        """
        async with self._database.read() as connection:
            row = await live_adapter(connection, name)
            return adapter_of(row, await live_versions(connection, [name]))

    async def get_version(self, name: str, number: int) -> AdapterVersion:
        """A live version.

        Raises:
            AdapterNotFound, VersionNotFound: there is none.
        """
        async with self._database.read() as connection:
            return await live_version(connection, name, number)

    async def list_adapters(
        self, *, search: str = "", limit: int = 50, cursor: str | None = None, patterns: Sequence[str] | None = None
    ) -> AdapterPage:
        """Live adapters in order of name.

        Args:
            search: Part of the name, in any case; empty for all.
            limit: Most items of a page, from 1.
            cursor: ``next_cursor`` of the page before.
            patterns: Of names, with ``*`` and ``?``, of which one has to match; None: all.
        """
        # Names alone are read off their own index, however many there are to look at; then the rows of the page.
        query = sa.select(adapters.c.name).where(adapters.c.deleted_at.is_(None))
        if search:
            query = query.where(adapters.c.name.icontains(search, autoescape=True))
        if cursor is not None:
            query = query.where(adapters.c.name > cursor)
        async with self._database.read(statement_s=LONG_S if search or patterns else None) as connection:
            page = page_of(query, adapters.c.name, patterns, limit + 1, connection.dialect.name).subquery()
            of_page = sa.select(adapters).where(adapters.c.name.in_(sa.select(page.c.name)))
            rows = (await connection.execute(of_page.order_by(adapters.c.name))).mappings().all()
            names = [row["name"] for row in rows[:limit]]
            grouped = by_name(await live_versions(connection, names))
        items = tuple(adapter_of(row, grouped.get(row["name"], ())) for row in rows[:limit])
        return AdapterPage(items, names[-1] if len(rows) > limit else None)

    async def enter_service(self, version: AdapterVersion, *, set_default: bool) -> None:
        """Let a version that has answered be served, and mean its name where asked. Repeating it changes nothing.

        Raises:
            AdapterNotFound, VersionNotFound: it was deleted meanwhile.
        """
        async with self._database.write() as connection:
            await live_version(connection, version.name, version.number)
            await mark_proved(connection, version)
            if set_default:
                await move_default(connection, version)

    async def unproved(self, *, older_s: float = 0.0) -> tuple[AdapterVersion, ...]:
        """Live versions that have not answered, in order of id; those that jobs built are not among them.

        Args:
            older_s: Those alone that were registered so many seconds ago, or earlier.
        """
        of_jobs = sa.select(jobs.c.version_id).where(jobs.c.state.in_(LIVE_STATES), jobs.c.version_id.is_not(None))
        left = (versions.c.deleted_at.is_(None), versions.c.proved.is_(False), versions.c.id.not_in(of_jobs))
        async with self._database.read() as connection:
            query = sa.select(versions).where(*left).order_by(versions.c.id)
            if older_s:
                query = query.where(versions.c.created_at <= self._clock() - timedelta(seconds=older_s))
            rows = (await connection.execute(query)).mappings()
            return tuple(version_of(row) for row in rows)

    async def set_default(self, name: str, number: int) -> Adapter:
        """Make ``name`` mean version ``number``.

        Raises:
            AdapterNotFound, VersionNotFound: there is no such version.
        """
        async with self._database.write() as connection:
            await move_default(connection, await live_version(connection, name, number))
            return adapter_of(await live_adapter(connection, name), await live_versions(connection, [name]))

    async def set_description(self, name: str, description: str) -> Adapter:
        """Describe an adapter to people.

        Raises:
            AdapterNotFound: there is none.
        """
        async with self._database.write() as connection:
            await live_adapter(connection, name)
            await connection.execute(adapters.update().where(adapters.c.name == name).values(description=description))
            await bump_revision(connection)
            return adapter_of(await live_adapter(connection, name), await live_versions(connection, [name]))

    async def delete_version(self, name: str, number: int) -> AdapterVersion:
        """Delete a version; its number is not used again. The adapter goes with its last version.

        Raises:
            AdapterNotFound, VersionNotFound: there is no such version.
            DefaultVersionInUse: it is the default one and there are others: which should the name mean?
            AliasTargetInUse: an alias means it.
        """
        async with self._database.write() as connection:
            version = await live_version(connection, name, number)
            adapter = await live_adapter(connection, name)
            is_last = len(await live_versions(connection, [name])) == 1
            if adapter["default_version"] == number and not is_last:
                raise DefaultVersionInUse(name, number)
            await refuse_targeted(connection, name, None if is_last else number)
            await remove_version(connection, version, now=self._clock())
        return version

    async def withdraw_version(self, name: str, number: int) -> None:
        """Delete a version that never answered, whatever already names it.

        Raises:
            AdapterNotFound, VersionNotFound: there is no such version.
        """
        async with self._database.write() as connection:
            version = await live_version(connection, name, number)
            await remove_version(connection, version, now=self._clock())

    async def delete_adapter(self, name: str) -> tuple[AdapterVersion, ...]:
        """Delete an adapter and all its versions; returns these. The name is free again, its old numbers are not.

        Raises:
            AdapterNotFound: there is none.
            AliasTargetInUse: an alias means it, or a version of it.
        """
        async with self._database.write() as connection:
            now = self._clock()
            await live_adapter(connection, name)
            await refuse_targeted(connection, name, None)
            removed = await live_versions(connection, [name])
            its_ids = sa.select(versions.c.id).where(versions.c.name == name)
            await connection.execute(pins.delete().where(pins.c.version_id.in_(its_ids)))
            revision = await bump_revision(connection, served=-await served_of(connection, versions.c.name == name))
            gone = {"deleted_at": now, "revision": revision}
            live = versions.update().where(versions.c.name == name, versions.c.deleted_at.is_(None))
            await connection.execute(live.values(**gone))
            this = adapters.update().where(adapters.c.name == name)
            await connection.execute(this.values(default_version=None, **gone))
        return tuple(removed)

    async def load_catalog(self) -> CatalogRows:
        """Everything that may be served, as of one moment."""
        query = sa.select(adapters).where(adapters.c.deleted_at.is_(None)).order_by(adapters.c.name)
        async with self._database.read(statement_s=LONG_S) as connection:
            revision = await read_revision(connection)
            rows = (await connection.execute(query)).mappings().all()
            live = await live_versions(connection, proved=True)
            named = await live_aliases(connection)
            pinned = await read_pins(connection)
        grouped = by_name(live)
        return CatalogRows(
            revision=revision,
            adapters=tuple(adapter_of(row, grouped.get(row["name"], ())) for row in rows),
            versions=tuple(sorted(live, key=lambda version: version.id)),
            aliases=named,
            pinned=pinned,
        )

    async def load_change(self, known: Set[int]) -> CatalogChange:
        """Everything that may be served, as of one moment, without the rows of versions whose ids are ``known``.

        With many adapters, most of what `load_catalog` takes is spent on rows that nothing can have changed.
        """
        is_default = adapters.c.default_version == versions.c.number
        served = (versions.c.deleted_at.is_(None), versions.c.proved)
        query = sa.select(versions.c.id, is_default).join(adapters).where(*served)
        async with self._database.read(statement_s=LONG_S) as connection:
            revision = await read_revision(connection)
            marks = (await connection.execute(query)).all()
            live = frozenset(mark[0] for mark in marks)
            added = await versions_by_id(connection, live - known)
            named = await live_aliases(connection)
            pinned = await read_pins(connection)
        return CatalogChange(revision, live, frozenset(mark[0] for mark in marks if mark[1]), added, named, pinned)

    async def revision(self) -> int:
        """A number that grows with every change to adapters, versions or aliases."""
        async with self._database.read() as connection:
            return await read_revision(connection)

    async def digests_in_use(self, *, kept_s: float = 0.0, among: Collection[str] | None = None) -> frozenset[str]:
        """Digests whose files are still needed: of live versions, and of the inputs of live jobs.

        Args:
            kept_s: Those of versions that were deleted within so many seconds are needed as well.
            among: these alone are asked about; None: all, however many there are.
        """
        of_jobs = sa.select(jobs.c.input_digests).where(jobs.c.state.in_(LIVE_STATES))
        digests: set[str] = set()
        async with self._database.read(statement_s=LONG_S) as connection:
            kept = versions.c.deleted_at > self._clock() - timedelta(seconds=kept_s)
            of_versions = sa.select(versions.c.digest).distinct().where(versions.c.deleted_at.is_(None) | kept)
            asked: Sequence[list[str] | None] = [None] if among is None else _parts(among)
            for part in asked:
                some = of_versions if part is None else of_versions.where(versions.c.digest.in_(part))
                digests.update((await connection.execute(some)).scalars())
            for inputs in (await connection.execute(of_jobs)).scalars():
                digests.update(inputs if among is None else set(inputs).intersection(among))
        return frozenset(digests)

    async def is_digest_in_use(self, digest: str) -> bool:
        """Whether `digests_in_use` has it."""
        of_versions = sa.select(versions.c.id).where(versions.c.digest == digest, versions.c.deleted_at.is_(None))
        of_jobs = sa.select(jobs.c.input_digests).where(jobs.c.state.in_(LIVE_STATES))
        async with self._database.read() as connection:
            if (await connection.execute(of_versions.limit(1))).first() is not None:
                return True
            return any(digest in inputs for inputs in (await connection.execute(of_jobs)).scalars())

    async def get_pinned(self, name: str, number: int) -> AdapterVersion:
        """A version, deleted or not: what a live job names keeps its files until the job ends.

        Raises:
            VersionNotFound: the number was never given.
        """
        query = sa.select(versions).where(versions.c.name == name, versions.c.number == number)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise VersionNotFound(name, number)
        return version_of(row)

    async def get_known(self, refs: Collection[VersionRef]) -> dict[VersionRef, KnownVersion]:
        """Those of the versions that were ever made, deleted or not, in the order asked for."""
        rows: list[sa.RowMapping] = []
        asked = list(refs)
        async with self._database.read() as connection:
            for at in range(0, len(asked), _REFS_AT_ONCE):
                query = sa.select(versions).where(any_of(asked[at : at + _REFS_AT_ONCE]))
                rows += (await connection.execute(query)).mappings()
        found = {VersionRef(row["name"], row["number"]): row for row in rows}
        return {
            ref: KnownVersion(version_of(found[ref]), found[ref]["deleted_at"] is not None)
            for ref in refs
            if ref in found
        }

    async def names_ever_used(self, among: Collection[str]) -> frozenset[str]:
        """Those of ``among`` that are the name of an adapter or an alias, those of deleted ones included."""
        query = sa.union(
            *(sa.select(table.c.name).where(table.c.name.in_(list(among))) for table in (adapters, aliases))
        )
        async with self._database.read() as connection:
            return frozenset((await connection.execute(query)).scalars())


def _parts(digests: Collection[str]) -> list[list[str]]:
    ordered = sorted(digests)
    return [ordered[at : at + _DIGESTS_AT_ONCE] for at in range(0, len(ordered), _DIGESTS_AT_ONCE)]


async def _made_by_request(connection: AsyncConnection, draft: VersionDraft) -> AdapterVersion | None:
    """The live version that this very request made before it was cut short."""
    if draft.request_key is None:
        return None
    query = (
        sa.select(versions)
        .join(idempotency_keys, idempotency_keys.c.version_id == versions.c.id)
        .where(
            idempotency_keys.c.key == draft.request_key,
            versions.c.name == draft.name,
            versions.c.digest == draft.digest,
            versions.c.deleted_at.is_(None),
        )
    )
    row = (await connection.execute(query)).mappings().one_or_none()
    return version_of(row) if row is not None else None
