"""Names near one that is not there, by two indexes: the names in order, and the names read from their ends in order.

Of a slip at the beginning, in the middle or at the end of a name, one of the two finds the name that was meant.
"""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.catalog_rows import NearRows
from amalgam.registry.tables import adapters, versions
from amalgam.registry.version_rows import SERVED

NEIGHBOURS: Final = 8
"""So many names are looked at on each side of the unknown one's place."""
_NEWEST: Final = 3
_LONGEST: Final = 128


async def near_rows(connection: AsyncConnection, name: str) -> NearRows:
    """What stands near ``name``, which means nothing: ``sqll``, or ``sql@99``."""
    bare = name.partition("@")[0][:_LONGEST]
    if not bare.isascii() or not bare.isprintable():
        # No name is near, and not every database takes every character.
        return NearRows()
    around = [*_sides(adapters.c.name, bare), *_sides(adapters.c.mirrored, bare[::-1])]
    found = (await connection.execute(sa.union_all(*around))).scalars()
    names = tuple(dict.fromkeys(found))
    return NearRows(names, await _newest(connection, bare) if "@" in name else ())


async def _newest(connection: AsyncConnection, name: str) -> tuple[str, ...]:
    """The last versions of an adapter that has a default one."""
    query = (
        sa.select(versions.c.number)
        .join(adapters, adapters.c.name == versions.c.name)
        .where(versions.c.name == name, adapters.c.default_version.is_not(None), *SERVED)
        .order_by(versions.c.number.desc())
        .limit(_NEWEST)
    )
    numbers = (await connection.execute(query)).scalars().all()
    return tuple(f"{name}@{number}" for number in reversed(numbers))


def _sides(column: sa.Column[Any], place: str) -> tuple[sa.Select[Any], sa.Select[Any]]:
    """Names before and behind ``place`` in the order of ``column``; each is its own statement, read off an index."""
    served = sa.select(adapters.c.name).where(adapters.c.default_version.is_not(None))
    before = served.where(column < place).order_by(column.desc()).limit(NEIGHBOURS)
    behind = served.where(column >= place).order_by(column).limit(NEIGHBOURS)
    return sa.select(before.subquery().c.name), sa.select(behind.subquery().c.name)
