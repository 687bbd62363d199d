"""Where versions come from: their lineage as a graph, and the proof of it, building one again."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, Field

from amalgam.api.admin_answers import ADMIN_KEY
from amalgam.api.error_document import ERRORS
from amalgam.api.state import services
from amalgam.api.strict_json import StrictRoute
from amalgam.domain.adapter import MAX_VERSION, NAME_PATTERN
from amalgam.domain.lineage import KnownVersion, LineageGraph, Rebuilt

_Name = Annotated[str, Path(pattern=f"^{NAME_PATTERN}$", description="adapter name", examples=["sql-json"])]
_Number = Annotated[int, Path(ge=1, le=MAX_VERSION, description="version", examples=[1])]


class NodeView(BaseModel):
    """One version of a lineage."""

    model: str = Field(examples=["sql-json@1"])
    name: str = Field(examples=["sql-json"])
    version: int = Field(examples=[1])
    digest: str = Field(examples=["9c56cc51b374…"])
    rank: int = Field(examples=[16])
    source: str = Field(description="upload | file | merge", examples=["merge"])
    recipe_digest: str | None = Field(examples=["5b0c…"])
    recipe: dict[str, Any] | None = Field(
        description="of a merge, completed and pinned", examples=[{"method": "task_arithmetic", "space": "concat"}]
    )
    deleted: bool = Field(description="whether it can no longer be asked for; its files may be gone", examples=[False])
    created_at: str = Field(examples=["2030-01-31T12:00:00+00:00"])

    @classmethod
    def of(cls, known: KnownVersion) -> "NodeView":
        """The view of ``known``."""
        version = known.version
        return cls(
            model=str(version.ref),
            name=version.name,
            version=version.number,
            recipe=(version.lineage or {}).get("recipe"),
            deleted=known.is_deleted,
            created_at=version.created_at.isoformat(),
            **version.model_dump(include={"digest", "rank", "source", "recipe_digest"}),
        )


class EdgeView(BaseModel):
    """What went into what."""

    input: str = Field(examples=["sql@1"])
    output: str = Field(examples=["sql-json@1"])
    weight: Any = Field(description="number, gradient over depth, or filters, as in a recipe", examples=[1.0])
    role: str = Field(description="input | orthogonalize_against", examples=["input"])


class LineageView(BaseModel):
    """A version and everything that went into it, merges of merges included."""

    root: str = Field(examples=["sql-json@1"])
    nodes: tuple[NodeView, ...] = Field(description="from the root on")
    edges: tuple[EdgeView, ...]
    truncated: bool = Field(description="whether there is more than was followed", examples=[False])

    @classmethod
    def of(cls, graph: LineageGraph) -> "LineageView":
        """The view of ``graph``."""
        edges = tuple(
            EdgeView(input=edge.input, output=edge.output, weight=edge.weight, role=edge.role) for edge in graph.edges
        )
        nodes = tuple(NodeView.of(node) for node in graph.nodes)
        return cls(root=graph.root, nodes=nodes, edges=edges, truncated=graph.is_cut)


class RebuiltView(BaseModel):
    """What came of building a version again; nothing of it is kept."""

    model: str = Field(examples=["sql-json@1"])
    identical: bool = Field(description="whether config and weights came out as the same bytes", examples=[True])
    digest: str = Field(description="of the version", examples=["9c56cc51b374…"])
    rebuilt_digest: str = Field(description="of what was built now", examples=["9c56cc51b374…"])
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
    routes = APIRouter(
        prefix="/admin/v1",
        tags=["Merges"],
        responses=ERRORS,
        dependencies=[Depends(ADMIN_KEY)],
        route_class=StrictRoute,
    )

    @routes.get("/adapters/{name}/versions/{number}/lineage", summary="What a version was made from, as a graph")
    async def lineage(request: Request, name: _Name, number: _Number) -> LineageView:
        return LineageView.of(await services(request).lineage.graph(name, number))

    @routes.post("/adapters/{name}/versions/{number}:rebuild", summary="Build it again from its lineage and compare")
    async def rebuild(request: Request, name: _Name, number: _Number) -> RebuiltView:
        return RebuiltView.of(await services(request).lineage.rebuild(name, number))

    return routes
