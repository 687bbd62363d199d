"""What answers requests: the queue in front of the engine, the blend process, serving profiles."""

import asyncio
import logging
import os
import random
from dataclasses import dataclass
from functools import partial

from amalgam.registry.blend_names import BlendNameRegistry
from amalgam.services.background_loops import end
from amalgam.services.blend_names import BlendNames
from amalgam.services.blend_tier import BlendTier
from amalgam.services.blender_link import BlenderLink
from amalgam.services.blends import BlendLimits, Blends
from amalgam.services.blends_elsewhere import BlendsElsewhere
from amalgam.services.child_environment import template_environment
from amalgam.services.engine_line import EngineLine
from amalgam.services.fair_queue import FairQueue
from amalgam.services.inference import Inference
from amalgam.services.key_directory import KeyDirectory
from amalgam.services.profiles import ProfileService
from amalgam.services.template_link import TemplateLink
from amalgam.services.versions_in_use import VersionsInUse
from amalgam.store.blend_folders import BlendFolders, default_root
from amalgam.wiring.parts import ENGINE_START_TIMEOUT_S, UNSAID_SEQUENCES, Parts
from amalgam.wiring.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Blending:
    """The blend process, the memory for what it builds, and what expressions mean."""

    blender: BlenderLink
    blends: Blends
    names: BlendNames

    @classmethod
    async def open(cls, parts: Parts, kept: Storage, usage: VersionsInUse) -> "Blending":
        """The process runs only where blends are served."""
        settings, stack, metrics = parts.settings, parts.stack, parts.metrics
        tier = await _memory(parts, kept)
        environment = parts.child(kept.base.max_lora_rank, None) | {"AMALGAM_BASE_MODEL": parts.args.model}
        command, timeout_s = parts.start.blender_command, settings.blends.blend_timeout_s
        blender = BlenderLink(command, environment, timeout_s, parts.loops, metrics)
        if settings.blends.inline_blends and not parts.engine.is_elsewhere:
            # Its imports are as long as the engine's and would compete with it for the same cores.
            await blender.start(after=parts.engine_ready())
            stack.push_async_callback(blender.stop)
        stack.push_async_callback(tier.close)
        limits = BlendLimits.of(settings)
        dtype = lambda: parts.engine.info().dtype  # noqa: E731  (asked each time: it is known once the engine is there)
        names = BlendNames(BlendNameRegistry(kept.database, kept.database.clock), settings.blends.blend_names_keep_s)
        stack.push_async_callback(names.close)
        served = (kept.catalog, kept.store, usage, tier, blender, limits, names)
        return cls(blender, Blends(*served, metrics=metrics, engine_dtype=dtype), names)


async def _memory(parts: Parts, kept: Storage) -> BlendTier | BlendsElsewhere:
    """For blends of this process's engine; engines elsewhere have their own."""
    settings, wanted = parts.settings, parts.settings.blends.blend_bytes
    if parts.engine.is_elsewhere:
        return BlendsElsewhere(parts.engine, parts.engine.info().blend_bytes)
    folders = await asyncio.to_thread(BlendFolders.open, settings.blends.blend_dir or default_root(kept.store.root))
    parts.stack.push_async_callback(asyncio.to_thread, folders.close)
    budget = await asyncio.to_thread(folders.budget, wanted)
    if budget < wanted:
        logger.warning("blend_memory_reduced bytes=%d wanted=%d reason=half of what is free", budget, wanted)
    return BlendTier(folders, parts.engine, budget, settings.engine.load_timeout_s, metrics=parts.metrics)


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers requests."""

    queue: FairQueue
    inference: Inference

    @classmethod
    def open(cls, parts: Parts, kept: Storage, blends: Blends, usage: VersionsInUse, keys: KeyDirectory) -> "Answering":
        """The line in front of the engine is fitted to it once it is there."""
        settings, args, engine = parts.settings, parts.args, parts.engine
        batch = getattr(args, "max_num_seqs", None) or UNSAID_SEQUENCES
        line = EngineLine(settings, batch, args.max_loras, keys, parts.metrics)
        fit = partial(line.fit_to_engine, engine, ENGINE_START_TIMEOUT_S)
        parts.stack.push_async_callback(end, parts.loops.finish("batch", fit))
        uniform, served = random.SystemRandom().random, (kept.catalog, engine, kept.store)
        return cls(line.queue, Inference(*served, uniform, usage, blends, line.queue, line.admission))


async def open_profiles(parts: Parts, kept: Storage) -> ProfileService:
    """Serving profiles, with the process that renders their templates."""
    limit_s, environment = parts.settings.adapters.template_timeout_s, template_environment(os.environ)
    templates = TemplateLink(parts.start.template_command, environment, limit_s, parts.loops, parts.metrics)
    await templates.start()
    parts.stack.push_async_callback(templates.stop)
    return ProfileService(kept.profiles, kept.catalog, templates)
