"""Bodies of the admin plane: parsed and bounded here, trusted inside."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amalgam.domain.adapter import NAME_PATTERN, Adapter, AdapterVersion
from amalgam.domain.job import Job
from amalgam.domain.recipe import Recipe

_NAME = Field(max_length=128, pattern=rf"^{NAME_PATTERN}$", description="adapter name", examples=["sql"])


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceBody(_Body):
    """Register or validate an adapter from a configured source."""

    name: str = Field(default="unnamed", max_length=256, description="adapter name", examples=["sql"])
    source: str = Field(max_length=4096, description="where the folder lies", examples=["file:///srv/adapters/sql"])
    description: str | None = Field(default=None, max_length=4096)
    set_default: bool = True
    if_absent: bool = Field(default=False, description="refuse where the adapter exists")


class PatchBody(_Body):
    """Change an adapter's pointer or its description."""

    default_version: int | None = Field(default=None, ge=1)
    description: str | None = Field(default=None, max_length=4096)


class VersionBody(_Body):
    """Which version to load, unload or pin; the default one where it is left out."""

    version: int | None = Field(default=None, ge=1)


class MergeBody(_Body):
    """A merge: its name, and a recipe or an expression."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"name": "sql-json", "expression": "sql + 0.5*json"}]},
    )

    name: str = _NAME
    expression: str | None = Field(default=None, max_length=4096, examples=["sql + 0.5*json"])
    recipe: Recipe | None = None
    set_default: bool = True

    @model_validator(mode="after")
    def _one_of(self) -> "MergeBody":
        if (self.expression is None) == (self.recipe is None):
            raise ValueError("give either expression or recipe")
        return self


class VersionView(BaseModel):
    """A version as the API shows it: without the engine's id, and without the store's paths."""

    name: str
    version: int
    model: str = Field(description="what to put into a request's model for exactly this version")
    digest: str
    rank: int
    size_bytes: int
    module_count: int
    source: str
    created_at: str
    recipe_digest: str | None
    lineage: dict[str, Any] | None
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, version: AdapterVersion) -> "VersionView":
        """The view of ``version``."""
        return cls(
            name=version.name,
            version=version.number,
            model=str(version.ref),
            created_at=version.created_at.isoformat(),
            **version.model_dump(
                include={
                    "digest",
                    "rank",
                    "size_bytes",
                    "module_count",
                    "source",
                    "recipe_digest",
                    "lineage",
                    "warnings",
                }
            ),
        )


class AdapterView(BaseModel):
    """An adapter and its live versions."""

    name: str
    default_version: int | None
    description: str
    created_at: str
    versions: tuple[VersionView, ...]

    @classmethod
    def of(cls, adapter: Adapter) -> "AdapterView":
        """The view of ``adapter``."""
        return cls(
            name=adapter.name,
            default_version=adapter.default_version,
            description=adapter.description,
            created_at=adapter.created_at.isoformat(),
            versions=tuple(VersionView.of(version) for version in adapter.versions),
        )


class JobView(BaseModel):
    """A job as the API shows it."""

    id: str
    kind: str
    name: str
    state: str
    recipe: dict[str, Any]
    recipe_digest: str
    progress: dict[str, Any] | None
    error: dict[str, Any] | None
    version: str | None = Field(description="what it made, as name@number")
    timings_s: dict[str, float]
    attempts: int
    created_at: str
    updated_at: str

    @classmethod
    def of(cls, job: Job) -> "JobView":
        """The view of ``job``."""
        return cls(
            version=f"{job.name}@{job.version_number}" if job.version_number is not None else None,
            error=job.error.model_dump() if job.error is not None else None,
            timings_s=dict(job.timings),
            created_at=job.created_at.isoformat(),
            updated_at=job.updated_at.isoformat(),
            **job.model_dump(
                include={"id", "kind", "name", "state", "recipe", "recipe_digest", "progress", "attempts"}
            ),
        )
