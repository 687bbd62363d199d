"""Brings stored bytes to an answering name: load, probe with one token, then move the pointer. In that order."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from amalgam.domain.adapter import AdapterVersion
from amalgam.engine.protocol import Engine
from amalgam.errors import AmalgamError, NotFound, Unavailable
from amalgam.errors.adapters import InvalidAdapter
from amalgam.errors.engine import EngineNotReady, NonFiniteOutput
from amalgam.errors.findings import Finding
from amalgam.errors.jobs import LeaseLost
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.services.catalog import Catalog
from amalgam.services.fair_queue import FairQueue
from amalgam.services.inference import loadable
from amalgam.services.merge_probes import MergeProbes
from amalgam.services.publish_lease import LEASE_S, PublishLease, claimed
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.peft_folder import read_peft_folder
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

logger = logging.getLogger(__name__)

CLIENT: Final = "publishing"
"""It takes turns with the keys, as one of them."""


class Publisher:
    """Puts versions into service. A version that fails its probe moves no pointer."""

    def __init__(
        self,
        registry: AdapterRegistry,
        jobs: JobRegistry,
        store: AdapterStore,
        catalog: Catalog,
        engine: Engine,
        queue: FairQueue,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics = NO_METRICS,
        server: str = "server",
        lease_s: float = LEASE_S,
        probes: MergeProbes | None = None,
    ) -> None:
        """Build it.

        Args:
            server: Who publishes, as jobs name it.
            lease_s: Of a job that it publishes, seconds.
            probes: Measure what merges keep; None: no job has a probe.
        """
        self._server = server
        self._lease_s = lease_s
        self._probes = probes
        self._probing: asyncio.Task[None] | None = None
        self._registry = registry
        self._jobs = jobs
        self._store = store
        self._catalog = catalog
        self._engine = engine
        self._clock = clock
        self._metrics = metrics
        self._queue = queue

    async def prove(self, version: AdapterVersion) -> dict[str, float]:
        """Load ``version`` and generate one token with it; seconds by step, empty where the engine is not up yet.

        Raises:
            EngineLoadFailed, SlotsBusy, NoTurn: the engine did not take it.
            InvalidAdapter: its first token's log-probability is not finite.
        """
        if self._engine.state != "ready":
            # The engine is a cache: a version registered while it starts is loaded by its first request.
            return {}
        target = loadable(version, await self._store.for_engine(version.digest))
        began = self._clock()
        await self._engine.load(target)
        loaded = self._clock()
        try:
            async with self._queue.turn(target, client=CLIENT):
                await self._engine.probe(target)
        except NonFiniteOutput as error:
            # Of an adapter that is to be served it is a finding like others, and not the server's fault.
            raise InvalidAdapter([Finding(code="non_finite_output", message=error.message)]) from error
        return {"register": loaded - began, "probe": self._clock() - loaded}

    async def put_in_service(self, version: AdapterVersion, *, set_default: bool) -> None:
        """`prove`, then let it be served, as the default version where asked; takes it back where it fails."""
        try:
            await self.prove(version)
        except Exception:
            # Whatever it was: a version that has not answered must not be reachable, nor stay in memory.
            await self._registry.withdraw_version(version.name, version.number)
            await self._engine.unload(version.id)
            raise
        await self._registry.enter_service(version, set_default=set_default)
        await self._catalog.refresh()

    async def prove_left(self, older_s: float = 0.0) -> None:
        """Prove what was registered and has not answered, because its server was killed in between.

        Each is served from then on, under its number alone, or is withdrawn.

        Args:
            older_s: What was registered within so many seconds is left alone: another server may be proving it.

        Raises:
            Unavailable: the engine, its places or the registry cannot be had now; what is left stays unserved.
        """
        for version in await self._registry.unproved(older_s=older_s):
            try:
                await self._prove_again(version)
            except Unavailable:
                raise
            except NotFound:
                # Deleted, or withdrawn by who had registered it.
                continue
            except Exception:
                logger.exception("version_withdrawn version=%s reason=it does not answer", version.ref)
                with suppress(NotFound):
                    await self._registry.withdraw_version(version.name, version.number)
                await self._engine.unload(version.id)
            await self._catalog.refresh()

    async def _prove_again(self, version: AdapterVersion) -> None:
        if self._engine.state != "ready":
            raise EngineNotReady(self._engine.state)
        await asyncio.to_thread(self._require_sound, version)
        await self.prove(version)
        await self._registry.enter_service(version, set_default=False)

    async def publish_built(self) -> None:
        """Finish every job that a worker built and no other server publishes, also those of an earlier life.

        While the engine is not ready they stay built: a merge is published only after its probe. What a merge keeps of
        its inputs takes many calls of the engine, so that is measured beside, one merge at a time.

        Raises:
            Unavailable: the engine, its places or the registry cannot be had now; the job stays built.
        """
        if self._probing is None and self._probes is not None:
            self._probing = asyncio.create_task(self._publish_probed(), name="merge probes")
        await self._publish_all(probed=False)

    async def _publish_probed(self) -> None:
        try:
            await self._publish_all(probed=True)
        except AmalgamError as error:
            logger.warning("publishing_delayed reason=%s", error)
        finally:
            self._probing = None

    async def close(self) -> None:
        """End what is measured; its job stays built, and is taken up by the next start, or by another server."""
        if (probing := self._probing) is not None:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
            # A task that was cancelled before its first step has not said that it is gone.
            self._probing = None

    async def _publish_all(self, *, probed: bool) -> None:
        while self._engine.state == "ready":
            async with claimed(self._jobs, self._server, self._lease_s, probed=probed) as lease:
                if lease is None:
                    return
                try:
                    await self._publish(lease)
                except (Unavailable, asyncio.CancelledError):
                    await asyncio.shield(lease.give_back())
                    raise
            await self._catalog.refresh()

    async def _publish(self, lease: PublishLease) -> None:
        """Its version into service, the job to published or failed. No pointer moves on failure."""
        job = lease.job
        assert job.version_number is not None
        try:
            version = await self._registry.get_version(job.name, job.version_number)
            # Whatever built it: what the engine is given passes the same checks as an upload, NaN and ranks included.
            await asyncio.to_thread(self._require_sound, version)
            timings = await self.prove(version)
            began = self._clock()
            kept = None if self._probes is None else await self._probes.record(job, version)
            if kept is not None:
                timings["kept"] = self._clock() - began
            await lease.publish(timings, kept)
            self._metrics.job_ended(job.kind, "published", {**job.timings, **timings})
        except Unavailable:
            raise
        except LeaseLost as error:
            # Another server publishes it by now, and counts it.
            logger.warning("publish_lease_lost job=%s reason=%s", job.id, error)
        except AmalgamError as error:
            logger.error("job_failed job=%s code=%s reason=%s", job.id, error.code, error)
            await self._fail(lease, error.code, error.status, error.message)
        except Exception:
            logger.exception("job_failed job=%s code=internal_error", job.id)
            message = "The new version did not answer. The server's log says why."
            await self._fail(lease, "internal_error", 500, message)

    async def _fail(self, lease: PublishLease, code: str, status: int, message: str) -> None:
        job = lease.job
        if await lease.fail(code, status, message):
            self._metrics.job_ended(job.kind, "failed")
        if job.version_id is not None:
            await self._engine.unload(job.version_id)

    def _require_sound(self, version: AdapterVersion) -> None:
        """Raises InvalidAdapter where the stored files are not what this server may serve."""
        read_peft_folder(self._store.path(version.digest), self._catalog.base).require(())
