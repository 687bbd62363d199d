"""What an engine elsewhere builds a blend from: a recipe over exact versions, and where their files are found."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from amalgam.domain.recipe import Recipe


class PlannedInput(BaseModel):
    """One version that goes in."""

    model_config = ConfigDict(frozen=True)

    lora_id: int
    digest: str
    """Its files in the store have this digest."""
    base: str
    """Its base model has this fingerprint."""


class BlendPlan(BaseModel):
    """One blend."""

    model_config = ConfigDict(frozen=True)

    digest: str
    """The recipe has this digest; two clients who mean the same have one blend."""
    recipe: Recipe
    """It is completed and pinned."""
    inputs: Mapping[str, PlannedInput]
    """The keys are the recipe's spellings."""
    columns: Mapping[str, int] = {}
    """These are columns of the client's own spelling, for what is found wrong."""
    max_rank: int
    reserve_bytes: int
    """It is no smaller than what will be written."""
    client: str = ""
    """The blend takes this client's memory: no key, but always the same for one."""
