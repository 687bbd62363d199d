"""Evaluations: items asked of targets, and what came of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amalgam.domain.tenant import BUILT_IN_TENANT

MAX_ITEMS: Final = 2000
MAX_TARGETS: Final = 64
MAX_ANSWER: Final = 16_384
"""So many characters of an answer are kept."""

EvaluationKind = Literal["evaluation", "sweep"]
EvaluationState = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
MAX_ATTEMPTS: Final = 3
"""An evaluation whose server dies is taken over by another; one that so many servers died at is interrupted."""
RESUMABLE: Final[tuple[EvaluationState, ...]] = ("interrupted", "failed")
CANCELLABLE: Final[tuple[EvaluationState, ...]] = ("queued", "running", "interrupted")


class EvaluationItem(BaseModel):
    """One question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = "all"
    """Items of one task are counted together."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    prompt: str | None = None
    """It is a text to continue; an item has either this or messages."""
    reference: str | None = None
    pattern: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> "EvaluationItem":
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either messages or prompt")
        return self


class EvaluationTarget(BaseModel):
    """One of those who are asked."""

    model_config = ConfigDict(frozen=True)

    model: str
    """It is written as it was asked for."""
    pinned: str
    """It is the same with exact versions, which is what is asked; a weighted alias stays, and is drawn from per item.
    """
    meaning: str
    """It is ``pinned``, or of a weighted alias its targets and shares at that moment."""


class EvaluationError(BaseModel):
    """Why an evaluation failed."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str


class Evaluation(BaseModel):
    """A row, without its items."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: EvaluationKind
    label: str
    targets: tuple[EvaluationTarget, ...]
    metrics: tuple[str, ...]
    tasks: Mapping[str, int]
    """It tells how many items each has."""
    max_tokens: int
    items_digest: str
    """It is the digest of the items; evaluations that share it can be compared."""
    search: Mapping[str, Any] | None = None
    """It describes a sweep: see `domain.search.SweepPlan`."""
    tenant: str = BUILT_IN_TENANT
    """This tenant asked for it, and is charged."""
    key_id: str = ""
    """It is the id of the key; empty without one."""
    state: EvaluationState
    done: int
    """So many measurements were made."""
    total: int
    error: EvaluationError | None = None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class EvaluationDraft:
    """What is to be queued."""

    kind: EvaluationKind
    label: str
    targets: tuple[EvaluationTarget, ...]
    items: tuple[EvaluationItem, ...]
    metrics: tuple[str, ...]
    max_tokens: int
    search: Mapping[str, Any] | None = None
    tenant: str = BUILT_IN_TENANT
    key_id: str = ""
    calls: int | None = None
    """It may come to so many measurements; None: every item is asked of every target."""

    @property
    def total(self) -> int:
        """Measurements that are to be made."""
        return len(self.targets) * len(self.items) if self.calls is None else self.calls


class Measurement(BaseModel):
    """One item asked of one target."""

    model_config = ConfigDict(frozen=True)

    target: int = Field(ge=0)
    item: int = Field(ge=0)
    served: str = ""
    """The exact version or blend of this name answered; empty where none did."""
    answer: str | None = None
    """It is None where only the reference was weighed, or where it is left out."""
    values: Mapping[str, float] = {}
    """It has the values by metric, of those that apply to the item."""
    error_code: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluationPage:
    """Rows, newest first."""

    items: tuple[Evaluation, ...]
    next_cursor: str | None


def digest_of_items(items: Sequence[EvaluationItem]) -> str:
    """SHA-256 of the items in order, in hex."""
    rows = [item.model_dump(mode="json", exclude_none=True) for item in items]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
