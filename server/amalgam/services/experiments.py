"""Experiments on aliases: begun by an operator, judged every second, ended by what was seen.

Every front end judges, by the sums that all of them wrote, and the registry lets one of them end an experiment, in the
transaction that changes its alias.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, get_args

from amalgam.domain.alias import Alias
from amalgam.domain.audit import AuditDraft, digest_of
from amalgam.domain.experiment import Ending, Experiment, ExperimentPage, ExperimentSpec, Verdict, judge
from amalgam.domain.expression import is_expression
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.tenant import BUILT_IN_TENANT
from amalgam.errors import AmalgamError
from amalgam.errors.aliases import AliasOfAlias
from amalgam.errors.learning import NothingToCompare
from amalgam.errors.requests import FieldRefused, ModelNotFound
from amalgam.errors.tenants import NotInScope
from amalgam.registry.experiments import ExperimentRegistry
from amalgam.services.aliases import AliasService
from amalgam.services.audit import AuditService
from amalgam.services.catalog import Catalog
from amalgam.services.experiment_counts import ExperimentCounts
from amalgam.telemetry import metric_table as table
from amalgam.telemetry.metrics import BLEND, Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

logger = logging.getLogger(__name__)

PERIOD_S: Final = 1.0
_GAUGES: Final = (table.EXPERIMENT_OUTCOMES, table.EXPERIMENT_MEAN, table.EXPERIMENT_ERRORS)


class ExperimentService:
    """Begins, shows, stops and judges.

    Args:
        registry: the truth.
        aliases: what carries experiments.
        catalog: what names mean; refreshed after every change.
        resolve: refuses a shadow that no request of these scopes could name as its ``model``.
        counts: requests of targets, as this process counts them.
        audit: where an alias that changes by itself is recorded.
        judges_feedback: whether answers are kept, so that clients can judge them.
        metrics: told of how it goes.
    """

    def __init__(
        self,
        registry: ExperimentRegistry,
        aliases: AliasService,
        catalog: Catalog,
        resolve: Callable[[str, Scopes], object],
        counts: ExperimentCounts,
        audit: AuditService,
        *,
        judges_feedback: bool,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._registry = registry
        self._aliases = aliases
        self._catalog = catalog
        self._resolve = resolve
        self._counts = counts
        self._audit = audit
        self._judges_feedback = judges_feedback
        self._metrics = metrics
        # From zero on, so that the first end is a rate already.
        for verdict in get_args(Verdict):
            metrics.values(table.EXPERIMENTS_ENDED).add((verdict,), 0.0)

    async def start(
        self, name: str, spec: ExperimentSpec, *, expected: int | None = None, scopes: Scopes = EVERYTHING
    ) -> Experiment:
        """Have an alias carry an experiment, from now on.

        Args:
            name: of the alias.
            spec: what is asked for; without a control the target with the largest weight is it.
            expected: revision that the alias has to be at.
            scopes: of the key.

        Raises:
            AliasNotFound, StaleRevision, ExperimentRunning: the alias.
            NothingToCompare, FieldRefused, NotInScope: what is asked for, with the field.
            ModelNotFound, AliasOfAlias: a shadow.
        """
        if spec.metric is not None and not self._judges_feedback:
            raise FieldRefused("metric", "needs answers that are kept: AMALGAM_ANSWERS_KEEP_HOURS is 0 here")
        shadows = await self._catalog.found(lambda: self._shadows(name, spec, scopes), must_ask=True)
        found = await self._aliases.get(name)
        control = self._catalog.short(spec.control) or max(found.targets, key=lambda target: target.weight).model
        meant = spec.model_copy(update={"control": control, "shadows": shadows})

        def candidates(alias: Alias) -> tuple[str, ...]:
            return self._candidates(alias, meant, scopes)

        begun = await self._registry.start(name, candidates, meant, expected=expected)
        await self._catalog.refresh()
        return begun

    def _shadows(self, alias: str, spec: ExperimentSpec, scopes: Scopes) -> tuple[str, ...]:
        for index, shadow in enumerate(spec.shadows):
            try:
                if self._catalog.alias(shadow, scopes) is not None:
                    raise AliasOfAlias(alias, shadow)
                self._resolve(shadow, scopes)
            except (AliasOfAlias, ModelNotFound) as error:
                raise error.at(f"shadows.{index}") from error
        return tuple(dict.fromkeys(map(self._catalog.short, spec.shadows)))

    def _candidates(self, alias: Alias, spec: ExperimentSpec, scopes: Scopes) -> tuple[str, ...]:
        models = [target.model for target in alias.targets]
        if not all(self._catalog.covers(model, scopes) for model in models):
            raise NotInScope(f"what {alias.name!r} means", param="name")
        if alias.router is not None:
            raise NothingToCompare("chooses its targets by content; give it weighted targets", "name")
        if spec.control not in models:
            raise NothingToCompare(f"must be one of the alias' targets: {', '.join(models)}", "control")
        for index, shadow in enumerate(spec.shadows):
            if shadow in models:
                raise NothingToCompare("is a target already; a shadow never answers", f"shadows.{index}")
        found = tuple(model for model in models if model != spec.control)
        compares = spec.metric is not None or spec.errors is not None or spec.latency is not None
        if compares and not found:
            raise NothingToCompare("has one target only; give it a second one to compare with", "name")
        if not compares and not spec.shadows:
            raise NothingToCompare("is missing, and so are guards and shadows; name one of them", "metric")
        return found

    async def newest(self, name: str) -> Experiment:
        """The experiment of an alias, or its last one, with all that was counted here. Raises ExperimentNotFound."""
        await self._counts.flush()
        return await self._registry.newest(name)

    async def list(self, limit: int, cursor: str | None) -> ExperimentPage:
        """The newest experiment of each alias, by the aliases' names."""
        return await self._registry.list(limit=limit, cursor=cursor)

    async def stop(self, name: str) -> Experiment:
        """End what runs, and leave the alias as it is; what has ended stays as it ended. Raises ExperimentNotFound."""
        await self._counts.flush()
        found = await self._registry.newest(name)
        ended = await self._registry.end(found.id, lambda _: Ending(verdict="stopped"))
        if ended is None:
            return await self._registry.newest(name)
        self._metrics.values(table.EXPERIMENTS_ENDED).add(("stopped",))
        await self._catalog.refresh()
        return ended

    async def loop(self, period_s: float = PERIOD_S) -> None:
        """`look` every ``period_s`` seconds, for ever."""
        while True:
            await asyncio.sleep(period_s)
            try:
                await self.look()
            except AmalgamError as error:
                logger.warning("experiments_not_judged error=%s", error)

    async def look(self) -> None:
        """Write what was counted here, and end what has seen enough. Without an experiment nobody is asked."""
        await self._counts.flush()
        is_carried = any(alias.experiment is not None for alias in self._catalog.snapshot.aliases.values())
        running = await self._registry.running() if is_carried else ()
        self._counts.forget(frozenset(one.id for one in running))
        self._tell(running)
        for one in running:
            if judge(one) is not None:
                await self._end(one)

    async def _end(self, experiment: Experiment) -> None:
        before = digest_of((await self._aliases.get(experiment.alias)).model_dump(mode="json"))
        ended = await self._registry.end(experiment.id, judge)
        if ended is None or ended.ending is None:
            return
        verdict, winner = ended.ending.verdict, ended.ending.winner or "-"
        logger.info("experiment_ended alias=%s verdict=%s winner=%s", ended.alias, verdict, winner)
        self._metrics.values(table.EXPERIMENTS_ENDED).add((verdict,))
        await self._catalog.refresh()
        draft = AuditDraft(
            key_id="",
            tenant=BUILT_IN_TENANT,
            verb="experiment.end",
            kind="alias",
            object=ended.alias,
            before=before,
            after=digest_of((await self._aliases.get(ended.alias)).model_dump(mode="json")),
            request_id=ended.id,
        )
        await self._audit.append(draft)

    def _label(self, target: str) -> str:
        return BLEND if is_expression(target) else self._metrics.adapter_label(target)

    def _tell(self, running: Sequence[Experiment]) -> None:
        self._metrics.values(table.EXPERIMENTS).put(float(len(running)))
        for gauge in _GAUGES:
            self._metrics.values(gauge).clear()
        for one in running:
            for target in (*one.targets, *one.spec.shadows):
                counts, labels = one.of(target), (one.alias, self._label(target))
                self._metrics.values(table.EXPERIMENT_ERRORS).put(float(counts.errors), labels)
                if counts.outcome.mean is not None:
                    self._metrics.values(table.EXPERIMENT_OUTCOMES).put(float(counts.outcomes), labels)
                    self._metrics.values(table.EXPERIMENT_MEAN).put(counts.outcome.mean, labels)
