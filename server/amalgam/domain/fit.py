"""Fits: a merge that is made to keep its inputs' skills, by prompts of each of them, before it is built.

By `iteris` the worker reads the prompts with the base model, and each input is fitted to what it is given on its own
(`amalgam.merge.projection`). By `weights` the server tries weights as blends, and the best ones are built.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.evaluation import EvaluationItem

MAX_CANDIDATES: Final = 60
"""One fit has at most so many; with the inputs they are the targets of one sweep."""
FitMethod = Literal["iteris", "weights"]
FIT_BY: Final[tuple[Literal["kept", "items"], ...]] = ("kept", "items")


class FitRecord(BaseModel):
    """A fit, as its job has it, and as the lineage of the version keeps it."""

    model_config = ConfigDict(frozen=True)

    method: FitMethod = Field(
        default="weights",
        description="`iteris`: each input fitted to its own prompts; `weights`: a search for weights",
        examples=["iteris"],
    )
    by: Literal["kept", "items"] = Field(
        description="what it was fitted by: answers of the inputs, or items with references", examples=["kept"]
    )
    sweep: str | None = Field(
        default=None,
        description="sweep of `weights` that searches; it has every candidate",
        examples=["eval-8f14e4…"],
    )
    prompts_digest: str = Field(description="digest of all prompts, with what is wanted as answers", examples=["5b0c…"])
    seed: int = Field(examples=[0])
    max_tokens: int = Field(description="longest answer, tokens", examples=[64])
    candidates: int | None = Field(default=None, description="most candidates that `weights` tries", examples=[48])
    budget_s: float = Field(description="longest search or reading, seconds", examples=[300.0])
    tried: int | None = Field(
        default=None, description="candidates that `weights` tried; null until the search has ended", examples=[48]
    )
    tokens: int | None = Field(
        default=None, description="tokens that `iteris` read; null until they are read", examples=[4210]
    )
    unread: int = Field(
        default=0, description="modules that no prompt of `iteris` came to, which are summed as they are", examples=[0]
    )
    weights: Mapping[str, float] = Field(
        default={}, description="weight of each input, as it was found", examples=[{"sql@1": 0.85, "json@1": 0.45}]
    )
    kept: Mapping[str, float] = Field(
        default={},
        description="what the search judged each input by: half the share of right or kept answers, half the "
        "likelihood of the input's own, over the same of the input itself",
        examples=[{"sql@1": 0.97, "json@1": 0.93}],
    )

    @property
    def outcome(self) -> str:
        """What it came to, in a line for people."""
        if self.method == "iteris":
            unread = f"; {self.unread} modules were not read and are summed as they are" if self.unread else ""
            return f"fitted: each input to what it reads, {self.tokens} tokens in all{unread}"
        weights = ", ".join(f"{weight:g} of {name}" for name, weight in self.weights.items())
        return f"weights: {weights} ({self.tried} tried)"


@dataclass(frozen=True, slots=True)
class FitOrder:
    """A fit as it is asked for: with the names of its request."""

    by: Literal["kept", "items"]
    prompts: Mapping[str, tuple[EvaluationItem, ...]]
    metrics: Mapping[str, str]
    """It has them by the names of ``prompts``; of those that are left out it is `exact_match`, where items count."""
    candidates: int
    budget_s: float
    seed: int
    max_tokens: int
    method: FitMethod | None = None
    """Without one, it is `iteris` where the server has the base model's files and every item has an answer, else
    `weights`."""


class ReadingFit(BaseModel):
    """What `iteris` needs beside the recipe: the prompts of every input, as its job has them."""

    model_config = ConfigDict(frozen=True)

    items: Mapping[str, tuple[EvaluationItem, ...]]
    """It maps each input, as ``name@number``, to its prompts."""
    labelled: bool
    """It tells whether the references of the items are read as answers; else the input's own answers are."""
    max_tokens: int
    """An answer of an input has at most so many."""
    budget_s: float
    """Reading takes at most so many seconds."""


def fit_digest(recipe_digest: str, record: FitRecord) -> str:
    """Names what is asked for, before anybody knows the weights: SHA-256, in hex."""
    asked = record.model_dump(mode="json", exclude={"sweep", "tried", "tokens", "unread", "weights", "kept"})
    text = json.dumps({"recipe": recipe_digest, **asked}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
