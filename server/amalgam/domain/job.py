"""Jobs: one run of a recipe, and the few ways its state may change.

    queued ──> running ──> built <──> publishing ──> published     (an export is published as it is built)
      ^  │       │  │        │            └────────> failed
      │  │       │  │        └─────────────────────> failed
      │  │       │  ├──────────────────────────────> failed
      │  │       │  └──────────────────────────────> cancelled
      │  └───────┼─────────────────────────────────> cancelled, failed
      └──────────┘ released by a worker that stops

A queued job whose weights are searched waits for the end of that, and workers pass it by. A running or publishing job
whose lease ran out is claimed again, under the next fencing token. A server that cannot publish now gives the job back:
publishing -> built.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.fit import FitRecord, ReadingFit
from amalgam.domain.skill_probe import SkillProbe
from amalgam.domain.stored_bytes import StoredBy
from amalgam.errors.jobs import JobStateConflict

JobState = Literal["queued", "running", "built", "publishing", "published", "failed", "cancelled"]

JobKind = Literal["merge", "export"]
JOB_KINDS: Final[tuple[JobKind, ...]] = ("merge", "export")

TRANSITIONS: Final[Mapping[JobState, frozenset[JobState]]] = {
    "queued": frozenset({"running", "cancelled", "failed"}),
    "running": frozenset({"running", "queued", "built", "failed", "cancelled"}),
    "built": frozenset({"publishing", "failed"}),
    "publishing": frozenset({"publishing", "built", "published", "failed"}),
    "published": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

LIVE_STATES: Final[tuple[JobState, ...]] = tuple(state for state, after in TRANSITIONS.items() if after)
"""These states may still change: a second submission of the same recipe joins such a job."""

FINAL_STATES: Final[tuple[JobState, ...]] = tuple(state for state, after in TRANSITIONS.items() if not after)


def check_transition(job_id: str, current: JobState, wanted: JobState) -> None:
    """Let ``current -> wanted`` pass.

    Raises:
        JobStateConflict: `TRANSITIONS` has no such step.
    """
    if wanted not in TRANSITIONS[current]:
        raise JobStateConflict(job_id, current, wanted)


class Job(BaseModel):
    """A row of the job table."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: JobKind
    name: str = Field(description="adapter that the result becomes a version of, or folder that it becomes")
    recipe: dict[str, Any] = Field(description="the frozen recipe, inputs pinned; of an export its spec")
    recipe_digest: str
    set_default: bool = Field(description="whether publishing moves the default version to the result")
    state: JobState
    attempts: int = Field(description="how often a worker has started it")
    worker: str | None = Field(default=None, description="worker or server that holds, or last held, the lease")
    fencing_token: int = Field(description="grows with every claim; writes under an older one are refused")
    lease_expires_at: datetime | None = None
    progress: dict[str, Any] | None = None
    error: ErrorReport | None = None
    version_id: int | None = Field(default=None, description="id of the built version")
    version_number: int | None = Field(default=None, description="number of the built version")
    timings: dict[str, float] = Field(default_factory=dict, description="seconds by step")
    probe: dict[str, Any] | None = Field(
        default=None, description="what a merge is asked; see `domain.skill_probe.SkillProbe`"
    )
    fit: dict[str, Any] | None = Field(default=None, description="how a merge is fitted; see `domain.fit.FitRecord`")
    reading: dict[str, Any] | None = Field(
        default=None, description="prompts that a merge is fitted to; see `domain.fit.ReadingFit`"
    )
    waits_for: str | None = Field(default=None, description="the sweep that searches its weights; it is queued so long")
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
    """The job's starts are counted from 1; this is the number of one."""
    modules_done: int
    modules_total: int
    """It is 0 until the work is laid out."""

    @classmethod
    def of(cls, job: Job) -> "JobProgress":
        """What the job's row says."""
        known = job.progress or {}
        return cls(job.attempts, int(known.get("modules_done", 0)), int(known.get("modules_total", 0)))


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a caller asks for."""

    kind: JobKind
    name: str
    recipe: Mapping[str, Any]
    recipe_digest: str
    set_default: bool = True
    input_digests: tuple[str, ...] = ()
    """They are the digests of the stored inputs; their files are kept while the job is live."""
    probe: SkillProbe | None = None
    """The result is asked this before it is published."""
    fit: FitRecord | None = None
    """It tells how the result is fitted. A search for weights has to end first."""
    reading: ReadingFit | None = None
    """The worker reads these prompts before it merges."""
    stored_by: StoredBy | None = None
    """The result counts as this one's bytes; None: the server's own."""
    output_bytes: int = 0
    """The result will have about as many."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What came of a request: exactly one of ``job`` and ``version`` is there."""

    job: Job | None
    """This job will build it: a new one, or the live one of the same name and recipe."""
    version: AdapterVersion | None
    """This very recipe made this live version under this name."""
    created: bool
    """It tells whether a new job was queued."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page of jobs, newest first."""

    items: tuple[Job, ...]
    next_cursor: str | None
