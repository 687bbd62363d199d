"""Bodies of the admin plane: parsed and bounded here, trusted inside."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from amalgam.domain.adapter import MAX_VERSION, NAME_PATTERN, Adapter, AdapterVersion
from amalgam.domain.expression import parse_expression
from amalgam.domain.job import Job
from amalgam.domain.recipe import Recipe

_NO_NUL = r"^[^\x00]*$"
"""No database and no file system takes a NUL."""
_NAME = Field(max_length=128, pattern=rf"^{NAME_PATTERN}$", description="adapter name", examples=["sql"])


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceBody(_Body):
    """Register or validate an adapter from a configured source."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"name": "sql", "source": "file:///srv/adapters/sql"}]},
    )

    name: str = Field(default="unnamed", max_length=256, description="adapter name", examples=["sql"])
    source: str = Field(
        max_length=4096, pattern=_NO_NUL, description="where the folder lies", examples=["file:///srv/adapters/sql"]
    )
    description: str | None = Field(default=None, max_length=4096, pattern=_NO_NUL)
    set_default: bool = True
    if_absent: bool = Field(default=False, description="refuse where the adapter exists")


class PatchBody(_Body):
    """Change an adapter's pointer or its description."""

    default_version: int | None = Field(default=None, ge=1, le=MAX_VERSION, examples=[1])
    description: str | None = Field(default=None, max_length=4096, pattern=_NO_NUL, examples=["questions to SQL"])


class VersionBody(_Body):
    """Which version to load, unload or pin; the default one where it is left out."""

    version: int | None = Field(default=None, ge=1, le=MAX_VERSION, examples=[1])


class RecipeBody(_Body):
    """What is to be computed: a recipe or an expression, and not both."""

    expression: str | None = Field(default=None, max_length=4096, examples=["sql + 0.5*json"])
    recipe: Recipe | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.expression is None) == (self.recipe is None):
            raise ValueError("give either expression or recipe")
        return self

    def described(self) -> Recipe:
        """The recipe, however it was written.

        Raises:
            InvalidExpression: names the column.
        """
        if self.recipe is not None:
            return self.recipe
        assert self.expression is not None
        return parse_expression(self.expression)


class MergeBody(RecipeBody):
    """A merge: its name, and a recipe or an expression."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"name": "sql-json", "expression": "sql + 0.5*json"},
                {
                    "name": "sql-json",
                    "recipe": {
                        "method": "task_arithmetic",
                        "inputs": [{"adapter": "sql@1", "weight": 1.0}, {"adapter": "json", "weight": 0.5}],
                        "output": {"rank": 16},
                    },
                },
            ]
        },
    )

    name: str = _NAME
    set_default: bool = True


class VersionView(BaseModel):
    """A version as the API shows it: without the engine's id, and without the store's paths."""

    name: str = Field(examples=["sql"])
    version: int = Field(examples=[1])
    model: str = Field(description="what to put into a request's model for exactly this version", examples=["sql@1"])
    digest: str = Field(description="SHA-256 of config and weights, in hex", examples=["9c56cc51b374…"])
    rank: int = Field(description="largest rank of its modules", examples=[8])
    size_bytes: int = Field(examples=[4902000])
    module_count: int = Field(examples=[210])
    source: str = Field(description="upload | file | merge", examples=["upload"])
    created_at: str = Field(examples=["2030-01-31T12:00:00+00:00"])
    recipe_digest: str | None = Field(description="of a merge: what was built", examples=[None])
    lineage: dict[str, Any] | None = Field(description="of a merge: recipe, inputs, versions", examples=[None])
    warnings: tuple[str, ...] = Field(examples=[[]])

    @classmethod
    def of(cls, version: AdapterVersion) -> "VersionView":
        """The view of ``version``."""
        return cls(
            name=version.name,
            version=version.number,
            model=str(version.ref),
            digest=version.digest,
            rank=version.rank,
            size_bytes=version.size_bytes,
            module_count=version.module_count,
            source=version.source,
            created_at=version.created_at.isoformat(),
            recipe_digest=version.recipe_digest,
            lineage=version.lineage,
            warnings=version.warnings,
        )


class AdapterView(BaseModel):
    """An adapter and its live versions."""

    name: str = Field(examples=["sql"])
    default_version: int | None = Field(description="what the bare name means", examples=[1])
    description: str = Field(examples=["questions to SQL"])
    created_at: str = Field(examples=["2030-01-31T12:00:00+00:00"])
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

    id: str = Field(examples=["job-8f14e45fceea4e6f9d5c1f6a2b7c3d90"])
    kind: str = Field(description="merge | export", examples=["merge"])
    name: str = Field(
        description="adapter that the result becomes a version of; of an export: its folder", examples=["sql-json"]
    )
    state: str = Field(description="queued | running | built | published | failed | cancelled", examples=["published"])
    recipe: dict[str, Any] = Field(
        description="completed, inputs pinned; of an export: within what else was asked for",
        examples=[{"method": "task_arithmetic", "inputs": [{"adapter": "sql@1"}, {"adapter": "json@1"}]}],
    )
    recipe_digest: str = Field(examples=["5b0c…"])
    progress: dict[str, Any] | None = Field(
        description="in modules; of an export: tensors", examples=[{"modules_done": 210, "modules_total": 210}]
    )
    error: dict[str, Any] | None = Field(description="code, status and message of a failed job", examples=[None])
    version: str | None = Field(description="what it made, as name@number", examples=["sql-json@1"])
    timings_s: dict[str, float] = Field(description="seconds by step", examples=[{"merge": 0.41, "probe": 0.05}])
    attempts: int = Field(examples=[1])
    created_at: str = Field(examples=["2030-01-31T12:00:00+00:00"])
    updated_at: str = Field(examples=["2030-01-31T12:00:02+00:00"])

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
