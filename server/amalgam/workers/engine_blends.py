"""Blends in the process of an engine: built beside it from the recipes that servers send."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Final

from amalgam.domain.blend_plan import BlendPlan
from amalgam.domain.messages import BlendInput, BlendOrder, Refusal
from amalgam.engine.protocol import Engine, LoadableVersion
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.blend_tier import BlendTier, Build
from amalgam.services.blender_link import BlenderLink
from amalgam.services.blends import in_expression
from amalgam.services.child_environment import child_environment
from amalgam.settings import Settings
from amalgam.store.blend_folders import BlendFolders, default_root
from amalgam.telemetry.metrics import Metrics
from amalgam.workers.engine_files import EngineFiles

logger = logging.getLogger(__name__)

BLENDER: Final = (sys.executable, "-m", "amalgam", "blender")


class EngineBlends:
    """The memory for blends, and what builds them.

    Args:
        tier: counts them, and numbers them by the engine.
        blender: the blend process.
        files: of what goes in.
        metrics: told of steps.
    """

    def __init__(self, tier: BlendTier, blender: BlenderLink, files: EngineFiles, metrics: Metrics) -> None:
        self._tier = tier
        self._blender = blender
        self._files = files
        self._metrics = metrics
        self._order_ids = count(1)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        model: str,
        max_lora_rank: int,
        engine: Engine,
        files: EngineFiles,
        loops: BackgroundLoops,
        metrics: Metrics,
        command: Sequence[str] = BLENDER,
    ) -> AsyncIterator["EngineBlends"]:
        """Memory and process for the block."""
        async with AsyncExitStack() as stack:
            root = settings.blends.blend_dir or default_root(files.store.root)
            folders = await asyncio.to_thread(BlendFolders.open, root)
            stack.push_async_callback(asyncio.to_thread, folders.close)
            budget = await asyncio.to_thread(folders.budget, settings.blends.blend_bytes)
            environment = child_environment(os.environ, settings, max_lora_rank, None) | {"AMALGAM_BASE_MODEL": model}
            blender = BlenderLink(command, environment, settings.blends.blend_timeout_s, loops, metrics)
            if settings.blends.inline_blends:
                await blender.start()
                stack.push_async_callback(blender.stop)
            else:
                budget = 0
            tier = BlendTier(folders, engine, budget, settings.engine.load_timeout_s, metrics=metrics)
            stack.push_async_callback(tier.close)
            yield cls(tier, blender, files, metrics)

    @property
    def budget_bytes(self) -> int:
        """The bytes for all blends here; none where they are off."""
        return self._tier.budget_bytes

    @asynccontextmanager
    async def hold(self, plan: BlendPlan) -> AsyncIterator[LoadableVersion]:
        """The blend that ``plan`` describes, in memory while the block runs.

        Raises:
            BlendMemoryBusy, BlendUnavailable, BlendFailed, ReportedError: it cannot be built.
            ArtifactDamaged, ObjectStoreUnavailable: what goes in is not to be had.
        """

        async def run(place: LoadableVersion) -> int:
            return await self._build(plan, place)

        def begin() -> Build:
            ids = frozenset(one.lora_id for one in plan.inputs.values())
            return Build(run, _nothing_held, lambda: plan, ids)

        async with self._tier.hold(plan.digest, plan.reserve_bytes, begin, plan.client) as version:
            yield version

    def retire(self, versions: Set[int]) -> None:
        """Have blends of deleted versions leave."""
        self._tier.retire(versions)

    async def _build(self, plan: BlendPlan, place: LoadableVersion) -> int:
        inputs = {}
        for spelling, given in plan.inputs.items():
            folder = await self._files.sound_folder(given.digest)
            inputs[spelling] = BlendInput(folder=str(folder), digest=given.digest, base=given.base)
        order = BlendOrder(
            id=next(self._order_ids), recipe=plan.recipe, inputs=inputs, folder=str(place.folder),
            max_rank=plan.max_rank, max_bytes=plan.reserve_bytes,
        )  # fmt: skip
        reply = await self._blender.build(order, plan.client)
        if isinstance(reply, Refusal):
            raise in_expression(reply.error, plan.columns)
        self._metrics.blend_steps(reply.seconds)
        return reply.size_bytes


async def _nothing_held() -> None:
    """Files of what goes in stay as long as the registry names them, and for a while after."""
