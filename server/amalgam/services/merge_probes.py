"""What a built merge keeps of its inputs: measured before it is published, recorded, refused where it is too low."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from amalgam.domain.adapter import AdapterVersion, VersionRef
from amalgam.domain.job import Job
from amalgam.domain.kept import InputKept
from amalgam.domain.skill_probe import KeptRecord, SkillProbe
from amalgam.engine.protocol import Engine, LoadableVersion
from amalgam.errors import AmalgamError, Unavailable
from amalgam.errors.skills import KeptTooLow, KeptUnknown
from amalgam.registry.adapters import AdapterRegistry
from amalgam.services.fair_queue import FairQueue
from amalgam.services.inference import loadable
from amalgam.services.skill_probes import CLIENT, Hold, SkillProbes
from amalgam.store.adapter_store import AdapterStore
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

logger = logging.getLogger(__name__)


class MergeProbes:
    """Measures versions that no name means yet.

    Args:
        probes: asks and reads.
        registry: of the inputs, deleted since or not: the job keeps their files.
        store: where versions lie.
        engine: holds them.
        queue: whose turn it is.
        budget_s: longest time for one merge, seconds.
        metrics: told what is kept.
    """

    def __init__(
        self,
        probes: SkillProbes,
        registry: AdapterRegistry,
        store: AdapterStore,
        engine: Engine,
        queue: FairQueue,
        budget_s: float,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._probes = probes
        self._registry = registry
        self._store = store
        self._engine = engine
        self._queue = queue
        self._budget_s = budget_s
        self._metrics = metrics

    async def record(self, job: Job, version: AdapterVersion) -> KeptRecord | None:
        """What ``version``, which ``job`` built, keeps; None where the job has no probe.

        Raises:
            KeptTooLow: less than the job requires.
            KeptUnknown: it requires something, and nothing could be measured.
            Unavailable: the engine or its places cannot be had now.
        """
        if job.probe is None:
            return None
        probe = SkillProbe.model_validate(job.probe)
        record = KeptRecord(probe_digest=probe.digest(), inputs={}, required=probe.required)
        try:
            kept = await self._measured(probe, version)
        except Unavailable:
            raise
        except (AmalgamError, TimeoutError) as error:
            reason = error.message if isinstance(error, AmalgamError) else self._too_long()
            logger.warning("kept_unknown job=%s reason=%s", job.id, reason)
            if probe.required is not None:
                raise KeptUnknown(reason) from error
            return record.model_copy(update={"failure": reason})
        record = record.model_copy(update={"inputs": kept})
        worst = record.worst
        if worst is not None:
            self._metrics.merge_kept(worst[1])
            if probe.required is not None and worst[1] < probe.required:
                raise KeptTooLow(*worst, probe.required)
        return record

    def _too_long(self) -> str:
        return f"it took longer than {self._budget_s:g} seconds (AMALGAM_KEPT_BUDGET_S)."

    async def _measured(self, probe: SkillProbe, version: AdapterVersion) -> dict[str, InputKept]:
        inputs = {name: self._hold(await self._input(name)) for name in probe.prompts}
        merge = self._hold(loadable(version, await self._store.for_engine(version.digest)))
        async with asyncio.timeout(self._budget_s):
            return await self._probes.kept(merge, inputs, probe.prompts, probe.max_tokens)

    async def _input(self, name: str) -> LoadableVersion:
        ref = VersionRef.parse(name)
        assert ref is not None
        version = await self._registry.get_pinned(ref.name, ref.number)
        return loadable(version, await self._store.for_engine(version.digest))

    def _hold(self, target: LoadableVersion) -> Hold:
        @asynccontextmanager
        async def held() -> AsyncIterator[str]:
            async with self._queue.turn(target, client=CLIENT), self._engine.hold(target):
                yield target.engine_name

        return held
