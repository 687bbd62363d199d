"""Single names, pages of names and what changed: all that a catalog asks which does not hold every row.

Each question is answered through an index, so that it takes as long among a million adapters as among ten.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.adapter import AdapterVersion, VersionRef, is_name
from amalgam.domain.catalog_rows import NameAnswers, NameChanges, NameRow, RegistryState, ServedVersion
from amalgam.registry.alias_rows import live_aliases
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.near_names import near_rows
from amalgam.registry.pins import read_pins
from amalgam.registry.profiles import newest_states
from amalgam.registry.scoped_names import page_of
from amalgam.registry.tables import adapters, registry_state, versions
from amalgam.registry.version_rows import SERVED, any_of, read_revision, version_of

_MOST_NEAR: Final = 8
"""For so many unknown names of one look near ones are looked for as well: nobody waits long behind a crowd of them."""


class NameRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def state(self) -> RegistryState:
        """How far the registry is."""
        query = sa.select(registry_state.c.revision, registry_state.c.served_versions)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one()
        return RegistryState(row[0], row[1])

    async def look_up(self, names: Collection[str], recipes: Collection[str] = ()) -> NameAnswers:
        """What each of ``names`` means, and which versions were merged by ``recipes``; a few of either."""
        async with self._database.read() as connection:
            revision = await read_revision(connection)
            found = await _found(connection, names)
            states = await newest_states(connection, [version.id for version in found.values()])
            unknown = [name for name in names if name not in found][:_MOST_NEAR]
            near = {name: await near_rows(connection, name) for name in unknown}
            merged = await _merged(connection, recipes)
        served = {name: ServedVersion(version, states.get(version.id)) for name, version in found.items()}
        return NameAnswers(revision, served, near, merged)

    async def changes(self, since: int | None) -> NameChanges:
        """What changed after revision ``since``; None: only what is held whole."""
        async with self._database.read(statement_s=LONG_S) as connection:
            query = sa.select(registry_state.c.revision, registry_state.c.served_versions)
            revision, served = (await connection.execute(query)).one()
            moved: Sequence[Any] = ()
            names: set[str] = set()
            if since is not None:
                columns = (versions.c.id, versions.c.name, versions.c.deleted_at, versions.c.recipe_digest)
                moved = (await connection.execute(sa.select(*columns).where(versions.c.revision > since))).all()
                named = sa.select(adapters.c.name).where(adapters.c.revision > since)
                names = {row[1] for row in moved} | set((await connection.execute(named)).scalars())
            aliases, pinned = await live_aliases(connection), await read_pins(connection)
            held = await _by_id(connection, pinned)
        return NameChanges(
            revision=revision,
            served_versions=served,
            names=frozenset(names),
            gone=frozenset(row[0] for row in moved if row[2] is not None),
            recipes=frozenset(row[3] for row in moved if row[3] is not None),
            aliases=aliases,
            pinned=pinned,
            pinned_versions=held,
        )

    async def page(self, after: str | None, limit: int, patterns: Sequence[str] | None = None) -> tuple[NameRow, ...]:
        """Adapters with a default version that may be served, in order of name.

        Args:
            after: those behind this name alone.
            limit: most rows.
            patterns: of names, with ``*`` and ``?``, of which one has to match; None: all.
        """
        query = (
            sa.select(adapters.c.name, versions.c.number, versions.c.created_at)
            .join(versions, _is_default())
            .where(*SERVED)
        )
        if after is not None:
            query = query.where(adapters.c.name > after, versions.c.name > after)
        async with self._database.read(statement_s=LONG_S) as connection:
            page = page_of(query, adapters.c.name, patterns, limit, connection.dialect.name, (versions.c.name,))
            return tuple(NameRow(*row) for row in await connection.execute(page))


def _is_default() -> sa.ColumnElement[bool]:
    return (versions.c.name == adapters.c.name) & (versions.c.number == adapters.c.default_version)


async def _found(connection: AsyncConnection, names: Collection[str]) -> dict[str, AdapterVersion]:
    refs = {name: ref for name in names if (ref := VersionRef.parse(name)) is not None}
    bare = [name for name in names if name not in refs and is_name(name)]
    found: dict[str, AdapterVersion] = {}
    if bare:
        query = sa.select(versions).join(adapters, _is_default()).where(adapters.c.name.in_(bare), *SERVED)
        rows = (await connection.execute(query)).mappings()
        found |= {row["name"]: version_of(row) for row in rows}
    if refs:
        rows = (await connection.execute(sa.select(versions).where(any_of(refs.values()), *SERVED))).mappings()
        found |= {f"{row['name']}@{row['number']}": version_of(row) for row in rows}
    return found


async def _merged(connection: AsyncConnection, recipes: Collection[str]) -> dict[str, tuple[AdapterVersion, ...]]:
    if not recipes:
        return {}
    query = sa.select(versions).where(versions.c.recipe_digest.in_(list(recipes)), *SERVED).order_by(versions.c.id)
    found: dict[str, list[AdapterVersion]] = {digest: [] for digest in recipes}
    for row in (await connection.execute(query)).mappings():
        found[row["recipe_digest"]].append(version_of(row))
    return {digest: tuple(merged) for digest, merged in found.items()}


async def _by_id(connection: AsyncConnection, ids: frozenset[int]) -> tuple[AdapterVersion, ...]:
    if not ids:
        return ()
    rows = await connection.execute(sa.select(versions).where(versions.c.id.in_(list(ids)), *SERVED))
    return tuple(version_of(row) for row in rows.mappings())
