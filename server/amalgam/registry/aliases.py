"""The registry of aliases: what each means, at which revision, and what it meant before."""

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.alias import (
    Alias,
    AliasChange,
    AliasHistory,
    AliasPage,
    AliasTarget,
    adapters_used,
)
from amalgam.domain.clock import Clock
from amalgam.domain.routing import Router, RouterNumbers
from amalgam.errors.aliases import AliasNotFound, AliasRevisionNotFound, NothingToRollBack, StaleRevision
from amalgam.registry.alias_rows import (
    alias_of,
    change_before,
    change_of,
    find_change,
    find_row,
    live_alias,
    refuse_adapter_name,
    require_targets,
    write_change,
)
from amalgam.registry.database import Database
from amalgam.registry.experiments import replace_experiment
from amalgam.registry.routers import forget_numbers, keep_numbers
from amalgam.registry.tables import alias_changes, aliases
from amalgam.registry.version_rows import bump_revision


class AliasRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing.

    ``expected`` is compare-and-set: the revision that the alias has to be at, 0 for a name that is no alias, None where
    it does not matter. Another one raises `StaleRevision`.
    """

    def __init__(self, database: Database, clock: Clock, base_name: str) -> None:
        self._database = database
        self._clock = clock
        self._base_name = base_name

    async def put(
        self,
        name: str,
        targets: Sequence[AliasTarget],
        *,
        expected: int | None = None,
        router: tuple[Router, RouterNumbers] | None = None,
    ) -> tuple[Alias, bool]:
        """Make ``name`` mean ``targets``; also whether the alias is new. What it means already changes nothing.

        Args:
            name: alias.
            targets: weighted, or those that ``router`` chooses among.
            expected: see above.
            router: with its numbers; None: weights choose.

        Raises:
            StaleRevision: see above.
            NameTaken: an adapter has the name, or an unfinished merge will.
            AliasOfAlias, ModelNotFound: a target.
        """
        async with self._database.write() as connection:
            row = await find_row(connection, name)
            current = _check(name, row, expected)
            chosen_by = None if router is None else router[0]
            if current is not None and current.targets == tuple(targets) and current.router == chosen_by:
                return current, False
            if router is not None:
                await keep_numbers(connection, router[1])
            change = AliasChange(
                revision=1,
                action="set",
                targets=tuple(targets),
                router=chosen_by,
                restores=None,
                created_at=self._clock(),
            )
            alias = await self._write(connection, name, row, change)
            if router is not None:
                await forget_numbers(connection)
            return alias, current is None

    async def rollback(
        self,
        name: str,
        *,
        to_revision: int | None = None,
        expected: int | None = None,
        allow: Callable[[Sequence[AliasTarget]], None] = lambda targets: None,
    ) -> Alias:
        """Bring back what the alias meant before its last change, a deletion included, or at ``to_revision``.

        Repeated, it goes back further: to before the state that was brought back, not to what was rolled back.
        ``allow`` is asked about the targets before anything is written, and raises where they are not to come back.

        Raises:
            StaleRevision: see above.
            AliasNotFound: there never was one.
            AliasRevisionNotFound: nothing to bring back at ``to_revision``.
            NothingToRollBack: the alias did not exist before.
            NameTaken, AliasOfAlias, ModelNotFound: as `put`; what it meant may be gone.
        """
        async with self._database.write() as connection:
            row = await find_row(connection, name)
            if row is None:
                raise AliasNotFound(name)
            _check(name, row, expected)
            if to_revision is None:
                former = await self._former(connection, name, row["revision"])
            else:
                found = await find_change(connection, name, to_revision)
                if found is None or not found.targets:
                    raise AliasRevisionNotFound(name, to_revision)
                former = found
            allow(former.targets)
            change = former.model_copy(update={"action": "rollback", "restores": former.origin})
            return await self._write(connection, name, row, change)

    async def _former(self, connection: AsyncConnection, name: str, revision: int) -> AliasChange:
        current = await find_change(connection, name, revision)
        former = None if current is None else await change_before(connection, name, current.origin)
        if former is None or not former.targets:
            raise NothingToRollBack(name)
        return former

    async def delete(self, name: str, *, expected: int | None = None) -> Alias:
        """Delete the alias; its history stays, and its revisions go on where the name comes back.

        Raises:
            AliasNotFound: there is none.
            StaleRevision: see above.
        """
        async with self._database.write() as connection:
            now = self._clock()
            alias = await live_alias(connection, name)
            _check(name, await find_row(connection, name), expected)
            await replace_experiment(connection, alias, self._clock)
            fields = {"revision": alias.revision + 1, "updated_at": now, "deleted_at": now, "experiment": None}
            await connection.execute(aliases.update().where(aliases.c.name == name).values(**fields))
            gone = AliasChange(revision=alias.revision + 1, action="delete", targets=(), restores=None, created_at=now)
            await write_change(connection, name, gone)
            await bump_revision(connection)
        return alias

    async def get(self, name: str) -> Alias:
        """A live alias.

        Raises:
            AliasNotFound: there is none.
        """
        async with self._database.read() as connection:
            return await live_alias(connection, name)

    async def list(self, *, search: str = "", limit: int = 50, cursor: str | None = None) -> AliasPage:
        """Live aliases in order of name; arguments as `AdapterRegistry.list_adapters`."""
        query = sa.select(aliases).where(aliases.c.deleted_at.is_(None)).order_by(aliases.c.name).limit(limit + 1)
        if search:
            query = query.where(aliases.c.name.icontains(search, autoescape=True))
        if cursor is not None:
            query = query.where(aliases.c.name > cursor)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        items = tuple(alias_of(row) for row in rows[:limit])
        return AliasPage(items, items[-1].name if len(rows) > limit else None)

    async def history(self, name: str, *, limit: int = 50, cursor: int | None = None) -> AliasHistory:
        """Changes of an alias, newest first, also of a deleted one.

        Args:
            name: alias.
            limit: Most items of a page, from 1.
            cursor: ``next_cursor`` of the page before.

        Raises:
            AliasNotFound: there never was one.
        """
        query = sa.select(alias_changes).where(alias_changes.c.name == name)
        if cursor is not None:
            query = query.where(alias_changes.c.revision < cursor)
        async with self._database.read() as connection:
            if await find_row(connection, name) is None:
                raise AliasNotFound(name)
            found = await connection.execute(query.order_by(alias_changes.c.revision.desc()).limit(limit + 1))
            rows = found.mappings().all()
        items = tuple(change_of(row) for row in rows[:limit])
        return AliasHistory(items, items[-1].revision if len(rows) > limit else None)

    async def _write(
        self, connection: AsyncConnection, name: str, row: sa.RowMapping | None, change: AliasChange
    ) -> Alias:
        """Check names and targets, then write the next revision, with what ``change`` says, over ``row``."""
        is_new = row is None or row["deleted_at"] is not None
        if is_new:
            await refuse_adapter_name(connection, name)
        uses = adapters_used(change.targets, self._base_name)
        await require_targets(connection, name, uses)
        now = self._clock()
        alias = Alias(
            name=name,
            revision=1 if row is None else row["revision"] + 1,
            targets=change.targets,
            router=change.router,
            created_at=now if row is None or is_new else row["created_at"],
            updated_at=now,
        )
        fields: dict[str, Any] = alias.model_dump() | {"uses": [[use.name, use.number] for use in uses]}
        await replace_experiment(connection, None if row is None or is_new else alias_of(row), self._clock)
        if row is None:
            await connection.execute(aliases.insert().values(**fields))
        else:
            await connection.execute(aliases.update().where(aliases.c.name == name).values(**fields, deleted_at=None))
        written = change.model_copy(update={"revision": alias.revision, "created_at": now})
        await write_change(connection, name, written)
        await bump_revision(connection)
        return alias


def _check(name: str, row: sa.RowMapping | None, expected: int | None) -> Alias | None:
    """The live alias of ``row``, at the expected revision."""
    current = None if row is None or row["deleted_at"] is not None else alias_of(row)
    if expected is not None and expected != (current.revision if current else 0):
        raise StaleRevision(name, expected, current.revision if current else None)
    return current
