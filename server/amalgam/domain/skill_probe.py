"""A skill probe: prompts for the inputs of a merge, and what was found with them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.evaluation import EvaluationItem
from amalgam.domain.kept import SKILL_LOST, InputKept, worst
from amalgam.domain.recipe import Recipe
from amalgam.errors.skills import ProbeRefused

MAX_PROMPTS: Final = 32
"""One input has at most so many prompts: what a merge keeps is found with a handful."""
MAX_TOKENS: Final = 512
"""An answer has at most so many tokens."""


class SkillProbe(BaseModel):
    """What a merge is asked before it is published."""

    model_config = ConfigDict(frozen=True)

    prompts: Mapping[str, tuple[EvaluationItem, ...]]
    """It maps each input, as ``name@number``, to what it is asked."""
    max_tokens: int
    required: float | None = None
    """A merge that keeps less of one of these inputs is not published."""

    def digest(self) -> str:
        """SHA-256 of all of it, in hex."""
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ProbeOrder:
    """A probe as it is asked for: with the names of its request."""

    prompts: Mapping[str, tuple[EvaluationItem, ...]]
    max_tokens: int
    required: float | None

    def pinned(self, recipe: Recipe, refs: Mapping[str, str]) -> SkillProbe:
        """The same for exact versions.

        Args:
            recipe: as it was asked for.
            refs: spelling in the recipe -> ``name@number``.

        Raises:
            ProbeRefused: prompts of what is no input, or none of an input that ``required`` is about.
        """
        inputs = [entry.adapter for entry in recipe.inputs]
        by_name = {refs[name]: name for name in inputs} | {refs[name].partition("@")[0]: name for name in inputs}
        found: dict[str, tuple[EvaluationItem, ...]] = {}
        for name, items in self.prompts.items():
            spelled = name if name in inputs else by_name.get(name)
            if spelled is None:
                raise ProbeRefused(f"{name[:128]!r} is no input of the merge; its inputs are {', '.join(inputs)}")
            if refs[spelled] in found:
                raise ProbeRefused(f"prompts of {spelled!r} are given twice, under two names of it")
            found[refs[spelled]] = items
        lacking = [name for name in kept_inputs(recipe) if refs[name] not in found]
        if lacking and self.required is not None:
            raise ProbeRefused(f"require.kept needs prompts of every input, and {lacking[0]!r} has none")
        return SkillProbe(prompts=found, max_tokens=self.max_tokens, required=self.required)


class KeptRecord(BaseModel):
    """What a probe found, as the lineage of the version keeps it."""

    model_config = ConfigDict(frozen=True)

    probe_digest: str = Field(description="digest of prompts, longest answer and what was required", examples=["5b0c…"])
    inputs: Mapping[str, InputKept] = Field(
        description="what is kept of each input; those without prompts are left out"
    )
    required: float | None = Field(default=None, description="least share, as the merge asked for", examples=[0.9])
    threshold: float = Field(
        default=SKILL_LOST, description="likelihood below which a skill is warned of as lost", examples=[0.94]
    )
    failure: str | None = Field(default=None, description="why nothing was measured", examples=[None])

    @property
    def worst(self) -> tuple[str, float] | None:
        """The input that is kept least, and its share; None where nothing was measured."""
        return worst(self.inputs) if self.inputs else None

    def warnings(self) -> tuple[str, ...]:
        """A sentence for each skill that is lost, and one where nothing was measured."""
        if self.failure is not None:
            return (f"kept_unknown: what the merge keeps was not measured: {self.failure}",)
        return tuple(
            f"skill_lost: the merge gives {round(kept.answers * kept.prompts)} of {kept.prompts} answers of {name} "
            f"alike to the end, and their tokens have {kept.likelihood:.2f} of the probability that {name} gives them, "
            f"below {self.threshold:.2f}; fit the merge to prompts of its inputs, give {name} a larger weight, take "
            "another method, or leave an input out"
            for name, kept in sorted(self.inputs.items())
            if kept.likelihood < self.threshold
        )


def unmeasured(recipe: Recipe) -> tuple[str, ...]:
    """What is to be said of a merge without prompts: a sentence, and nothing of one that keeps a single input."""
    count = len(kept_inputs(recipe))
    if count < 2:
        return ()
    return (
        f"kept_unmeasured: nothing measured what the merge keeps of its {count} inputs, and the skill of one may be "
        "lost; give it a fit or a probe with prompts of each input, such as its card's examples, and require.kept",
    )


def kept_inputs(recipe: Recipe) -> tuple[str, ...]:
    """The inputs that a merge is meant to keep: all but those that it subtracts, or adds nothing of."""
    return tuple(
        entry.adapter for entry in recipe.inputs if not isinstance(entry.weight, float | int) or entry.weight > 0
    )
