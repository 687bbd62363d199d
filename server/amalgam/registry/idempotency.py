"""The registry of idempotency keys: who carries a request out right now, and what was answered before."""

import json
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.clock import Clock
from amalgam.domain.idempotency import KeptAnswer, KeyStanding
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.tables import idempotency_keys


class IdempotencyRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing.

    A key is held under a lease, which its holder renews: the key of a server that died is taken over.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def begin(self, key: str, holder: str, *, lease_s: float, keep_s: float) -> KeyStanding:
        """Hold ``key`` for ``holder``, unless it is held or was answered within the last ``keep_s`` seconds."""
        async with self._database.write() as connection:
            now = self._clock()
            lease = {"holder": holder, "lease_expires_at": now + timedelta(seconds=lease_s)}
            row = await _row(connection, key)
            if row is not None and row["created_at"] <= now - timedelta(seconds=keep_s):
                await connection.execute(idempotency_keys.delete().where(idempotency_keys.c.key == key))
                row = None
            if row is None:
                await connection.execute(idempotency_keys.insert().values(key=key, created_at=now, **lease))
                return KeyStanding(is_ours=True)
            standing = _standing(row, now)
            if standing.is_ours:
                # What the holder before had done stays with the key, so that it is not done again.
                await connection.execute(idempotency_keys.update().where(idempotency_keys.c.key == key).values(**lease))
            return standing

    async def look(self, key: str) -> KeyStanding:
        """How ``key`` stands; ``is_ours`` says that nobody holds it."""
        async with self._database.read() as connection:
            row = await _row(connection, key)
        return KeyStanding(is_ours=True) if row is None else _standing(row, self._clock())

    async def renew(self, key: str, holder: str, *, lease_s: float) -> None:
        """Extend the holder's lease from now on."""
        await self._change(key, holder, lease_s=lease_s)

    async def finish(self, key: str, holder: str, answer: KeptAnswer) -> None:
        """Keep the answer. A holder whose key was taken over keeps nothing: what the other answers counts."""
        await self._change(
            key,
            holder,
            lease_expires_at=None,
            fingerprint=answer.fingerprint,
            status=answer.status,
            headers=json.dumps(answer.headers),
            body=answer.body,
        )

    async def release(self, key: str, holder: str) -> None:
        """Let the next request have the key: this one came to no answer that should be repeated."""
        await self._change(key, holder, lease_s=0.0)

    async def _change(self, key: str, holder: str, lease_s: float | None = None, **fields: object) -> None:
        held = (idempotency_keys.c.key == key, idempotency_keys.c.holder == holder, idempotency_keys.c.status.is_(None))
        async with self._database.write() as connection:
            if lease_s is not None:
                fields["lease_expires_at"] = self._clock() + timedelta(seconds=lease_s)
            await connection.execute(idempotency_keys.update().where(*held).values(**fields))

    async def remove_older(self, keep_s: float) -> int:
        """Forget keys of more than ``keep_s`` seconds ago; returns how many there were."""
        async with self._database.write(statement_s=LONG_S) as connection:
            before = self._clock() - timedelta(seconds=keep_s)
            gone = idempotency_keys.delete().where(idempotency_keys.c.created_at <= before)
            return int((await connection.execute(gone)).rowcount)


async def _row(connection: AsyncConnection, key: str) -> sa.RowMapping | None:
    query = sa.select(idempotency_keys).where(idempotency_keys.c.key == key)
    return (await connection.execute(query)).mappings().one_or_none()


def _standing(row: sa.RowMapping, now: datetime) -> KeyStanding:
    if row["status"] is not None:
        headers = tuple((str(name), str(value)) for name, value in json.loads(row["headers"]))
        return KeyStanding(answer=KeptAnswer(row["fingerprint"], row["status"], headers, bytes(row["body"])))
    return KeyStanding(is_running=True) if row["lease_expires_at"] > now else KeyStanding(is_ours=True)
