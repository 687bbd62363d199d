"""The registry of answers that may be judged, and of what was said about them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.clock import Clock
from amalgam.domain.feedback import MAX_NAMES, MAX_SUMS, Answer, Feedback, OutcomeSum
from amalgam.errors.learning import FeedbackDiffers, TooMuchFeedback
from amalgam.registry.database import LONG_S, Database
from amalgam.registry.tables import answers, experiment_outcomes, experiments, feedback

_AT_ONCE: Final = 2000
"""One statement forgets so many rows: others wait for it."""
_ANSWER: Final = [answers.c[name] for name in Answer.__slots__]
_CHANGED: Final = ("completion_id", "alias", "target", "version", "experiment", "unit", "answered_at")
_FEEDBACK: Final = [feedback.c[name] for name in Feedback.model_fields]


class FeedbackRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def put_answers(self, given: Sequence[tuple[Answer, datetime]]) -> None:
        """Write answers, each with the moment of its end; one that uses a known id again takes its place."""
        rows = {(one.tenant, one.key_id, one.id): _row(one, at) for one, at in given}
        async with self._database.write() as connection:
            made = sqlite if connection.dialect.name == "sqlite" else postgresql
            statement = made.insert(answers)
            changed = {name: statement.excluded[name] for name in _CHANGED}
            key = list(answers.primary_key.columns)
            await connection.execute(
                statement.on_conflict_do_update(index_elements=key, set_=changed), [*rows.values()]
            )

    async def find(self, tenant: str, key_id: str, answer_id: str) -> Answer | None:
        """The answer that a key got, by the id of the request or of the answer's body."""
        named = sa.or_(answers.c.id == answer_id, answers.c.completion_id == answer_id)
        own = (answers.c.tenant == tenant, answers.c.key_id == key_id)
        order = (sa.case((answers.c.id == answer_id, 0), else_=1), answers.c.answered_at.desc())
        query = sa.select(*_ANSWER).where(*own, named).order_by(*order).limit(1)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else Answer(**row)

    async def add(self, answer: Answer, name: str, value: float) -> tuple[Feedback, bool]:
        """Take what was said, and count it in the experiment that the answer belongs to; also whether it is new.

        Raises:
            FeedbackDiffers: another value was said under this name.
            TooMuchFeedback: too many names.
        """
        async with self._database.write() as connection:
            known = await _names_of(connection, answer)
            if name in known:
                if known[name].value != value:
                    raise FeedbackDiffers(name, known[name].value)
                return known[name], False
            if len(known) >= MAX_NAMES:
                raise TooMuchFeedback(MAX_NAMES)
            said = Feedback(
                answer=answer.id,
                name=name,
                value=value,
                alias=answer.alias,
                target=answer.target,
                version=answer.version,
                created_at=self._clock(),
            )
            if answer.experiment is not None:
                await _count(connection, answer, said)
            owner = {"tenant": answer.tenant, "key_id": answer.key_id}
            of = {"experiment": answer.experiment, "unit": answer.unit}
            await connection.execute(feedback.insert().values(**said.model_dump(), **owner, **of))
            return said, True

    async def sums(self, alias: str) -> Sequence[OutcomeSum]:
        """What was said about an alias' answers, by target, version and name; `MAX_SUMS` at most."""
        by = [feedback.c.target, feedback.c.version, feedback.c.name]
        sums = [sa.func.count().label("count"), sa.func.sum(feedback.c.value).label("total")]
        query = sa.select(*by, *sums).where(feedback.c.alias == alias).group_by(*by)
        query = query.order_by(sums[0].desc(), *by).limit(MAX_SUMS)
        async with self._database.read(statement_s=LONG_S) as connection:
            rows = (await connection.execute(query)).mappings().all()
        found = [OutcomeSum(**row) for row in rows]
        return sorted(found, key=lambda one: (one.target, one.version, one.name))

    async def remove_before(self, answered: datetime, said: datetime) -> int:
        """Forget answers of before ``answered``, and feedback of before ``said`` that no running experiment counts.

        Returns: how many rows there were; more may be left.
        """
        running = sa.select(experiments.c.id).where(experiments.c.state == "running")
        is_free = sa.or_(feedback.c.experiment.is_(None), feedback.c.experiment.not_in(running))
        old_answers = answers.c.answered_at < answered
        old_feedback = sa.and_(feedback.c.created_at < said, is_free)
        removed = 0
        for table, is_old in ((answers, old_answers), (feedback, old_feedback)):
            key = list(table.primary_key.columns)
            oldest = sa.select(*key).where(is_old).limit(_AT_ONCE)
            async with self._database.write(statement_s=LONG_S) as connection:
                gone = table.delete().where(sa.tuple_(*key).in_(oldest))
                removed += int((await connection.execute(gone)).rowcount)
        return removed


def _row(answer: Answer, at: datetime) -> dict[str, Any]:
    return {name: getattr(answer, name) for name in Answer.__slots__} | {"answered_at": at}


async def _names_of(connection: AsyncConnection, answer: Answer) -> Mapping[str, Feedback]:
    owner = (feedback.c.tenant == answer.tenant, feedback.c.key_id == answer.key_id)
    query = sa.select(*_FEEDBACK).where(*owner, feedback.c.answer == answer.id)
    rows = (await connection.execute(query)).mappings().all()
    return {row["name"]: Feedback.model_validate(dict(row)) for row in rows}


async def _count(connection: AsyncConnection, answer: Answer, said: Feedback) -> None:
    """Add it to the target's outcomes, where the experiment runs and asks for it.

    Of what always meets the same target only the first outcome counts: the others say nothing new of the target.
    """
    query = sa.select(experiments.c.spec).where(experiments.c.id == answer.experiment, experiments.c.state == "running")
    spec = (await connection.execute(query)).scalar_one_or_none()
    if spec is None or spec["metric"] != said.name:
        return
    if answer.unit is not None and await _was_counted(connection, answer, said.name):
        return
    outcomes = experiment_outcomes.c
    where = (outcomes.experiment == answer.experiment, outcomes.target == answer.target)
    added = {"count": outcomes.count + 1, "total": outcomes.total + said.value}
    done = await connection.execute(experiment_outcomes.update().where(*where).values(**added))
    if not done.rowcount:
        first = {"experiment": answer.experiment, "target": answer.target, "count": 1, "total": said.value}
        await connection.execute(experiment_outcomes.insert().values(**first))


async def _was_counted(connection: AsyncConnection, answer: Answer, name: str) -> bool:
    same = (feedback.c.experiment == answer.experiment, feedback.c.unit == answer.unit, feedback.c.name == name)
    return (await connection.execute(sa.select(feedback.c.name).where(*same).limit(1))).first() is not None
