"""The ledger of usage: what each front end counted in each minute, and sums of it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from amalgam.domain.usage import COUNTS, Counts, Dimension, Spender, UsageLine, UsageQuery, model_of
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.tables import usage_minutes

_COLUMNS: Final[Mapping[Dimension, str]] = {
    "tenant": "tenant",
    "key": "key_id",
    "alias": "alias",
    "version": "version",
    "model": "version",
    "endpoint": "endpoint",
}


class UsageRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, front: str, counted: Mapping[tuple[int, Spender], Counts]) -> None:
        """Write what ``front`` has counted in some minutes, in the place of what it said of them before.

        Args:
            front: who counted; rows of two front ends are never the same.
            counted: by Unix seconds of the minute's begin, and who used what.
        """
        rows = [_row(front, minute, spender, counts) for (minute, spender), counts in counted.items()]
        async with self._database.write() as connection:
            made = sqlite if connection.dialect.name == "sqlite" else postgresql
            statement = made.insert(usage_minutes)
            key = list(usage_minutes.primary_key.columns)
            changed = {name: statement.excluded[name] for name in COUNTS}
            await connection.execute(statement.on_conflict_do_update(index_elements=key, set_=changed), rows)

    async def lines(self, query: UsageQuery) -> Sequence[UsageLine]:
        """What the ledger says, in order of time and names; buckets without usage have no line."""
        columns = [usage_minutes.c[name] for name in dict.fromkeys(_COLUMNS[dimension] for dimension in query.by)]
        start_s = int(query.start.timestamp())
        bucket: sa.ColumnElement[Any] = sa.literal(0)
        if query.width_s is not None:
            bucket = (usage_minutes.c.minute - start_s) // sa.literal_column(str(query.width_s), sa.BigInteger)
        sums = [sa.func.sum(usage_minutes.c[name]).label(name) for name in COUNTS]
        statement = sa.select(bucket.label("bucket"), *columns, *sums).where(*_wanted(query))
        if query.width_s is not None or columns:
            statement = statement.group_by(*([sa.text("bucket")] if query.width_s is not None else []), *columns)
        async with self._database.read(statement_s=LONG_S) as connection:
            found = (await connection.execute(statement)).mappings().all()
        return _lines(query.by, [row for row in found if row["requests"] is not None])

    async def remove_before(self, moment: datetime) -> int:
        """Forget minutes that began before ``moment``; returns how many rows there were."""
        before = usage_minutes.c.minute < int(moment.timestamp())
        async with self._database.write(statement_s=LONG_S) as connection:
            return int((await connection.execute(usage_minutes.delete().where(before))).rowcount)


def _row(front: str, minute: int, spender: Spender, counts: Counts) -> dict[str, Any]:
    who = {"tenant": spender.tenant, "key_id": spender.key, "alias": spender.alias, "version": spender.version}
    named = {"minute": minute, "front": front, **who, "endpoint": spender.endpoint}
    return named | {name: getattr(counts, name) for name in COUNTS}


def _wanted(query: UsageQuery) -> list[sa.ColumnElement[bool]]:
    minute = usage_minutes.c.minute
    found = [minute >= int(query.start.timestamp()), minute < int(query.end.timestamp())]
    for column, names in (("tenant", query.tenants), ("key_id", query.keys), ("version", query.versions)):
        if names:
            found.append(usage_minutes.c[column].in_(names))
    return found


def _lines(by: Sequence[Dimension], found: Sequence[sa.RowMapping]) -> Sequence[UsageLine]:
    """Added up once more: several versions are one model."""
    sums: dict[tuple[int, tuple[str, ...]], Counts] = {}
    for row in found:
        names = tuple(
            model_of(row["version"]) if dimension == "model" else str(row[_COLUMNS[dimension]]) for dimension in by
        )
        counts = sums.setdefault((int(row["bucket"]), names), Counts())
        counts.add(Counts(**{name: int(row[name]) for name in COUNTS}))
    return [UsageLine(bucket, names, counts) for (bucket, names), counts in sorted(sums.items(), key=lambda e: e[0])]


def minute_of(moment: datetime) -> int:
    """Unix seconds of the begin of the minute that ``moment`` is in."""
    return int(moment.astimezone(UTC).timestamp()) // 60 * 60
