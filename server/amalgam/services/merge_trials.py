"""Merges that are not built yet, tried as blends: what they would keep of their inputs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from amalgam.domain.expression import print_expression
from amalgam.domain.recipe import Recipe
from amalgam.domain.skill_probe import KeptRecord, SkillProbe
from amalgam.errors import AmalgamError
from amalgam.merge.methods import method
from amalgam.services.inference import Inference
from amalgam.services.skill_probes import CLIENT, Hold, SkillProbes

NO_BLEND: Final = "its weights differ from module to module, and a blend has one for each input."


class MergeTrials:
    """Asks blends.

    Args:
        probes: asks and reads.
        inference: builds blends, and holds them and their inputs.
    """

    def __init__(self, probes: SkillProbes, inference: Inference) -> None:
        self._probes = probes
        self._inference = inference

    def hold(self, model: str) -> Hold:
        """Keeps what ``model`` means, a version or a blend, in the engine for one call."""

        @asynccontextmanager
        async def held() -> AsyncIterator[str]:
            async with self._inference.admit(model, client=CLIENT) as target:
                yield target.engine_name

        return held

    async def kept(self, recipe: Recipe, probe: SkillProbe, budget_s: float) -> KeptRecord:
        """What the merge of a pinned recipe would keep; why not, where that cannot be told within ``budget_s``."""
        record = KeptRecord(probe_digest=probe.digest(), inputs={}, required=probe.required)
        expression = print_expression(recipe, always_seed=method(recipe.method).random)
        if expression is None:
            return record.model_copy(update={"failure": NO_BLEND})
        inputs = {name: self.hold(name) for name in probe.prompts}
        try:
            async with asyncio.timeout(budget_s):
                kept = await self._probes.kept(self.hold(expression), inputs, probe.prompts, probe.max_tokens)
        except TimeoutError:
            return record.model_copy(update={"failure": f"it took longer than {budget_s:g} seconds."})
        except AmalgamError as error:
            return record.model_copy(update={"failure": error.message})
        return record.model_copy(update={"inputs": kept})
