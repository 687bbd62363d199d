"""Opens every subsystem in order, and gives the routes the services that they may call."""

from amalgam.api.inference.body_reader import BodyReader
from amalgam.api.state import Services
from amalgam.registry.aliases import AliasRegistry
from amalgam.registry.routers import RouterRegistry
from amalgam.services.alias_routers import AliasRouters
from amalgam.services.aliases import AliasService
from amalgam.services.batch_lines import LineAsker
from amalgam.services.cache_salts import CacheSalts
from amalgam.services.demo_adapters import register_missing
from amalgam.services.evaluation_calls import Ask
from amalgam.services.inner_charges import InnerCharges
from amalgam.services.lora_modules import register_modules
from amalgam.services.profiles import ProfileService
from amalgam.services.prompt_labels import PromptLabels
from amalgam.services.versions_in_use import VersionsInUse
from amalgam.wiring.access import Access
from amalgam.wiring.answering import Answering, Blending, open_profiles
from amalgam.wiring.batching import Batching
from amalgam.wiring.charging import Charging
from amalgam.wiring.learning import Learning
from amalgam.wiring.making import Making, Measuring, skill_probes
from amalgam.wiring.parts import Parts
from amalgam.wiring.storage import Storage
from amalgam.wiring.upkeep import Upkeep


async def build(parts: Parts, ask: Ask, asker: LineAsker, salts: CacheSalts) -> Services:
    """Open in order; the stack closes in reverse: HTTP has ended by then, the worker goes before the database."""
    kept = await _open_storage(parts)
    access, charging = await Access.open(parts, kept), Charging.open(parts, kept)
    batching, (blending, answering) = await Batching.open(parts, kept, asker), await _answering(parts, kept, access)
    profiles, probes = await open_profiles(parts, kept), skill_probes(parts, kept, ask)
    making = await _started(parts, kept, Making.open(parts, kept, answering, profiles, probes))
    asked = (ask, probes, InnerCharges(access.directory, charging.limits, charging.usage, answering.inference))
    measuring = Measuring.open(parts, kept, answering.inference, making.merges, *asked)
    given = (answering.inference, _aliases(kept, answering, making), access.audit, charging.usage, ask)
    learning = Learning.open(parts, kept, *given)
    looping = (blending.names, access.directory, charging, learning)
    upkeep = Upkeep.begin(parts, kept, making, measuring, batching, *looping)
    served = (blending, answering, profiles)
    return _services(parts, kept, salts, access, charging, batching, *served, making, measuring, upkeep, learning)


def _services(
    parts: Parts,
    kept: Storage,
    salts: CacheSalts,
    access: Access,
    charging: Charging,
    batching: Batching,
    blending: Blending,
    answering: Answering,
    profiles: ProfileService,
    making: Making,
    measuring: Measuring,
    upkeep: Upkeep,
    learning: Learning,
) -> Services:
    """What routes may call, of all that is open."""
    return Services(
        settings=parts.settings,
        engine=parts.engine,
        catalog=kept.catalog,
        inference=answering.inference,
        adapters=making.adapters,
        aliases=learning.aliases,
        merges=making.merges,
        profiles=profiles,
        metrics=parts.metrics,
        worker=making.worker,
        idempotency=upkeep.idempotency,
        lineage=making.lineage,
        blender=blending.blender,
        evaluations=measuring.evaluations,
        sweeps=measuring.sweeps,
        fits=measuring.fits,
        trials=measuring.trials,
        exports=making.exports,
        salts=salts,
        loops=parts.loops,
        live_jobs=upkeep.live_jobs,
        notices=upkeep.notices,
        bodies=parts.stack.enter_context(BodyReader.of(parts.settings, parts.args, kept.base)),
        keys=access.directory,
        limits=charging.limits,
        usage=charging.usage,
        tenants=access.tenants,
        audit=access.audit,
        files=batching.files,
        batches=batching.batches,
        answers=learning.book,
        feedback=learning.feedback,
        experiment_counts=learning.counts,
        experiments=learning.experiments,
        shadows=learning.shadows,
    )


async def _open_storage(parts: Parts) -> Storage:
    """Background loops end just before what they read and write is closed."""
    kept = await Storage.open(parts)
    parts.stack.push_async_callback(parts.loops.stop)
    return kept


async def _answering(parts: Parts, kept: Storage, access: Access) -> tuple[Blending, Answering]:
    """What is in use is counted by both."""
    usage = VersionsInUse()
    blending = await Blending.open(parts, kept, usage)
    return blending, Answering.open(parts, kept, blending.blends, usage, access.directory)


async def _started(parts: Parts, kept: Storage, making: Making) -> Making:
    """The engine, what is registered by the start itself, and the merge process once the engine is ready."""
    drain_timeout_s = parts.settings.http.drain_timeout_s
    await parts.engine.start()
    parts.stack.push_async_callback(parts.engine.stop, drain_timeout_s)
    parts.stack.push_async_callback(making.adapters.close, drain_timeout_s)
    await register_missing(making.adapters, kept.registry, dict(parts.start.demo_folders))
    await register_modules(making.adapters, parts.start.lora_modules)
    await making.worker.start(after=parts.engine_ready())
    parts.stack.push_async_callback(making.worker.stop)
    return making


def _aliases(kept: Storage, answering: Answering, making: Making) -> AliasService:
    registry = AliasRegistry(kept.database, kept.database.clock, kept.base.served_name)
    labels = PromptLabels(kept.catalog, making.worker)
    routers = AliasRouters(kept.catalog, RouterRegistry(kept.database), labels)
    return AliasService(registry, kept.catalog, answering.inference.resolve, routers)
