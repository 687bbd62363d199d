"""From stored bytes to an answering name: load, probe with one token, then move the pointer. In that order."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.job import Job, JobState
from amalgam.engine.protocol import Engine
from amalgam.errors import AmalgamError, Unavailable
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.services.catalog import Catalog
from amalgam.services.inference import loadable
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.peft_folder import read_peft_folder
from amalgam.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_BUILT: Final[tuple[JobState, ...]] = ("built",)


class Publisher:
    """Puts versions into service. A version that fails its probe moves no pointer."""

    def __init__(
        self,
        registry: AdapterRegistry,
        jobs: JobRegistry,
        store: AdapterStore,
        catalog: Catalog,
        engine: Engine,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        self._registry = registry
        self._jobs = jobs
        self._store = store
        self._catalog = catalog
        self._engine = engine
        self._clock = clock
        self._metrics = metrics or Metrics()

    async def prove(self, version: AdapterVersion) -> dict[str, float]:
        """Load ``version`` and generate one token with it; seconds by step, empty where the engine is not up yet.

        Raises:
            EngineLoadFailed, SlotsBusy: the engine did not take it.
        """
        if self._engine.state != "ready":
            # The engine is a cache: a version registered while it starts is loaded by its first request.
            return {}
        target = loadable(version, self._store.path(version.digest))
        began = self._clock()
        await self._engine.load(target)
        loaded = self._clock()
        await self._engine.probe(target)
        return {"register": loaded - began, "probe": self._clock() - loaded}

    async def put_in_service(self, version: AdapterVersion, *, set_default: bool) -> None:
        """`prove`, then make it the default version where asked; takes it back where it fails."""
        try:
            await self.prove(version)
        except Exception:
            # Whatever it was: a version that has not answered must not be reachable, nor stay in memory.
            await self._registry.withdraw_version(version.name, version.number)
            await self._engine.unload(version.id)
            raise
        if set_default:
            await self._registry.set_default(version.name, version.number)
        await self._catalog.refresh()

    async def publish_job(self, job: Job) -> None:
        """Finish a built job: its version into service, the job to published or failed. No pointer moves on failure.

        Raises:
            Unavailable: the engine, its places or the registry cannot be had now; the job stays built.
        """
        assert job.version_number is not None
        try:
            version = await self._registry.get_version(job.name, job.version_number)
            # Whatever built it: what the engine is handed passes the same door as an upload, NaN and ranks included.
            await asyncio.to_thread(self._require_sound, version)
            timings = await self.prove(version)
            await self._jobs.publish(job.id, timings)
            self._metrics.job_ended(job.kind, "published", {**job.timings, **timings})
        except Unavailable:
            raise
        except AmalgamError as error:
            logger.error("job %s: %s", job.id, error)
            await self._fail(job, error.code, error.status, error.message)
        except Exception:
            logger.exception("job %s", job.id)
            await self._fail(job, "internal_error", 500, "The new version did not answer. The server's log says why.")
        await self._catalog.refresh()

    def _require_sound(self, version: AdapterVersion) -> None:
        """Raises InvalidAdapter where the stored files are not what this server may serve."""
        read_peft_folder(self._store.path(version.digest), self._catalog.base).require(())

    async def _fail(self, job: Job, code: str, status: int, message: str) -> None:
        await self._jobs.fail(job.id, code=code, status=status, message=message)
        self._metrics.job_ended(job.kind, "failed")
        if job.version_id is not None:
            await self._engine.unload(job.version_id)

    async def publish_built(self) -> None:
        """Finish every job that a worker built, also those of an earlier life of this server.

        While the engine is not ready they stay built: a merge is published only after its probe.
        """
        if self._engine.state != "ready":
            return
        for job in (await self._jobs.list(states=_BUILT, limit=100)).items:
            await self.publish_job(job)
