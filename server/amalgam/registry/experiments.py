"""The registry of experiments: one truth of what each has seen and how it ended, whichever front end asks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from amalgam.domain.alias import Alias, AliasChange, AliasTarget, adapters_used
from amalgam.domain.clock import Clock
from amalgam.domain.experiment import Carried, Ending, Experiment, ExperimentPage, ExperimentSpec, TargetCounts
from amalgam.errors.aliases import StaleRevision
from amalgam.errors.learning import ExperimentNotFound, ExperimentRunning
from amalgam.registry.alias_rows import live_alias, write_change
from amalgam.registry.database import Database
from amalgam.registry.tables import aliases, experiment_outcomes, experiment_requests, experiments
from amalgam.registry.version_rows import bump_revision

RequestCounts = Mapping[tuple[str, str], tuple[int, int, int]]
"""It has requests, errors and slow ones, by experiment and target."""


class ExperimentRegistry:
    """Every method is one transaction; every one may raise `RegistryUnavailable`, and then has changed nothing."""

    def __init__(self, database: Database, clock: Clock, base_name: str, new_id: Callable[[], str]) -> None:
        self._database = database
        self._clock = clock
        self._base_name = base_name
        self._new_id = new_id

    async def start(
        self,
        name: str,
        candidates: Callable[[Alias], tuple[str, ...]],
        spec: ExperimentSpec,
        *,
        expected: int | None = None,
    ) -> Experiment:
        """Have the alias carry a new experiment.

        Args:
            name: of the alias.
            candidates: judges the alias and gives its targets but the control; may refuse.
            spec: what is asked for.
            expected: revision that the alias has to be at; None: any.

        Raises:
            AliasNotFound, StaleRevision, ExperimentRunning: the alias.
        """
        async with self._database.write() as connection:
            alias = await live_alias(connection, name)
            if expected is not None and expected != alias.revision:
                raise StaleRevision(name, expected, alias.revision)
            if alias.experiment is not None:
                raise ExperimentRunning(name)
            begun = Experiment(
                id=self._new_id(),
                alias=name,
                candidates=candidates(alias),
                spec=spec,
                state="running",
                created_at=self._clock(),
            )
            row = begun.model_dump(mode="json", exclude={"created_at", "ended_at", "counts"})
            await connection.execute(experiments.insert().values(**row, created_at=begun.created_at))
            slow_ms = None if spec.latency is None else spec.latency.slow_ms
            carried = Carried(id=begun.id, assignment=spec.assignment, slow_ms=slow_ms, shadows=spec.shadows)
            await _carry(connection, name, carried)
            return begun

    async def newest(self, name: str) -> Experiment:
        """The experiment that an alias carries, or the last that it carried. Raises ExperimentNotFound."""
        query = sa.select(experiments).where(experiments.c.alias == name)
        query = query.order_by(experiments.c.created_at.desc(), experiments.c.id).limit(1)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                raise ExperimentNotFound(name)
            return (await _read(connection, [row]))[0]

    async def list(self, *, limit: int, cursor: str | None = None) -> ExperimentPage:
        """The newest experiment of each alias; arguments as `AdapterRegistry.list_adapters`."""
        newer = experiments.alias()
        is_newest = ~sa.exists().where(
            newer.c.alias == experiments.c.alias,
            sa.or_(
                newer.c.created_at > experiments.c.created_at,
                sa.and_(newer.c.created_at == experiments.c.created_at, newer.c.id < experiments.c.id),
            ),
        )
        query = sa.select(experiments).where(is_newest).order_by(experiments.c.alias).limit(limit + 1)
        if cursor is not None:
            query = query.where(experiments.c.alias > cursor)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
            items = tuple(await _read(connection, rows[:limit]))
        return ExperimentPage(items, items[-1].alias if len(rows) > limit else None)

    async def running(self) -> Sequence[Experiment]:
        """All that run."""
        async with self._database.read() as connection:
            query = sa.select(experiments).where(experiments.c.state == "running").order_by(experiments.c.alias)
            return await _read(connection, (await connection.execute(query)).mappings().all())

    async def put_counts(self, front: str, counted: RequestCounts) -> None:
        """Write what ``front`` has counted, in the place of what it said before; nothing of what has ended."""
        async with self._database.write() as connection:
            known = experiments.c.id.in_({of for of, _ in counted})
            live = sa.select(experiments.c.id).where(known, experiments.c.state == "running")
            running = set((await connection.execute(live)).scalars())
            rows = [
                {"experiment": of, "target": target, "front": front}
                | {"requests": requests, "errors": errors, "slow": slow}
                for (of, target), (requests, errors, slow) in counted.items()
                if of in running
            ]
            if not rows:
                return
            made = sqlite if connection.dialect.name == "sqlite" else postgresql
            statement = made.insert(experiment_requests)
            changed = {name: statement.excluded[name] for name in ("requests", "errors", "slow")}
            key = list(experiment_requests.primary_key.columns)
            await connection.execute(statement.on_conflict_do_update(index_elements=key, set_=changed), rows)

    async def end(self, experiment_id: str, ending: Callable[[Experiment], Ending | None]) -> Experiment | None:
        """End it by what it has seen, and have its alias mean what follows; at once, and once, for all front ends.

        Args:
            experiment_id: which.
            ending: how it ends, asked about the counts of this moment; None: it goes on.

        Returns: as it ended; None where it goes on, or ended before.
        """
        async with self._database.write() as connection:
            query = sa.select(experiments).where(experiments.c.id == experiment_id, experiments.c.state == "running")
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                return None
            found = (await _read(connection, [row]))[0]
            ended = ending(found)
            if ended is None:
                return None
            alias = await live_alias(connection, found.alias)
            targets = targets_after(alias, found, ended)
            if targets != alias.targets:
                await self._change(connection, alias, targets)
            else:
                ended = ended.model_copy(update={"changes_alias": False})
            await _carry(connection, alias.name, None)
            return await close_experiment(connection, found, ended, self._clock)

    async def _change(self, connection: AsyncConnection, alias: Alias, targets: tuple[AliasTarget, ...]) -> None:
        """Write the next revision of an alias, as the end of its experiment makes it."""
        now, uses = self._clock(), adapters_used(targets, self._base_name)
        fields: dict[str, Any] = {
            "revision": alias.revision + 1,
            "targets": [target.model_dump() for target in targets],
            "uses": [[use.name, use.number] for use in uses],
            "updated_at": now,
        }
        await connection.execute(aliases.update().where(aliases.c.name == alias.name).values(**fields))
        change = AliasChange(
            revision=alias.revision + 1, action="experiment", targets=targets, restores=None, created_at=now
        )
        await write_change(connection, alias.name, change)


def targets_after(alias: Alias, experiment: Experiment, ending: Ending) -> tuple[AliasTarget, ...]:
    """What the alias means once the experiment has ended."""
    if not ending.changes_alias:
        return alias.targets
    if ending.winner is not None:
        return (AliasTarget(model=ending.winner, weight=1),)
    left = tuple(target for target in alias.targets if target.model not in ending.removed)
    return left or (AliasTarget(model=experiment.spec.control, weight=1),)


async def replace_experiment(connection: AsyncConnection, alias: Alias | None, clock: Clock) -> None:
    """End the experiment of an alias that somebody changes in an open transaction: what it compared is not there."""
    if alias is None or alias.experiment is None:
        return
    query = sa.select(experiments).where(experiments.c.id == alias.experiment.id, experiments.c.state == "running")
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is not None:
        found = (await _read(connection, [row]))[0]
        await close_experiment(connection, found, Ending(verdict="replaced"), clock)


async def close_experiment(
    connection: AsyncConnection, experiment: Experiment, ending: Ending, clock: Clock
) -> Experiment:
    """Write how it ended, with what it had seen."""
    stops = ending.verdict in ("stopped", "replaced")
    ended = experiment.model_copy(
        update={"state": "stopped" if stops else "ended", "ending": ending, "ended_at": clock()}
    )
    fields = ended.model_dump(mode="json", include={"state", "ending", "counts"})
    where = experiments.c.id == experiment.id
    await connection.execute(experiments.update().where(where).values(**fields, ended_at=ended.ended_at))
    for table in (experiment_outcomes, experiment_requests):
        await connection.execute(table.delete().where(table.c.experiment == experiment.id))
    return ended


async def _carry(connection: AsyncConnection, name: str, carried: Carried | None) -> None:
    value = None if carried is None else carried.model_dump(mode="json")
    await connection.execute(aliases.update().where(aliases.c.name == name).values(experiment=value))
    await bump_revision(connection)


async def _read(connection: AsyncConnection, rows: Sequence[sa.RowMapping]) -> list[Experiment]:
    """The domain's experiments, those that run with the sums of what was seen."""
    running = [row["id"] for row in rows if row["state"] == "running"]
    sums = await _sums(connection, running) if running else {}
    found = []
    for row in rows:
        counts = sums.get(row["id"], {}) if row["state"] == "running" else row["counts"]
        found.append(Experiment.model_validate({**row, "counts": counts or {}}))
    return found


async def _sums(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, dict[str, TargetCounts]]:
    fields: dict[tuple[str, str], dict[str, Any]] = {}
    said = sa.select(experiment_outcomes).where(experiment_outcomes.c.experiment.in_(ids))
    for row in (await connection.execute(said)).mappings():
        of = fields.setdefault((row["experiment"], row["target"]), {})
        of |= {"outcomes": int(row["count"]), "total": float(row["total"])}
    requests = experiment_requests.c
    columns = [sa.func.sum(requests[name]).label(name) for name in ("requests", "errors", "slow")]
    asked = (
        sa.select(requests.experiment, requests.target, *columns)
        .where(requests.experiment.in_(ids))
        .group_by(requests.experiment, requests.target)
    )
    for row in (await connection.execute(asked)).mappings():
        of = fields.setdefault((row["experiment"], row["target"]), {})
        of |= {name: int(row[name]) for name in ("requests", "errors", "slow")}
    found: dict[str, dict[str, TargetCounts]] = {}
    for (experiment_id, target), values in fields.items():
        found.setdefault(experiment_id, {})[target] = TargetCounts(**values)
    return found
