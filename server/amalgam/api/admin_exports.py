"""Exports on the admin plane: base model + adapter as a checkpoint folder of the server's machine."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from amalgam.api.admin_answers import ADMIN_KEY, JobAccepted
from amalgam.api.admin_models import JobView, RecipeBody
from amalgam.api.error_document import ERRORS
from amalgam.api.state import services
from amalgam.api.strict_json import StrictRoute
from amalgam.domain.adapter import NAME_PATTERN
from amalgam.domain.export import ExportDtype, ExportRecord, MaxShardBytes

_MAX_WAIT_S = 600.0
_Name = Annotated[str, Path(pattern=f"^{NAME_PATTERN}$", description="export's folder", examples=["smollm2-sql"])]


class ExportBody(RecipeBody):
    """An export: its folder's name, what is added to the base model, and how it is stored."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"name": "smollm2-sql", "expression": "sql@1"},
                {"name": "smollm2-mix", "expression": "sql + 0.5*json", "dtype": "float16"},
            ]
        },
    )

    name: str = Field(max_length=128, pattern=rf"^{NAME_PATTERN}$", description="folder", examples=["smollm2-sql"])
    dtype: ExportDtype = Field(default="base", description="of the checkpoint; base: as the base model is stored")
    max_shard_bytes: MaxShardBytes = Field(default=5_000_000_000, description="most bytes of tensors in one file")


class ExportView(BaseModel):
    """An export as the API shows it: its record, without the server's paths."""

    name: str = Field(description="folder below AMALGAM_EXPORT_ROOT", examples=["smollm2-sql"])
    dtype: str = Field(examples=["base"])
    recipe: dict[str, Any] = Field(description="completed and pinned", examples=[{"inputs": [{"adapter": "sql@1"}]}])
    recipe_digest: str = Field(examples=["5b0c…"])
    inputs: dict[str, Any] = Field(
        description="digests, and recipes of merges", examples=[{"sql@1": {"digest": "9c…"}}]
    )
    base: dict[str, Any] = Field(description="what was added to", examples=[{"fingerprint": "77…", "record": None}])
    fingerprint: str = Field(description="of architecture and shapes, as adapters are matched by", examples=["77…"])
    weights_digest: str = Field(description="SHA-256 over all tensors, however they are cut", examples=["0d…"])
    tensor_count: int = Field(examples=[272])
    changed_modules: int = Field(examples=[210])
    weight_bytes: int = Field(examples=[269030016])
    shard_count: int = Field(examples=[1])
    versions: dict[str, str] = Field(examples=[{"amalgam": "0.1.0", "torch": "2.13.0"}])

    @classmethod
    def of(cls, name: str, record: ExportRecord) -> "ExportView":
        """The view of ``record``."""
        return cls(name=name, **record.model_dump(mode="json", exclude={"format", "export_digest"}))


class ExportListView(BaseModel):
    """Every export of this server, by name."""

    data: tuple[ExportView, ...]


_SUBMITTED: dict[int | str, dict[str, Any]] = {
    200: {"model": ExportView, "description": "This very export was there before; nothing is new"},
    201: {"model": ExportView, "description": "Written within wait_s"},
    202: {"model": JobAccepted, "description": "Queued, or being written"},
}


def router() -> APIRouter:
    """The routes of exports."""
    routes = APIRouter(
        prefix="/admin/v1",
        tags=["Exports"],
        responses=ERRORS,
        dependencies=[Depends(ADMIN_KEY)],
        route_class=StrictRoute,
    )
    _add_writing(routes)
    _add_reading(routes)
    return routes


def _add_writing(routes: APIRouter) -> None:
    @routes.post(
        "/exports", status_code=202, summary="Write base model + adapter as a checkpoint", responses=_SUBMITTED
    )
    async def create(
        request: Request,
        body: ExportBody,
        wait_s: float = Query(0.0, ge=0, le=_MAX_WAIT_S, description="answer with the export if it is there in time"),
    ) -> JSONResponse:
        house = services(request)
        answer = await house.exports.submit(
            body.name, body.described(), dtype=body.dtype, max_shard_bytes=body.max_shard_bytes
        )
        record, job = answer.record, answer.job
        if job is not None and wait_s > 0:
            job = await house.merges.wait(job.id, wait_s)
            if not job.is_live:
                record = await house.exports.finished(job)
        if record is not None:
            return JSONResponse(ExportView.of(body.name, record).model_dump(), status_code=201 if job else 200)
        assert job is not None
        location = {"Location": f"/admin/v1/jobs/{job.id}"}
        return JSONResponse({"job": JobView.of(job).model_dump()}, status_code=202, headers=location)


def _add_reading(routes: APIRouter) -> None:
    @routes.get("/exports", summary="List exports, by name")
    async def list_exports(request: Request) -> ExportListView:
        found = await services(request).exports.list()
        return ExportListView(data=tuple(ExportView.of(name, record) for name, record in found.items()))

    @routes.get("/exports/{name}", summary="One export and where it comes from")
    async def show(request: Request, name: _Name) -> ExportView:
        return ExportView.of(name, await services(request).exports.get(name))
