"""The database's side of limits: gives out slices of each, to all front ends together never more than the limit.

An exchange is one write transaction of three statements, whatever the number of limits in it: the clock, what the
others have, and this front end's rows. Writers take turns, so that what is read there is still true when it is written.
Rows are what they say and not changes to it: an exchange that was written without the front end hearing of it may be
written again.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.limits import Slice, SliceAsk
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.tables import limit_clock, limit_takes

_AT_ONCE: Final = 500
"""One statement asks for so many buckets: SQLite bounds the parameters of a statement."""


class LimitSlices:
    """See `amalgam.services.limits.SliceStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def exchange(
        self, front: str, reached_s: float | None, asks: Sequence[SliceAsk]
    ) -> tuple[float, Sequence[Slice]]:
        """Write what ``front`` tells, and give what may be given."""
        async with self._database.write() as connection:
            now_s = await _advanced(connection, reached_s)
            if not asks:
                return now_s, ()
            others = await _others(connection, front, [ask.bucket for ask in asks], int(now_s))
            slices = [_slice(ask, others.get(ask.bucket, {})) for ask in asks]
            rows = [
                row for ask, piece in zip(asks, slices, strict=True) for row in _rows(front, ask, piece, int(now_s))
            ]
            await connection.execute(_upsert(connection), rows)
            return now_s, slices

    async def sweep(self) -> None:
        """Forget rows that count no more."""
        async with self._database.write(statement_s=LONG_S) as connection:
            now_ms = (await connection.execute(sa.select(limit_clock.c.now_ms))).scalar_one()
            await connection.execute(limit_takes.delete().where(limit_takes.c.until_s < now_ms // 1000))


async def _advanced(connection: AsyncConnection, reached_s: float | None) -> float:
    """Where the clock is, once it is no earlier than ``reached_s``."""
    if reached_s is None:
        return float((await connection.execute(sa.select(limit_clock.c.now_ms))).scalar_one()) / 1000
    reached_ms = int(reached_s * 1000)
    later = sa.case((limit_clock.c.now_ms < reached_ms, reached_ms), else_=limit_clock.c.now_ms)
    moved = limit_clock.update().values(now_ms=later).returning(limit_clock.c.now_ms)
    return float((await connection.execute(moved)).scalar_one()) / 1000


async def _others(
    connection: AsyncConnection, front: str, buckets: Sequence[str], now_s: int
) -> Mapping[str, Mapping[int, int]]:
    """What the other front ends have of each bucket, by second."""
    found: defaultdict[str, dict[int, int]] = defaultdict(dict)
    takes = limit_takes.c
    for begin in range(0, len(buckets), _AT_ONCE):
        query = (
            sa.select(takes.bucket, takes.slot, sa.func.sum(takes.taken))
            .where(takes.bucket.in_(buckets[begin : begin + _AT_ONCE]), takes.front != front, takes.until_s > now_s)
            .group_by(takes.bucket, takes.slot)
        )
        for bucket, slot, taken in await connection.execute(query):
            found[bucket][slot] = int(taken)
    return found


def _slice(ask: SliceAsk, others: Mapping[int, int]) -> Slice:
    total = sum(others.values())
    granted = ask.granted(total)
    return Slice(granted, total, others if granted < ask.want else {})


def _rows(front: str, ask: SliceAsk, piece: Slice, now_s: int) -> list[dict[str, Any]]:
    taken = {**ask.used, ask.slot: ask.base + piece.granted}
    return [
        {"bucket": ask.bucket, "front": front, "slot": slot, "taken": units, "until_s": ask.until_s(slot, now_s)}
        for slot, units in taken.items()
    ]


def _upsert(connection: AsyncConnection) -> Any:
    made = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = made.insert(limit_takes)
    key = [limit_takes.c.bucket, limit_takes.c.front, limit_takes.c.slot]
    given = statement.excluded
    return statement.on_conflict_do_update(index_elements=key, set_={"taken": given.taken, "until_s": given.until_s})
