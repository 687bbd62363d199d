"""Adapters and versions within an open transaction: what the use cases of adapters and of jobs share."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.adapter import Adapter, AdapterVersion, VersionRef
from amalgam.domain.skill_probe import KeptRecord
from amalgam.domain.version import VersionDraft
from amalgam.errors.adapters import AdapterNotFound, VersionNotFound
from amalgam.registry.alias_rows import refuse_alias_name
from amalgam.registry.notices import announce
from amalgam.registry.stored_bytes import require_storage, stored_by_columns
from amalgam.registry.tables import adapters, pins, registry_state, versions

SERVED: Final = (versions.c.deleted_at.is_(None), versions.c.proved)
"""They hold for a version that may be served."""


def version_of(row: sa.RowMapping) -> AdapterVersion:
    """The domain's version from a row of ``versions``."""
    fields = {field: row[field] for field in AdapterVersion.model_fields}
    return AdapterVersion.model_validate(fields)


def adapter_of(row: sa.RowMapping, its_versions: Iterable[AdapterVersion]) -> Adapter:
    """The domain's adapter from a row of ``adapters``."""
    return Adapter(
        name=row["name"],
        default_version=row["default_version"],
        description=row["description"],
        created_at=row["created_at"],
        versions=tuple(its_versions),
    )


async def live_adapter(connection: AsyncConnection, name: str) -> sa.RowMapping:
    """The row of a live adapter.

    Raises:
        AdapterNotFound: there is none, or it was deleted.
    """
    query = sa.select(adapters).where(adapters.c.name == name, adapters.c.deleted_at.is_(None))
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise AdapterNotFound(name)
    return row


async def live_versions(
    connection: AsyncConnection, names: Sequence[str] | None = None, *, proved: bool = False
) -> list[AdapterVersion]:
    """Live versions in order of name and number, of all adapters or of those named; ``proved``: what may be served."""
    query = sa.select(versions).where(versions.c.deleted_at.is_(None)).order_by(versions.c.name, versions.c.number)
    if proved:
        query = query.where(versions.c.proved)
    if names is not None:
        query = query.where(versions.c.name.in_(names))
    return [version_of(row) for row in (await connection.execute(query)).mappings()]


async def versions_by_id(connection: AsyncConnection, ids: Collection[int]) -> tuple[AdapterVersion, ...]:
    """Versions in order of id; all of ``ids`` are there."""
    if not ids:
        return ()
    # Ids grow, so what is new stands at the end; a list of thousands of ids would be more than a statement takes.
    query = sa.select(versions).where(versions.c.id >= min(ids)).order_by(versions.c.id)
    rows = (await connection.execute(query)).mappings()
    return tuple(version_of(row) for row in rows if row["id"] in ids)


def by_name(ordered: Iterable[AdapterVersion]) -> dict[str, tuple[AdapterVersion, ...]]:
    """Versions in order of name, by name."""
    return {name: tuple(group) for name, group in groupby(ordered, key=lambda version: version.name)}


def any_of(refs: Iterable[VersionRef]) -> sa.ColumnElement[bool]:
    """Whether a version is one of ``refs``; SQLite looks through the whole table for a list of pairs."""
    return sa.or_(sa.false(), *((versions.c.name == ref.name) & (versions.c.number == ref.number) for ref in refs))


async def live_version(connection: AsyncConnection, name: str, number: int) -> AdapterVersion:
    """One live version.

    Raises:
        AdapterNotFound, VersionNotFound: there is none, or it was deleted.
    """
    await live_adapter(connection, name)
    known = await live_versions(connection, [name])
    for version in known:
        if version.number == number:
            return version
    raise VersionNotFound(name, number, [version.number for version in known])


async def insert_version(
    connection: AsyncConnection, draft: VersionDraft, *, now: datetime, set_default: bool, proved: bool
) -> AdapterVersion:
    """Give the draft the next number of its name and write it; a deleted name comes back to life with its count.

    Raises:
        NameTaken: the adapter would be new, and an alias has its name.
        StorageSpent: its bytes do not fit into a limit of whose they are.
    """
    query = sa.select(adapters).where(adapters.c.name == draft.name)
    adapter = (await connection.execute(query)).mappings().one_or_none()
    if draft.stored_by is not None:
        await require_storage(connection, draft.stored_by, draft.size_bytes)
    number = adapter["next_version"] if adapter is not None else 1
    revision = await bump_revision(connection, served=int(proved))
    fields: dict[str, Any] = {"next_version": number + 1, "revision": revision}
    if adapter is None or adapter["deleted_at"] is not None:
        await refuse_alias_name(connection, draft.name)
        fields |= {"description": "", "created_at": now, "deleted_at": None, "default_version": None}
    if set_default:
        fields["default_version"] = number
    if adapter is None:
        await connection.execute(adapters.insert().values(name=draft.name, mirrored=draft.name[::-1], **fields))
    else:
        await connection.execute(adapters.update().where(adapters.c.name == draft.name).values(**fields))
    row = {
        "name": draft.name,
        "number": number,
        "digest": draft.digest,
        "rank": draft.rank,
        "size_bytes": draft.size_bytes,
        "module_count": draft.module_count,
        "base_fingerprint": draft.base_fingerprint,
        "source": draft.source,
        "recipe_digest": draft.recipe_digest,
        "lineage": dict(draft.lineage) if draft.lineage is not None else None,
        "warnings": list(draft.warnings),
        "proved": proved,
        "dtype": draft.dtype,
        "created_at": now,
        **stored_by_columns(draft.stored_by),
        "revision": revision,
    }
    written = await connection.execute(versions.insert().values(**row).returning(versions))
    return version_of(written.mappings().one())


async def remove_version(connection: AsyncConnection, version: AdapterVersion, *, now: datetime) -> None:
    """Mark a live version deleted; its adapter too where it was the last, or loses the default that it was."""
    revision = await bump_revision(connection, served=-await served_of(connection, versions.c.id == version.id))
    this = versions.update().where(versions.c.id == version.id)
    await connection.execute(this.values(deleted_at=now, revision=revision))
    await connection.execute(pins.delete().where(pins.c.version_id == version.id))
    left = await live_versions(connection, [version.name])
    adapter = adapters.update().where(adapters.c.name == version.name).values(revision=revision)
    if not left:
        await connection.execute(adapter.values(default_version=None, deleted_at=now))
    else:
        await connection.execute(
            adapter.where(adapters.c.default_version == version.number).values(default_version=None)
        )


async def mark_proved(
    connection: AsyncConnection,
    version: AdapterVersion,
    kept: KeptRecord | None = None,
    fit: Mapping[str, Any] | None = None,
) -> None:
    """Let a live version be served; with what it keeps of its inputs, and how weights were found, in its lineage."""
    new = 1 - await served_of(connection, versions.c.id == version.id)
    fields: dict[str, Any] = {"proved": True, "revision": await bump_revision(connection, served=new)}
    found = {"kept": None if kept is None else kept.model_dump(mode="json"), "fit": fit and dict(fit)}
    if told := {name: value for name, value in found.items() if value is not None}:
        fields["lineage"] = {**(version.lineage or {}), **told}
    if kept is not None:
        fields["warnings"] = [*version.warnings, *kept.warnings()]
    await connection.execute(versions.update().where(versions.c.id == version.id).values(**fields))


async def move_default(connection: AsyncConnection, version: AdapterVersion) -> None:
    """Make a live version the default one."""
    fields = {"default_version": version.number, "revision": await bump_revision(connection)}
    await connection.execute(adapters.update().where(adapters.c.name == version.name).values(**fields))


async def mark_changed(connection: AsyncConnection, version: AdapterVersion) -> None:
    """Tell every catalog that something of a live version changed that is not in its row: its profile."""
    fields = {"revision": await bump_revision(connection)}
    await connection.execute(versions.update().where(versions.c.id == version.id).values(**fields))


async def served_of(connection: AsyncConnection, *which: sa.ColumnElement[bool]) -> int:
    """How many of the versions ``which`` are live and have answered."""
    query = sa.select(sa.func.count()).select_from(versions)
    return int((await connection.execute(query.where(*which, *SERVED))).scalar_one())


async def bump_revision(connection: AsyncConnection, *, served: int = 0) -> int:
    """Tell every catalog that adapters, versions or aliases changed; what changed carries the number returned.

    Args:
        connection: in a transaction, which no other writer overlaps: revisions become visible in their order.
        served: how many versions more can be served, or, below 0, fewer.
    """
    state = registry_state.c
    more = {"revision": state.revision + 1, "served_versions": state.served_versions + served}
    bumped = await connection.execute(registry_state.update().values(**more).returning(state.revision))
    await announce(connection)
    return int(bumped.scalar_one())


async def read_revision(connection: AsyncConnection) -> int:
    """The registry's revision."""
    return int((await connection.execute(sa.select(registry_state.c.revision))).scalar_one())
