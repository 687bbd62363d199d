"""Fits: a merge whose weights are searched before it is built."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.evaluation import EvaluationItem

MAX_CANDIDATES: Final = 60
"""Of one fit; with the inputs they are the targets of one sweep."""
FIT_BY: Final[tuple[Literal["kept", "items"], ...]] = ("kept", "items")


class FitRecord(BaseModel):
    """A fit, as its job has it, and as the lineage of the version keeps it."""

    model_config = ConfigDict(frozen=True)

    by: Literal["kept", "items"] = Field(
        description="what weights were searched by: answers of the inputs, or scored items", examples=["kept"]
    )
    sweep: str = Field(description="the sweep that searches; it has every candidate", examples=["eval-8f14e4…"])
    prompts_digest: str = Field(description="of all prompts, with what is wanted as answers", examples=["5b0c…"])
    seed: int = Field(examples=[0])
    max_tokens: int = Field(description="longest answer, tokens", examples=[64])
    candidates: int = Field(description="most that are tried", examples=[48])
    budget_s: float = Field(description="longest search, seconds", examples=[300.0])
    tried: int | None = Field(default=None, description="candidates; null until the search has ended", examples=[48])
    weights: Mapping[str, float] = Field(
        default={}, description="by input, as they were found", examples=[{"sql@1": 0.85, "json@1": 0.45}]
    )
    kept: Mapping[str, float] = Field(
        default={},
        description="by input, what the search judged by: half the share of right or kept answers, half the likelihood "
        "of the input's own, over the same of the input itself",
        examples=[{"sql@1": 0.97, "json@1": 0.93}],
    )


@dataclass(frozen=True, slots=True)
class FitOrder:
    """A fit as it is asked for: with the names of its request."""

    by: Literal["kept", "items"]
    prompts: Mapping[str, tuple[EvaluationItem, ...]]
    metrics: Mapping[str, str]
    """By the names of ``prompts``; of those that are left out `exact_match`, where items count."""
    candidates: int
    budget_s: float
    seed: int
    max_tokens: int


def fit_digest(recipe_digest: str, record: FitRecord) -> str:
    """Names what is asked for, before anybody knows the weights: SHA-256, in hex."""
    asked = record.model_dump(mode="json", exclude={"sweep", "tried", "weights", "kept"})
    text = json.dumps({"recipe": recipe_digest, **asked}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
