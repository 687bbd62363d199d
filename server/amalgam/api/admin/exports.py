"""Exports on the admin plane: base model + adapter as a checkpoint folder of the server's machine."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from amalgam.api.admin.in_scope import export_covered, scopes_of
from amalgam.api.admin.job_answers import MAX_WAIT_S, job_or_result, note_job
from amalgam.api.admin.job_models import JobAccepted
from amalgam.api.admin.kit import ADMINISTERS, READS, WHOLE_NAME, admin_router
from amalgam.api.admin.merge_models import RecipeBody
from amalgam.api.state import services
from amalgam.domain.export import ExportAdded, ExportBase, ExportDtype, ExportInput, ExportRecord, MaxShardBytes
from amalgam.domain.job import Job

_Name = Annotated[str, Path(pattern=WHOLE_NAME, description="export's folder", examples=["smollm2-sql"])]


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

    name: str = Field(max_length=128, pattern=WHOLE_NAME, description="folder", examples=["smollm2-sql"])
    dtype: ExportDtype = Field(default="base", description="type of the checkpoint; base: as the base model is stored")
    max_shard_bytes: MaxShardBytes = Field(default=5_000_000_000, description="most bytes of tensors in one file")
    dequantize: bool = Field(default=False, description="write the base model's quantised weights unpacked, as floats")


class ExportView(BaseModel):
    """An export as the API shows it: its record, without the server's paths."""

    name: str = Field(description="folder below AMALGAM_EXPORT_ROOT", examples=["smollm2-sql"])
    dtype: ExportDtype = Field(examples=["base"])
    dequantized: bool = Field(
        default=False, description="whether quantised weights of the base model were unpacked", examples=[False]
    )
    recipe: dict[str, Any] = Field(description="completed and pinned", examples=[{"inputs": [{"adapter": "sql@1"}]}])
    recipe_digest: str = Field(examples=["5b0c…"])
    inputs: dict[str, ExportInput] = Field(
        description="digests, and recipes of merges", examples=[{"sql@1": {"digest": "9c…"}}]
    )
    added: ExportAdded | None = Field(
        description="ranks of what was added, and what of it was cut", examples=[{"rank": 32, "exact_rank": 32}]
    )
    base: ExportBase = Field(description="what was added to", examples=[{"fingerprint": "77…", "record": None}])
    fingerprint: str = Field(
        description="fingerprint of architecture and shapes, as adapters are matched by", examples=["77…"]
    )
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


class ExportAccepted(JobAccepted):
    """The job that will write the export, and what is known of the result before it is computed."""

    rank: int = Field(description="largest rank over the modules that will be added", examples=[32])
    exact_rank: int = Field(description="largest rank that there would be if nothing were cut", examples=[32])
    warnings: tuple[str, ...] = Field(description="what is to be known of it, in sentences", examples=[()])


class ExportListView(BaseModel):
    """Every export of this server, by name."""

    data: tuple[ExportView, ...]


_SUBMITTED: dict[int | str, dict[str, Any]] = {
    200: {"model": ExportView, "description": "This very export was there before; nothing is new"},
    201: {"model": ExportView, "description": "Written within wait_s"},
    202: {"model": ExportAccepted, "description": "Queued, or being written"},
}


def router() -> APIRouter:
    """The routes of exports."""
    routes = admin_router("Exports")
    _add_writing(routes)
    _add_reading(routes)
    return routes


def _add_writing(routes: APIRouter) -> None:
    @routes.post(
        "/exports",
        dependencies=ADMINISTERS,
        status_code=202,
        summary="Write base model + adapter as a checkpoint",
        responses=_SUBMITTED,
    )
    async def create(
        request: Request,
        body: ExportBody,
        wait_s: float = Query(0.0, ge=0, le=MAX_WAIT_S, description="answer with the export if it is there in time"),
    ) -> JSONResponse:
        app_services = services(request)
        answer = await app_services.exports.submit(
            body.name,
            body.described(),
            dtype=body.dtype,
            max_shard_bytes=body.max_shard_bytes,
            dequantize=body.dequantize,
        )
        note_job(request, answer.job)
        record = ExportView.of(body.name, answer.record) if answer.record is not None else None

        async def finished(job: Job) -> ExportView:
            return ExportView.of(body.name, await app_services.exports.finished(job))

        plan = answer.plan
        known = {"rank": plan.rank, "exact_rank": plan.exact_rank, "warnings": plan.warnings}
        accepted = partial(ExportAccepted, **known)
        return await job_or_result(request, answer.job, record, wait_s, finished, accepted)


def _add_reading(routes: APIRouter) -> None:
    @routes.get("/exports", dependencies=READS, summary="List exports, by name")
    async def list_exports(request: Request) -> ExportListView:
        found, scopes = await services(request).exports.list(), scopes_of(request)
        shown = {name: record for name, record in found.items() if export_covered(name, record, scopes)}
        return ExportListView(data=tuple(ExportView.of(name, record) for name, record in shown.items()))

    @routes.get("/exports/{name}", dependencies=READS, summary="One export and where it comes from")
    async def show(request: Request, name: _Name) -> ExportView:
        return ExportView.of(name, await services(request).exports.get(name))
