"""Batches: a file of requests that are answered while there is capacity to spare, and what came of them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
LIVE: Final[tuple[BatchStatus, ...]] = ("validating", "in_progress", "finalizing", "cancelling")
CANCELLABLE: Final[tuple[BatchStatus, ...]] = ("validating", "in_progress")
WINDOW_S: Final = 86_400
"""This is the only completion window there is: 24h."""
MAX_LIVE: Final = 100
"""One tenant has at most so many batches that have not ended."""
MAX_ATTEMPTS: Final = 5
"""A batch whose server dies is taken over; one that so many servers died at ends with what it has."""
MAX_PROBLEMS: Final = 100
"""A batch that failed has at most so many; they are in its row."""
MAX_CUSTOM_ID: Final = 512
BATCH_ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


class Batch(BaseModel):
    """A row.

    Attributes:
        scopes: digest of the scopes of the key that created it.
        client: the word for that key.
        total: lines of the file, as far as it has been read.
        completed: lines that were answered.
        failed: lines that were refused.
        errors: why it failed as a whole: code, message, param, line.
        runs: how often a server has begun; each writes answers of its own.
        attempts: how many of them have not said how it ended.
        output_kept_s: its output files are kept for so long.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str
    key_id: str
    client: str
    scopes: str
    endpoint: str
    input_file: str
    metadata: Mapping[str, str] | None = None
    status: BatchStatus
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: tuple[Mapping[str, Any], ...] | None = None
    output_file: str | None = None
    error_file: str | None = None
    output_kept_s: int
    runs: int = 0
    attempts: int = 0
    created_at: datetime
    expires_at: datetime
    in_progress_at: datetime | None = None
    finalizing_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    expired_at: datetime | None = None
    cancelling_at: datetime | None = None
    cancelled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class BatchDraft:
    """What is to be queued."""

    endpoint: str
    input_file: str
    output_kept_s: int
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class BatchPage:
    """One page of batches."""

    items: tuple[Batch, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Tally:
    """Lines of a batch, as they stand."""

    total: int
    completed: int
    failed: int


def answer_id(batch_id: str, line: int) -> str:
    """The id of the answer to a line: the same whichever server answers."""
    return f"batch_req_{hashlib.sha256(f'{batch_id}:{line}'.encode()).hexdigest()[:32]}"
