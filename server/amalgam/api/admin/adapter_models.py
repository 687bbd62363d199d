"""Bodies and answers of adapters on the admin plane: parsed and bounded here, trusted inside."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from amalgam.api.admin.kit import NO_NUL, Body, Page, Timestamp
from amalgam.domain.adapter import MAX_VERSION, Adapter, AdapterVersion, VersionSource
from amalgam.domain.in_scope import redacted
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.errors.findings import Finding
from amalgam.services.new_versions import Report


class SourceBody(Body):
    """Validate an adapter from a configured source."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"name": "sql", "source": "file:///srv/adapters/sql"}]},
    )

    name: str | None = Field(default=None, max_length=256, description="adapter name", examples=["sql"])
    source: str = Field(
        max_length=4096, pattern=NO_NUL, description="where the folder lies", examples=["file:///srv/adapters/sql"]
    )
    description: str | None = Field(default=None, max_length=4096, pattern=NO_NUL)
    set_default: bool = True
    if_absent: bool = Field(default=False, description="refuse where the adapter exists")
    use_profile: bool = Field(
        default=False, description="whether requests get the serving profile that the folder brings"
    )


class RegisterBody(SourceBody):
    """Register an adapter from a configured source; it has no name but the one that is given here."""

    name: str = Field(min_length=1, max_length=256, description="adapter name", examples=["sql"])


class PatchBody(Body):
    """Change an adapter's pointer or its description."""

    default_version: int | None = Field(default=None, ge=1, le=MAX_VERSION, examples=[1])
    description: str | None = Field(default=None, max_length=4096, pattern=NO_NUL, examples=["questions to SQL"])


class VersionBody(Body):
    """Which version to load, unload or pin; the default one where it is left out."""

    version: int | None = Field(default=None, ge=1, le=MAX_VERSION, examples=[1])


class VersionView(BaseModel):
    """A version as the API shows it: without the engine's id, and without the store's paths."""

    name: str = Field(examples=["sql"])
    version: int = Field(examples=[1])
    model: str = Field(description="what to put into a request's model for exactly this version", examples=["sql@1"])
    digest: str = Field(description="SHA-256 of config and weights, in hex", examples=["9c56cc51b374…"])
    rank: int = Field(description="largest rank of its modules", examples=[8])
    size_bytes: int = Field(examples=[4902000])
    module_count: int = Field(examples=[210])
    source: VersionSource = Field(examples=["upload"])
    created_at: Timestamp
    recipe_digest: str | None = Field(description="digest of what a merge built", examples=[None])
    lineage: dict[str, Any] | None = Field(description="recipe, inputs and versions of a merge", examples=[None])
    warnings: tuple[str, ...] = Field(examples=[[]])

    @classmethod
    def of(cls, version: AdapterVersion, scopes: Scopes = EVERYTHING) -> "VersionView":
        """The view of ``version``, without what of its origin is out of scope."""
        return cls(
            name=version.name,
            version=version.number,
            model=str(version.ref),
            digest=version.digest,
            rank=version.rank,
            size_bytes=version.size_bytes,
            module_count=version.module_count,
            source=version.source,
            created_at=version.created_at,
            recipe_digest=version.recipe_digest,
            lineage=redacted(version.lineage, scopes),
            warnings=redacted(version.warnings, scopes),
        )


class AdapterView(BaseModel):
    """An adapter and its live versions."""

    name: str = Field(examples=["sql"])
    default_version: int | None = Field(description="what the bare name means", examples=[1])
    description: str = Field(examples=["questions to SQL"])
    created_at: Timestamp
    versions: tuple[VersionView, ...]

    @classmethod
    def of(cls, adapter: Adapter, scopes: Scopes = EVERYTHING) -> "AdapterView":
        """The view of ``adapter``, without what of its origin is out of scope."""
        return cls(
            name=adapter.name,
            default_version=adapter.default_version,
            description=adapter.description,
            created_at=adapter.created_at,
            versions=tuple(VersionView.of(version, scopes) for version in adapter.versions),
        )


class AdapterPageView(Page[AdapterView]):
    """One page of adapters, by name."""


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

    versions: dict[str, bool] = Field(
        description="whether each version, as name@number, is sound", examples=[{"sql@1": True}]
    )
