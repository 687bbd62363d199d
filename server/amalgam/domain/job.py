"""Jobs: one run of a recipe, and the few ways its state may change.

    queued ──> running ──> built ──> published        (an export is published as it is built)
      ^  │       │  │        └─────> failed
      │  │       │  ├──────────────> failed
      │  │       │  └──────────────> cancelled
      │  └───────┼─────────────────> cancelled, failed
      └──────────┘ released by a worker that stops

A running job whose lease ran out is claimed again: running -> running, under the next fencing token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.adapter import AdapterVersion
from amalgam.errors.jobs import JobStateConflict

JobState = Literal["queued", "running", "built", "published", "failed", "cancelled"]

JOB_KINDS: Final = ("merge", "export")

TRANSITIONS: Final[Mapping[JobState, frozenset[JobState]]] = {
    "queued": frozenset({"running", "cancelled", "failed"}),
    "running": frozenset({"running", "queued", "built", "failed", "cancelled"}),
    "built": frozenset({"published", "failed"}),
    "published": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

LIVE_STATES: Final[tuple[JobState, ...]] = tuple(state for state, after in TRANSITIONS.items() if after)
"""States that may still change: a second submission of the same recipe joins such a job."""

FINAL_STATES: Final[tuple[JobState, ...]] = tuple(state for state, after in TRANSITIONS.items() if not after)


def check_transition(job_id: str, current: JobState, wanted: JobState) -> None:
    """Let ``current -> wanted`` pass.

    Raises:
        JobStateConflict: `TRANSITIONS` has no such step.
    """
    if wanted not in TRANSITIONS[current]:
        raise JobStateConflict(job_id, current, wanted)


class JobError(BaseModel):
    """Why a job failed: the values of the error that ended it."""

    model_config = ConfigDict(frozen=True)

    code: str
    status: int = Field(ge=400, le=599, description="HTTP status the same error would have had in a request")
    message: str


class Job(BaseModel):
    """A row of the job table."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str = Field(description="what kind of work: merge | export; see `JOB_KINDS`")
    name: str = Field(description="adapter that the result becomes a version of, or folder that it becomes")
    recipe: dict[str, Any] = Field(description="the frozen recipe, inputs pinned; of an export its spec")
    recipe_digest: str
    set_default: bool = Field(description="whether publishing moves the default version to the result")
    state: JobState
    attempts: int = Field(description="how often a worker has started it")
    worker: str | None = Field(default=None, description="who holds, or last held, the lease")
    fencing_token: int = Field(description="grows with every claim; writes under an older one are refused")
    lease_expires_at: datetime | None = None
    progress: dict[str, Any] | None = None
    error: JobError | None = None
    version_id: int | None = Field(default=None, description="id of the built version")
    version_number: int | None = Field(default=None, description="number of the built version")
    timings: dict[str, float] = Field(default_factory=dict, description="seconds by step")
    created_at: datetime
    updated_at: datetime

    @property
    def is_live(self) -> bool:
        """Whether its state may still change."""
        return self.state in LIVE_STATES


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a running job is."""

    attempt: int
    """Which of the job's starts this is of, from 1."""
    modules_done: int
    modules_total: int
    """0 until the work is laid out."""

    @classmethod
    def of(cls, job: Job) -> "JobProgress":
        """What the job's row says."""
        known = job.progress or {}
        return cls(job.attempts, int(known.get("modules_done", 0)), int(known.get("modules_total", 0)))


@dataclass(frozen=True, slots=True)
class JobNews:
    """A worker's word that a job's row changed."""

    job_id: str
    kind: str
    state: str
    timings: Mapping[str, float]
    """Seconds by step, where the worker itself came to the result."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a caller asks for."""

    kind: str
    name: str
    recipe: Mapping[str, Any]
    recipe_digest: str
    set_default: bool = True
    input_digests: tuple[str, ...] = ()
    """Digests of the stored inputs; their files are kept while the job is live."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What came of a request: exactly one of ``job`` and ``version`` is there."""

    job: Job | None
    """The job that will build it: a new one, or the live one of the same name and recipe."""
    version: AdapterVersion | None
    """The live version that this very recipe made under this name."""
    created: bool
    """Whether a new job was queued."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page of jobs, newest first."""

    items: tuple[Job, ...]
    next_cursor: str | None
