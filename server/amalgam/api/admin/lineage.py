"""Where versions come from: their lineage as a graph, and the proof of it, building one again."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from amalgam.api.admin.in_scope import scopes_of
from amalgam.api.admin.kit import PUBLISHES, READS, AdapterName, Timestamp, VersionNumber, admin_router
from amalgam.api.state import services
from amalgam.domain.adapter import VersionSource
from amalgam.domain.fit import FitRecord
from amalgam.domain.in_scope import redacted
from amalgam.domain.lineage import InputRole, KnownVersion, LineageGraph, Rebuilt
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.serving_profile import ProfileOrigin, VersionProfile
from amalgam.domain.skill_probe import KeptRecord


class NodeProfileView(BaseModel):
    """How a version wants to be asked, by its digest; the profile's own route shows it with its history."""

    revision: int = Field(description="counts the changes of this version's profile", examples=[1])
    digest: str | None = Field(description="SHA-256 of the profile, in hex; null once it was deleted", examples=["5b…"])
    active: bool = Field(description="whether requests get it", examples=[True])
    origin: ProfileOrigin = Field(examples=["api"])

    @classmethod
    def of(cls, state: VersionProfile) -> "NodeProfileView":
        """The view of ``state``."""
        digest = None if state.profile is None else state.profile.digest()
        return cls(digest=digest, **state.model_dump(include={"revision", "active", "origin"}))


class NodeView(BaseModel):
    """One version of a lineage."""

    model: str = Field(examples=["sql-json@1"])
    name: str = Field(examples=["sql-json"])
    version: int = Field(examples=[1])
    digest: str = Field(examples=["9c56cc51b374…"])
    rank: int = Field(examples=[16])
    source: VersionSource = Field(examples=["merge"])
    recipe_digest: str | None = Field(examples=["5b0c…"])
    recipe: dict[str, Any] | None = Field(
        description="recipe of a merge, completed and pinned",
        examples=[{"method": "task_arithmetic", "space": "concat"}],
    )
    kept: KeptRecord | None = Field(
        default=None, description="what a merge that was measured keeps of its inputs", examples=[None]
    )
    fit: FitRecord | None = Field(
        default=None, description="how a merge was fitted to prompts, and what came of it", examples=[None]
    )
    deleted: bool = Field(description="whether it can no longer be asked for; its files may be gone", examples=[False])
    created_at: Timestamp
    profile: NodeProfileView | None = Field(default=None, description="its serving profile, where it ever had one")

    @classmethod
    def of(cls, known: KnownVersion, state: VersionProfile | None = None, scopes: Scopes = EVERYTHING) -> "NodeView":
        """The view of ``known``, whose profile is ``state``, without what went in and is out of scope."""
        version = known.version
        return cls(
            model=str(version.ref),
            name=version.name,
            version=version.number,
            recipe=redacted((version.lineage or {}).get("recipe"), scopes),
            kept=redacted((version.lineage or {}).get("kept"), scopes),
            fit=redacted((version.lineage or {}).get("fit"), scopes),
            deleted=known.is_deleted,
            created_at=version.created_at,
            profile=None if state is None else NodeProfileView.of(state),
            **version.model_dump(include={"digest", "rank", "source", "recipe_digest"}),
        )


class EdgeView(BaseModel):
    """What went into what."""

    input: str = Field(examples=["sql@1"])
    output: str = Field(examples=["sql-json@1"])
    weight: Any = Field(description="number, gradient over depth, or filters, as in a recipe", examples=[1.0])
    role: InputRole = Field(examples=["input"])


class LineageView(BaseModel):
    """A version and everything that went into it, merges of merges included."""

    root: str = Field(examples=["sql-json@1"])
    nodes: tuple[NodeView, ...] = Field(description="versions from the root on")
    edges: tuple[EdgeView, ...]
    truncated: bool = Field(description="whether there is more than was followed", examples=[False])

    @classmethod
    def of(cls, graph: LineageGraph, scopes: Scopes = EVERYTHING) -> "LineageView":
        """The view of ``graph``; of inputs that are out of scope it says only that there are some."""
        edges = tuple(
            EdgeView(input=redacted(edge.input, scopes), output=edge.output, weight=edge.weight, role=edge.role)
            for edge in graph.edges
            if scopes.version(edge.output)
        )
        shown = [node for node in graph.nodes if scopes.version(node.version.ref)]
        nodes = tuple(NodeView.of(node, graph.profiles.get(node.version.id), scopes) for node in shown)
        return cls(root=graph.root, nodes=nodes, edges=edges, truncated=graph.is_cut)


class RebuiltView(BaseModel):
    """What came of building a version again; nothing of it is kept."""

    model: str = Field(examples=["sql-json@1"])
    identical: bool = Field(description="whether config and weights came out as the same bytes", examples=[True])
    digest: str = Field(description="digest of the version", examples=["9c56cc51b374…"])
    rebuilt_digest: str = Field(description="digest of what was built now", examples=["9c56cc51b374…"])
    seconds: float = Field(examples=[0.8])
    built_with: dict[str, Any] = Field(
        description="device, backend and versions of the first build; another of these may round otherwise",
        examples=[{"device": "cpu", "backend": "torch", "torch": "2.13.0"}],
    )

    @classmethod
    def of(cls, rebuilt: Rebuilt) -> "RebuiltView":
        """The view of ``rebuilt``."""
        version = rebuilt.version
        lineage = version.lineage or {}
        return cls(
            model=str(version.ref),
            identical=rebuilt.digest == version.digest,
            digest=version.digest,
            rebuilt_digest=rebuilt.digest,
            seconds=rebuilt.seconds,
            built_with=lineage.get("computed_on", {}) | lineage.get("versions", {}),
        )


def router() -> APIRouter:
    """The routes of lineages."""
    routes = admin_router("Merges")

    @routes.get(
        "/adapters/{name}/versions/{number}/lineage",
        dependencies=READS,
        summary="What a version was made from, as a graph",
    )
    async def lineage(request: Request, name: AdapterName, number: VersionNumber) -> LineageView:
        return LineageView.of(await services(request).lineage.graph(name, number), scopes_of(request))

    @routes.post(
        "/adapters/{name}/versions/{number}:rebuild",
        dependencies=PUBLISHES,
        summary="Build it again from its lineage and compare",
    )
    async def rebuild(request: Request, name: AdapterName, number: VersionNumber) -> RebuiltView:
        return RebuiltView.of(await services(request).lineage.rebuild(name, number))

    return routes
