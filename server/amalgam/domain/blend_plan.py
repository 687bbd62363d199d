"""What an engine elsewhere builds a blend from: a recipe over exact versions, and where their files are found."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from amalgam.domain.recipe import Recipe


class PlannedInput(BaseModel):
    """One version that goes in."""

    model_config = ConfigDict(frozen=True)

    lora_id: int
    digest: str
    """Of its files in the store."""
    base: str
    """Fingerprint of its base model."""


class BlendPlan(BaseModel):
    """One blend."""

    model_config = ConfigDict(frozen=True)

    digest: str
    """Of the recipe; two clients who mean the same have one blend."""
    recipe: Recipe
    """Completed and pinned."""
    inputs: Mapping[str, PlannedInput]
    """By the recipe's spelling."""
    columns: Mapping[str, int] = {}
    """Of the client's own spelling, for what is found wrong."""
    max_rank: int
    reserve_bytes: int
    """No smaller than what will be written."""
    client: str = ""
    """Whose memory it takes: no key, but always the same for one."""
