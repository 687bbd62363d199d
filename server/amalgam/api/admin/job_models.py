"""Answers about jobs on the admin plane."""

from typing import Any

from pydantic import BaseModel, Field

from amalgam.api.admin.kit import Page, Timestamp
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.fit import FitRecord
from amalgam.domain.job import Job, JobKind, JobState


def _is_none(value: object) -> bool:
    return value is None


class JobErrorView(BaseModel):
    """Why a job failed."""

    code: str = Field(description="stable name, one of those in docs/errors.md", examples=["rank_too_large"])
    status: int = Field(description="HTTP status the same error would have had in a request", examples=[400])
    message: str
    param: str | None = Field(
        default=None, exclude_if=_is_none, description="the field at fault; not there where it is none"
    )

    @classmethod
    def of(cls, report: ErrorReport) -> "JobErrorView":
        """The view of ``report``."""
        return cls(code=report.code, status=report.status, message=report.message, param=report.param)


class JobView(BaseModel):
    """A job as the API shows it."""

    id: str = Field(examples=["job-8f14e45fceea4e6f9d5c1f6a2b7c3d90"])
    kind: JobKind = Field(examples=["merge"])
    name: str = Field(
        description="adapter that the result becomes a version of; of an export: its folder", examples=["sql-json"]
    )
    state: JobState = Field(examples=["published"])
    recipe: dict[str, Any] = Field(
        description="completed, inputs pinned; of an export: within what else was asked for",
        examples=[{"method": "task_arithmetic", "inputs": [{"adapter": "sql@1"}, {"adapter": "json@1"}]}],
    )
    recipe_digest: str = Field(examples=["5b0c…"])
    progress: dict[str, int] | None = Field(
        description="modules done and in all; of an export: tensors",
        examples=[{"modules_done": 210, "modules_total": 210}],
    )
    error: JobErrorView | None = Field(description="why it failed", examples=[None])
    version: str | None = Field(description="what it made, as name@number", examples=["sql-json@1"])
    timings_s: dict[str, float] = Field(description="seconds by step", examples=[{"merge": 0.41, "probe": 0.05}])
    fit: FitRecord | None = Field(
        default=None, description="the search for its weights; the job is queued until it has ended", examples=[None]
    )
    attempts: int = Field(examples=[1])
    created_at: Timestamp
    updated_at: Timestamp

    @classmethod
    def of(cls, job: Job) -> "JobView":
        """The view of ``job``."""
        return cls(
            version=f"{job.name}@{job.version_number}" if job.version_number is not None else None,
            error=JobErrorView.of(job.error) if job.error is not None else None,
            timings_s=dict(job.timings),
            **job.model_dump(
                include={
                    *("id", "kind", "name", "state", "recipe", "recipe_digest", "progress", "attempts", "fit"),
                    *("created_at", "updated_at"),
                }
            ),
        )


class JobPageView(Page[JobView]):
    """One page of jobs, newest first."""


class JobAccepted(BaseModel):
    """The job that will make the version; its place is also in the header Location."""

    job: JobView
