"""The numbers of routers: kept by digest, for as long as an alias or its history names them."""

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.routing import RouterNumbers
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.tables import alias_changes, routers


class RouterRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def numbers(self, digests: Collection[str]) -> dict[str, RouterNumbers]:
        """Those of ``digests`` that are there."""
        query = sa.select(routers).where(routers.c.digest.in_(digests))
        async with self._database.read(statement_s=LONG_S) as connection:
            rows = (await connection.execute(query)).mappings().all()
        return {row["digest"]: _numbers(row) for row in rows}


def _numbers(row: sa.RowMapping) -> RouterNumbers:
    examples = {name: tuple(texts) for name, texts in row["examples"].items()}
    return RouterNumbers(row["digest"], examples, bytes(row["weights"]))


async def keep_numbers(connection: AsyncConnection, numbers: RouterNumbers) -> None:
    """Add what a router was fitted with, where it is not there yet."""
    query = sa.select(routers.c.digest).where(routers.c.digest == numbers.digest)
    if (await connection.execute(query)).first() is None:
        row = {"digest": numbers.digest, "weights": numbers.weights}
        await connection.execute(routers.insert().values(**row, examples=dict(numbers.examples)))


async def forget_numbers(connection: AsyncConnection) -> None:
    """Drop what no alias means any more and none can be rolled back to: what the history has forgotten."""
    named = {found["digest"] for found in await _routers_named(connection)}
    kept = (await connection.execute(sa.select(routers.c.digest))).scalars().all()
    gone = [digest for digest in kept if digest not in named]
    if gone:
        await connection.execute(routers.delete().where(routers.c.digest.in_(gone)))


async def _routers_named(connection: AsyncConnection) -> list[dict[str, str]]:
    query = sa.select(alias_changes.c.router).where(alias_changes.c.router.is_not(None))
    return list((await connection.execute(query)).scalars())
