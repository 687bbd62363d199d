"""Aliases within an open transaction: their rows, and what keeps names and targets from contradicting each other."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.alias import (
    MAX_CHANGES_KEPT,
    AdapterUse,
    Alias,
    AliasChange,
)
from amalgam.domain.job import LIVE_STATES
from amalgam.errors.adapters import NameTaken
from amalgam.errors.aliases import AliasNotFound, AliasOfAlias, AliasTargetInUse
from amalgam.errors.requests import ModelNotFound
from amalgam.registry.tables import adapters, alias_changes, aliases, jobs, versions


def alias_of(row: sa.RowMapping) -> Alias:
    """The domain's alias from a row of ``aliases``."""
    return Alias.model_validate({field: row[field] for field in Alias.model_fields})


def change_of(row: sa.RowMapping) -> AliasChange:
    """The domain's change from a row of ``alias_changes``."""
    return AliasChange.model_validate({field: row[field] for field in AliasChange.model_fields})


async def find_row(connection: AsyncConnection, name: str) -> sa.RowMapping | None:
    """The row of an alias, deleted or not."""
    return (await connection.execute(sa.select(aliases).where(aliases.c.name == name))).mappings().one_or_none()


async def live_alias(connection: AsyncConnection, name: str) -> Alias:
    """A live alias.

    Raises:
        AliasNotFound: there is none, or it was deleted.
    """
    row = await find_row(connection, name)
    if row is None or row["deleted_at"] is not None:
        raise AliasNotFound(name)
    return alias_of(row)


async def live_aliases(connection: AsyncConnection) -> tuple[Alias, ...]:
    """Every live alias in order of name."""
    query = sa.select(aliases).where(aliases.c.deleted_at.is_(None)).order_by(aliases.c.name)
    return tuple(alias_of(row) for row in (await connection.execute(query)).mappings())


async def find_change(connection: AsyncConnection, name: str, revision: int) -> AliasChange | None:
    """One entry of an alias' history."""
    query = sa.select(alias_changes).where(alias_changes.c.name == name, alias_changes.c.revision == revision)
    row = (await connection.execute(query)).mappings().one_or_none()
    return change_of(row) if row is not None else None


async def change_before(connection: AsyncConnection, name: str, revision: int) -> AliasChange | None:
    """The newest entry of an alias' history before ``revision``."""
    query = (
        sa.select(alias_changes)
        .where(alias_changes.c.name == name, alias_changes.c.revision < revision)
        .order_by(alias_changes.c.revision.desc())
        .limit(1)
    )
    row = (await connection.execute(query)).mappings().one_or_none()
    return change_of(row) if row is not None else None


async def write_change(connection: AsyncConnection, name: str, change: AliasChange) -> None:
    """Add an entry to an alias' history, and forget what has become too old."""
    await connection.execute(alias_changes.insert().values(name=name, **_columns(change)))
    too_old = alias_changes.c.revision <= change.revision - MAX_CHANGES_KEPT
    await connection.execute(alias_changes.delete().where(alias_changes.c.name == name, too_old))


def _columns(change: AliasChange) -> dict[str, Any]:
    return change.model_dump(mode="json", exclude={"created_at"}) | {"created_at": change.created_at}


async def refuse_alias_name(connection: AsyncConnection, name: str) -> None:
    """Keep an adapter from taking the name of an alias.

    Raises:
        NameTaken: a live alias has it.
    """
    query = sa.select(aliases.c.name).where(aliases.c.name == name, aliases.c.deleted_at.is_(None))
    if (await connection.execute(query)).first() is not None:
        raise NameTaken.by_alias(name)


async def refuse_adapter_name(connection: AsyncConnection, name: str) -> None:
    """Keep an alias from taking the name of an adapter, or of one that a merge is about to make.

    Raises:
        NameTaken: a live adapter has it, or an unfinished job will give it to one.
    """
    of_adapter = sa.select(adapters.c.name).where(adapters.c.name == name, adapters.c.deleted_at.is_(None))
    # An export's name is a folder's: nobody asks for it in a request.
    live = (jobs.c.state.in_(LIVE_STATES), jobs.c.kind != "export")
    of_job = sa.select(jobs.c.name).where(jobs.c.name == name, *live)
    for query in (of_adapter, of_job):
        if (await connection.execute(query.limit(1))).first() is not None:
            raise NameTaken.by_adapter(name)


async def require_targets(connection: AsyncConnection, name: str, uses: Iterable[AdapterUse]) -> None:
    """Keep an alias from meaning what does not exist, or another alias.

    Raises:
        AliasOfAlias: a target names a live alias, itself included.
        ModelNotFound: no live version, or an adapter without a default one.
    """
    needed = tuple(uses)
    names = [use.name for use in needed]
    query = sa.select(aliases.c.name).where(aliases.c.name.in_(names), aliases.c.deleted_at.is_(None))
    others = {*(await connection.execute(query)).scalars(), name}
    live = (
        sa.select(versions.c.name, versions.c.number, adapters.c.default_version)
        .join(adapters)
        .where(versions.c.name.in_(names), versions.c.deleted_at.is_(None))
    )
    served: set[tuple[str, int | None]] = set()
    for of, number, default in await connection.execute(live):
        served |= {(of, number), (of, None)} if number == default else {(of, number)}
    for use in needed:
        if use.name in others:
            raise AliasOfAlias(name, use.name)
        if (use.name, use.number) not in served:
            raise ModelNotFound(use.name if use.number is None else f"{use.name}@{use.number}")


async def refuse_targeted(connection: AsyncConnection, name: str, number: int | None) -> None:
    """Keep from deletion what an alias means.

    Args:
        name: adapter.
        number: its version that is to go; None: all of it, what its name means included.

    Raises:
        AliasTargetInUse: with the aliases.
    """
    query = sa.select(aliases.c.name, aliases.c.uses).where(aliases.c.deleted_at.is_(None)).order_by(aliases.c.name)
    using: list[str] = []
    for alias, uses in await connection.execute(query):
        if any(used == name and (number is None or used_number == number) for used, used_number in uses):
            using.append(alias)
    if using:
        raise AliasTargetInUse(name if number is None else f"{name}@{number}", using)
