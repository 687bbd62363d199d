"""The registry of evaluations: what was asked, who measures it under which lease, and every measurement."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, get_args

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.clock import Clock
from amalgam.domain.evaluation import (
    CANCELLABLE,
    MAX_ATTEMPTS,
    RESUMABLE,
    Evaluation,
    EvaluationDraft,
    EvaluationError,
    EvaluationItem,
    EvaluationKind,
    EvaluationPage,
    EvaluationState,
    EvaluationTarget,
    Measurement,
    digest_of_items,
)
from amalgam.errors.evaluations import (
    EvaluationNotFound,
    EvaluationStateConflict,
    EvaluationStopped,
    TooManyEvaluations,
)
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.tables import evaluation_results as results
from amalgam.registry.tables import evaluations

MAX_WAITING: Final = 100
"""At most so many evaluations are queued at once."""
_FIELDS: Final = [evaluations.c[name] for name in Evaluation.model_fields]


class EvaluationRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock, new_id: Callable[[], str]) -> None:
        self._database = database
        self._clock = clock
        self._new_id = new_id

    async def create(self, draft: EvaluationDraft) -> Evaluation:
        """Queue it.

        Raises:
            TooManyEvaluations: ``MAX_WAITING`` wait already.
        """
        async with self._database.write(statement_s=LONG_S) as connection:
            waiting = sa.select(sa.func.count()).where(evaluations.c.state == "queued")
            if (await connection.execute(waiting)).scalar_one() >= MAX_WAITING:
                raise TooManyEvaluations(MAX_WAITING)
            now = self._clock()
            tasks: dict[str, int] = {}
            for item in draft.items:
                tasks[item.task] = tasks.get(item.task, 0) + 1
            row = {
                "id": self._new_id(),
                "kind": draft.kind,
                "label": draft.label,
                "targets": [target.model_dump() for target in draft.targets],
                "items": [item.model_dump(mode="json", exclude_none=True) for item in draft.items],
                "items_digest": digest_of_items(draft.items),
                "tasks": tasks,
                "metrics": list(draft.metrics),
                "max_tokens": draft.max_tokens,
                "search": None if draft.search is None else dict(draft.search),
                "tenant": draft.tenant,
                "key_id": draft.key_id,
                "state": "queued",
                "done": 0,
                "total": draft.total,
                "created_at": now,
                "updated_at": now,
            }
            await connection.execute(evaluations.insert().values(**row))
            return await _read(connection, str(row["id"]))

    async def claim(self, holder: str, *, lease_s: float, max_attempts: int = MAX_ATTEMPTS) -> Evaluation | None:
        """Take the oldest one that waits, or whose server is silent for longer than its lease; None: there is none.

        One that ``max_attempts`` servers fell silent at is interrupted on the way: it might end this one as well. Most
        looks find nothing, so they lock nothing.
        """
        async with self._database.read() as connection:
            if (await connection.execute(_free(self._clock()))).first() is None:
                return None
        async with self._database.write() as connection:
            now = self._clock()
            worn_out = (*_expired(now), evaluations.c.attempts >= max_attempts)
            ended = {"state": "interrupted", "holder": None, "lease_expires_at": None, "updated_at": now}
            await connection.execute(evaluations.update().where(*worn_out).values(**ended))
            evaluation_id = (await connection.execute(_free(now))).scalar_one_or_none()
            if evaluation_id is None:
                return None
            lease = {"holder": holder, "lease_expires_at": now + timedelta(seconds=lease_s)}
            attempts = evaluations.c.attempts + 1
            return await self._change(
                connection, evaluation_id, state="running", error=None, attempts=attempts, **lease
            )

    async def release(self, evaluation_id: str, holder: str) -> Evaluation:
        """Give it back to the queue, uncounted: its server stops for reasons of its own. What was measured stays.

        Raises:
            EvaluationStopped: as `save`.
        """
        async with self._database.write() as connection:
            await _held(connection, evaluation_id, holder)
            fields: dict[str, Any] = {"holder": None, "lease_expires_at": None, "attempts": evaluations.c.attempts - 1}
            return await self._change(connection, evaluation_id, state="queued", **fields)

    async def save(self, evaluation_id: str, holder: str, measured: Sequence[Measurement], *, lease_s: float) -> None:
        """Keep measurements and extend the lease, which has to be held still; what is kept already stays as it is.

        Raises:
            EvaluationStopped: it was cancelled, deleted or taken for dead; nothing was kept.
        """
        async with self._database.write() as connection:
            now = self._clock()
            await _held(connection, evaluation_id, holder)
            # A commit that was not heard of is repeated.
            kept = await _kept(connection, evaluation_id, measured)
            new = [one for one in measured if (one.target, one.item) not in kept]
            if new:
                rows = [{"evaluation_id": evaluation_id} | one.model_dump(mode="json") for one in new]
                await connection.execute(results.insert(), rows)
            fields: dict[str, Any] = {"lease_expires_at": now + timedelta(seconds=lease_s), "updated_at": now}
            query = evaluations.update().where(evaluations.c.id == evaluation_id)
            await connection.execute(query.values(done=evaluations.c.done + len(new), **fields))

    async def finish(
        self, evaluation_id: str, holder: str, state: EvaluationState, error: EvaluationError | None = None
    ) -> Evaluation:
        """End the run in ``state``.

        Raises:
            EvaluationStopped: as `save`.
        """
        async with self._database.write() as connection:
            await _held(connection, evaluation_id, holder)
            fields: dict[str, Any] = {"holder": None, "lease_expires_at": None, "error": error and error.model_dump()}
            if state == "done":
                # A search gives up what cannot win any more.
                fields["total"] = evaluations.c.done
            return await self._change(connection, evaluation_id, state=state, **fields)

    async def extend(
        self, evaluation_id: str, holder: str, targets: Sequence[EvaluationTarget], search: Mapping[str, Any]
    ) -> Evaluation:
        """Take more targets into a search.

        Args:
            evaluation_id: of the sweep.
            holder: who measures it.
            targets: all of them, those before first.
            search: its plan from now on.

        Raises:
            EvaluationStopped: as `save`.
        """
        async with self._database.write() as connection:
            await _held(connection, evaluation_id, holder)
            rows = [target.model_dump() for target in targets]
            return await self._change(connection, evaluation_id, targets=rows, search=dict(search))

    async def cancel(self, evaluation_id: str) -> Evaluation:
        """Stop it; what was measured stays.

        Raises:
            EvaluationNotFound, EvaluationStateConflict.
        """
        return await self._move(evaluation_id, CANCELLABLE, "cancelled")

    async def resume(self, evaluation_id: str) -> Evaluation:
        """Queue an interrupted or failed one again, for what it has not measured yet.

        Raises:
            EvaluationNotFound, EvaluationStateConflict.
        """
        return await self._move(evaluation_id, RESUMABLE, "queued", "resumed")

    async def delete(self, evaluation_id: str) -> None:
        """Forget it and its measurements.

        Raises:
            EvaluationNotFound.
            EvaluationStateConflict: it is running.
        """
        async with self._database.write(statement_s=LONG_S) as connection:
            found = await _read(connection, evaluation_id)
            if found.state == "running":
                raise EvaluationStateConflict(evaluation_id, found.state, "deleted")
            await connection.execute(results.delete().where(results.c.evaluation_id == evaluation_id))
            await connection.execute(evaluations.delete().where(evaluations.c.id == evaluation_id))

    async def get(self, evaluation_id: str) -> Evaluation:
        """One. Raises EvaluationNotFound."""
        async with self._database.read() as connection:
            return await _read(connection, evaluation_id)

    async def list(self, kind: EvaluationKind | None, *, limit: int, cursor: str | None = None) -> EvaluationPage:
        """A page, newest first.

        Raises:
            EvaluationNotFound: ``cursor`` is none.
        """
        age = (evaluations.c.created_at, evaluations.c.id)
        query = sa.select(*_FIELDS).order_by(*(column.desc() for column in age)).limit(limit + 1)
        if kind is not None:
            query = query.where(evaluations.c.kind == kind)
        async with self._database.read() as connection:
            if cursor is not None:
                last = await _read(connection, cursor)
                older = (age[0] == last.created_at) & (age[1] < last.id)
                query = query.where((age[0] < last.created_at) | older)
            rows = (await connection.execute(query)).mappings().all()
        items = tuple(Evaluation.model_validate(dict(row)) for row in rows[:limit])
        return EvaluationPage(items, items[-1].id if len(rows) > limit else None)

    async def count_live(self) -> dict[tuple[str, str], int]:
        """How many are queued or running, by kind and state, zeros included."""
        live, kinds = ("queued", "running"), get_args(EvaluationKind)
        group = (evaluations.c.kind, evaluations.c.state)
        query = sa.select(*group, sa.func.count()).where(evaluations.c.state.in_(live)).group_by(*group)
        async with self._database.read() as connection:
            found = {(kind, state): int(count) for kind, state, count in await connection.execute(query)}
        return dict.fromkeys(((kind, state) for kind in kinds for state in live), 0) | found

    async def items(self, evaluation_id: str) -> tuple[EvaluationItem, ...]:
        """What is asked, in order. Raises EvaluationNotFound."""
        query = sa.select(evaluations.c["items"]).where(evaluations.c.id == evaluation_id)
        async with self._database.read(statement_s=LONG_S) as connection:
            found = (await connection.execute(query)).scalar_one_or_none()
        if found is None:
            raise EvaluationNotFound(evaluation_id)
        return tuple(EvaluationItem.model_validate(item) for item in found)

    async def known(self, evaluation_id: str) -> set[tuple[int, int]]:
        """(target, item) of every measurement."""
        query = sa.select(results.c.target, results.c.item).where(results.c.evaluation_id == evaluation_id)
        async with self._database.read(statement_s=LONG_S) as connection:
            return {(target, item) for target, item in await connection.execute(query)}

    async def measured(
        self,
        evaluation_id: str,
        *,
        target: int | None = None,
        after: tuple[int, int] | None = None,
        limit: int | None = None,
        with_answers: bool = False,
    ) -> tuple[Measurement, ...]:
        """Measurements in order of target and item; without ``with_answers`` the answers are left out.

        Args:
            evaluation_id: of which evaluation.
            target: of this one alone.
            after: (target, item) of the last one known.
            limit: most of them; None: all.
            with_answers: whether answers are read.
        """
        columns = [results.c[name] for name in Measurement.model_fields if with_answers or name != "answer"]
        query = sa.select(*columns).where(results.c.evaluation_id == evaluation_id)
        if target is not None:
            query = query.where(results.c.target == target)
        if after is not None:
            later = (results.c.target == after[0]) & (results.c.item > after[1])
            query = query.where((results.c.target > after[0]) | later)
        query = query.order_by(results.c.target, results.c.item).limit(limit)
        async with self._database.read(statement_s=LONG_S) as connection:
            rows = (await connection.execute(query)).mappings().all()
        return tuple(Measurement.model_validate(dict(row)) for row in rows)

    async def _move(
        self, evaluation_id: str, before: Sequence[EvaluationState], state: EvaluationState, word: str | None = None
    ) -> Evaluation:
        async with self._database.write() as connection:
            found = await _read(connection, evaluation_id)
            if found.state not in before:
                raise EvaluationStateConflict(evaluation_id, found.state, word or state)
            fields = {"holder": None, "lease_expires_at": None, "attempts": 0}
            return await self._change(connection, evaluation_id, state=state, **fields)

    async def _change(self, connection: AsyncConnection, evaluation_id: str, **fields: Any) -> Evaluation:
        now: datetime = self._clock()
        query = evaluations.update().where(evaluations.c.id == evaluation_id)
        await connection.execute(query.values(updated_at=now, **fields))
        return await _read(connection, evaluation_id)


def _expired(now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return evaluations.c.state == "running", evaluations.c.lease_expires_at <= now


def _free(now: datetime) -> "sa.Select[Any]":
    """The id of the oldest one that nobody measures."""
    expired = sa.and_(*_expired(now))
    query = sa.select(evaluations.c.id).where((evaluations.c.state == "queued") | expired)
    return query.order_by(evaluations.c.created_at, evaluations.c.id).limit(1)


async def _read(connection: AsyncConnection, evaluation_id: str) -> Evaluation:
    query = sa.select(*_FIELDS).where(evaluations.c.id == evaluation_id)
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        raise EvaluationNotFound(evaluation_id)
    return Evaluation.model_validate(dict(row))


async def _kept(
    connection: AsyncConnection, evaluation_id: str, measured: Sequence[Measurement]
) -> set[tuple[int, int]]:
    """Those of ``measured`` that are there already."""
    places = sa.tuple_(results.c.target, results.c.item).in_([(one.target, one.item) for one in measured])
    query = sa.select(results.c.target, results.c.item).where(results.c.evaluation_id == evaluation_id, places)
    return {(target, item) for target, item in await connection.execute(query)}


async def _held(connection: AsyncConnection, evaluation_id: str, holder: str) -> None:
    mine = (evaluations.c.id == evaluation_id, evaluations.c.state == "running", evaluations.c.holder == holder)
    if (await connection.execute(sa.select(evaluations.c.id).where(*mine))).first() is None:
        raise EvaluationStopped(evaluation_id)
