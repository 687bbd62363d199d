"""The loops that run alongside requests."""

from dataclasses import dataclass
from functools import partial

from amalgam.domain.clock import new_id
from amalgam.registry.idempotency import IdempotencyRegistry
from amalgam.registry.notices import Notices
from amalgam.registry.stored_bytes import StoredBytesRegistry
from amalgam.services.adapters import PROOF_S
from amalgam.services.background_loops import Loop, end
from amalgam.services.blend_names import BlendNames
from amalgam.services.idempotency import Idempotency
from amalgam.services.key_directory import KeyDirectory
from amalgam.services.live_jobs import LiveJobs
from amalgam.services.pins import Pins
from amalgam.services.retention import Retention
from amalgam.services.shadows import SHADOWS
from amalgam.services.stored_numbers import StoredNumbers
from amalgam.telemetry.loop_watch import watch_loop
from amalgam.wiring.batching import Batching
from amalgam.wiring.charging import Charging
from amalgam.wiring.learning import Learning
from amalgam.wiring.making import Making, Measuring
from amalgam.wiring.parts import ENGINE_START_TIMEOUT_S, Parts
from amalgam.wiring.storage import Storage


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What runs alongside requests."""

    idempotency: Idempotency
    live_jobs: LiveJobs
    notices: Notices | None

    @classmethod
    def begin(
        cls,
        parts: Parts,
        kept: Storage,
        making: Making,
        measuring: Measuring,
        batching: Batching,
        names: BlendNames,
        keys: KeyDirectory,
        charging: Charging,
        learning: Learning,
    ) -> "Upkeep":
        """Begin the loops, and announce the server once it is ready."""
        clock, metrics = kept.database.clock, parts.metrics
        rows = IdempotencyRegistry(kept.database, clock)
        idempotency = Idempotency(rows, parts.settings.http.idempotency_keep_s, new_id)
        live_jobs = LiveJobs(making.merges.count_live, measuring.evaluations.count_live, batching.batches.count_live)
        is_shared = kept.database.is_shared
        keep_s = parts.settings.storage.deleted_keep_s if is_shared else 0.0
        notices = Notices(kept.database) if is_shared else None
        loops: list[tuple[str, Loop]] = [
            ("publishing", making.merges.publish_loop),
            ("retention", Retention(kept.registry, kept.store, kept.file_clock, keep_s, kept.objects).sweep_loop),
            ("idempotency", idempotency.sweep_loop),
            ("evaluations", measuring.runner.loop),
            ("batches", batching.runner.loop),
            ("files", batching.retention.sweep_loop),
            ("fits", measuring.fits.loop),
            ("live_jobs", live_jobs.look_loop),
            ("stored_bytes", StoredNumbers(StoredBytesRegistry(kept.database), keys, metrics).look_loop),
            ("loop_watch", partial(watch_loop, metrics)),
            ("catalog", partial(kept.catalog.follow_loop, metrics.registry_read)),
            ("pins", Pins(kept.catalog, parts.engine, kept.store).follow_loop),
            ("blend_names", names.sweep_loop),
            ("keys", keys.follow_loop),
            ("keys_used", keys.used_loop),
            ("limits", charging.limits.loop),
            ("usage", charging.usage.loop),
            ("answers", learning.book.loop),
            ("experiments", learning.experiments.loop),
            (SHADOWS, learning.shadows.loop),
        ]
        if notices is not None:
            loops.append(("notices", partial(notices.listen_loop, kept.catalog.told)))
        started = [parts.loops.start(name, loop) for name, loop in loops]
        started.append(parts.loops.finish("announcement", partial(_announce_ready, parts)))
        others_take_s = PROOF_S if is_shared else 0.0
        prove_left = partial(making.adapters.prove_left, ENGINE_START_TIMEOUT_S, others_take_s)
        started.append(parts.loops.finish("unproved", prove_left))
        parts.stack.push_async_callback(end, *started)
        return cls(idempotency, live_jobs, notices)


async def _announce_ready(parts: Parts) -> None:
    await parts.engine_ready()
    parts.start.on_ready(dict(parts.engine.info().startup_s))
