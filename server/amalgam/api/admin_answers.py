"""What the admin plane answers beside adapters, versions and jobs; examples for the API's document."""

from dataclasses import asdict
from typing import Any, Final

from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from amalgam.api.admin_models import AdapterView, JobView
from amalgam.domain.diagnostics import MergeForecast
from amalgam.engine.protocol import EngineInfo
from amalgam.errors.findings import Finding
from amalgam.merge.plan import MergePlan
from amalgam.services.adapters import Report

ADMIN_KEY: Final = HTTPBearer(
    auto_error=False,
    scheme_name="adminKey",
    description="AMALGAM_ADMIN_KEY. Checked before any route is matched; without keys the server is on loopback only.",
)
"""Describes the key in the API's document. The door itself is `amalgam.api.auth.AuthMiddleware`."""


class ReportView(BaseModel):
    """What a check of an adapter found."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "valid": False,
                    "rank": 64,
                    "module_count": 210,
                    "size_bytes": 39059456,
                    "findings": [
                        {
                            "code": "rank_too_large",
                            "severity": "error",
                            "message": "The adapter has rank 64; this server allows 32 (AMALGAM_MAX_LORA_RANK).",
                            "module": None,
                        }
                    ],
                }
            ]
        }
    )

    valid: bool = Field(description="whether an upload of the same files would be taken")
    rank: int
    module_count: int
    size_bytes: int
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, report: Report) -> "ReportView":
        """The view of ``report``."""
        return cls(
            valid=report.valid,
            rank=report.rank,
            module_count=report.module_count,
            size_bytes=report.size_bytes,
            findings=report.findings,
        )


class DeletedView(BaseModel):
    """The versions that no new request can reach any more."""

    deleted: tuple[str, ...] = Field(examples=[["sql@1", "sql@2"]])


class VerifiedView(BaseModel):
    """Which versions' stored files are the bytes that were published."""

    versions: dict[str, bool] = Field(description="by name@number", examples=[{"sql@1": True}])


class AdapterPageView(BaseModel):
    """One page of adapters, by name."""

    data: tuple[AdapterView, ...]
    next_cursor: str | None = Field(description="pass it back as cursor for the next page; null on the last")


class JobPageView(BaseModel):
    """One page of jobs, newest first."""

    data: tuple[JobView, ...]
    next_cursor: str | None = Field(description="pass it back as cursor for the next page; null on the last")


class JobAccepted(BaseModel):
    """The job that will make the version; its place is also in the header Location."""

    job: JobView


class PlanView(BaseModel):
    """What a merge would do."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "recipe": {"method": "task_arithmetic", "inputs": [{"adapter": "sql@1"}, {"adapter": "json@1"}]},
                    "recipe_digest": "5b0c…",
                    "space": "concat",
                    "rank": 16,
                    "modules": 210,
                    "partial_modules": {},
                    "input_bytes": 19529728,
                    "output_bytes": 9764864,
                    "warnings": [],
                    "forecast": {
                        "is_complete": True,
                        "modules_seen": 210,
                        "memory_bytes": 46000000,
                        "compute_s": 0.7,
                        "energy_kept": 1.0,
                        "overall": {"inputs": ["sql@1", "json@1"], "retention": [1.01, 0.52]},
                        "modules": [],
                    },
                }
            ]
        }
    )

    recipe: dict[str, Any] = Field(description="completed, and pinned to exact versions")
    recipe_digest: str = Field(description="names the result: the same recipe is built once")
    space: str
    rank: int = Field(description="largest rank of the result; an upper bound where the recipe asks for energy")
    modules: int
    partial_modules: dict[str, tuple[str, ...]] = Field(description="module to the inputs that do not adapt it")
    input_bytes: int
    output_bytes: int
    warnings: tuple[str, ...]
    forecast: MergeForecast | None = Field(description="memory, time and diagnostics; null with diagnostics=false")

    @classmethod
    def of(cls, plan: MergePlan, forecast: MergeForecast | None) -> "PlanView":
        """The view of ``plan``."""
        return cls(
            recipe=plan.recipe.model_dump(mode="json"),
            recipe_digest=plan.recipe.digest(),
            space=plan.space,
            rank=plan.rank,
            modules=len(plan.modules),
            partial_modules=dict(plan.partial),
            input_bytes=plan.input_bytes,
            output_bytes=plan.output_bytes,
            warnings=plan.warnings,
            forecast=forecast,
        )


class ResidentView(BaseModel):
    """One version in the engine's memory."""

    model: str = Field(examples=["sql@1"])
    held: int = Field(description="requests that use it right now")
    pinned: bool
    load_s: float = Field(description="seconds its load took")


class EngineView(BaseModel):
    """State, slots and residents of the engine, and whether the merge process runs."""

    model_config = ConfigDict(extra="allow")

    state: str = Field(description="starting | ready | dead | hung | restarting | stopped", examples=["ready"])
    served_name: str = Field(examples=["smollm2"])
    slots: int = Field(description="different adapters in one batch", examples=[4])
    capacity: int = Field(description="adapters kept in memory", examples=[64])
    max_rank: int = Field(examples=[32])
    restarts: int = Field(examples=[0])
    residents: tuple[ResidentView, ...]
    startup_s: dict[str, float] = Field(examples=[{"import": 9.1, "load": 14.0, "handlers": 2.2}])
    base_fingerprint: str
    worker_alive: bool

    @classmethod
    def of(cls, info: EngineInfo, base_fingerprint: str, *, worker_alive: bool) -> "EngineView":
        """The view of ``info``, without the engine's own ids."""
        shown = asdict(info)
        for resident in shown["residents"]:
            resident["model"] = resident.pop("engine_name")
            del resident["lora_id"]
        return cls.model_validate(shown | {"base_fingerprint": base_fingerprint, "worker_alive": worker_alive})
