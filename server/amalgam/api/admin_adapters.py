"""Adapters on the admin plane: upload, validate, list, change, load, pin, delete."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from amalgam.api.admin_answers import ADMIN_KEY, AdapterPageView, DeletedView, ReportView, VerifiedView
from amalgam.api.admin_models import AdapterView, PatchBody, SourceBody, VersionBody, VersionView
from amalgam.api.error_document import ERRORS
from amalgam.api.errors import refused_field
from amalgam.api.idempotency import request_key
from amalgam.api.openai import read_json
from amalgam.api.state import services
from amalgam.api.strict_json import StrictRoute
from amalgam.api.upload_form import is_multipart, new_version, upload_form, uploaded_files
from amalgam.domain.adapter import MAX_VERSION, NAME_PATTERN
from amalgam.services.adapters import NewVersion

# What cannot be a name or a number is refused here: no database is asked for it.
_Name = Annotated[str, Path(pattern=f"^{NAME_PATTERN}$", description="adapter name", examples=["sql"])]
_Number = Annotated[int, Path(ge=1, le=MAX_VERSION, description="version", examples=[1])]
_CREATED: dict[int | str, dict[str, Any]] = {
    200: {"model": VersionView, "description": "The default version holds these very bytes already; nothing is new"},
    201: {"model": VersionView, "description": "The new version, answering"},
}
_UPLOAD_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "files"],
                    "properties": {
                        "name": {"type": "string", "examples": ["sql"]},
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "description": {"type": "string"},
                        "set_default": {"type": "boolean", "default": True},
                        "if_absent": {"type": "boolean", "default": False},
                    },
                }
            },
            "application/json": {"schema": SourceBody.model_json_schema()},
        },
    }
}


async def _source(request: Request) -> SourceBody:
    try:
        return SourceBody.model_validate(await read_json(request))
    except ValidationError as error:
        raise refused_field(error.errors(include_input=False, include_url=False)) from None


def router() -> APIRouter:
    """The routes below ``/admin/v1/adapters``."""
    routes = APIRouter(
        prefix="/admin/v1",
        tags=["Adapters"],
        responses=ERRORS,
        dependencies=[Depends(ADMIN_KEY)],
        route_class=StrictRoute,
    )
    _add_writing(routes)
    _add_reading(routes)
    _add_residency(routes)
    return routes


def _add_writing(routes: APIRouter) -> None:
    @routes.post(
        "/adapters",
        status_code=201,
        summary="Register a new version",
        responses=_CREATED,
        openapi_extra=_UPLOAD_SCHEMA,
    )
    async def create(request: Request) -> JSONResponse:
        adapters = services(request).adapters
        if is_multipart(request):
            async with upload_form(request) as form:
                version, created = await adapters.upload(new_version(form, request_key(request)), uploaded_files(form))
        else:
            body = await _source(request)
            new = NewVersion(body.name, body.description, body.set_default, body.if_absent, request_key(request))
            version, created = await adapters.take_source(new, body.source)
        return JSONResponse(VersionView.of(version).model_dump(), status_code=201 if created else 200)

    @routes.post("/adapters:validate", summary="Report every finding; change nothing", openapi_extra=_UPLOAD_SCHEMA)
    async def validate(request: Request) -> ReportView:
        adapters = services(request).adapters
        if is_multipart(request):
            async with upload_form(request) as form:
                return ReportView.of(await adapters.validate_upload(uploaded_files(form)))
        return ReportView.of(await adapters.validate_source((await _source(request)).source))

    @routes.patch("/adapters/{name}", summary="Move the default version, or describe")
    async def patch(request: Request, name: _Name, body: PatchBody) -> AdapterView:
        adapters = services(request).adapters
        if body.default_version is not None:
            await adapters.set_default(name, body.default_version)
        if body.description is not None:
            await adapters.describe(name, body.description)
        return AdapterView.of(await adapters.get(name))

    @routes.delete("/adapters/{name}", summary="Delete an adapter; running requests finish")
    async def delete(request: Request, name: _Name) -> DeletedView:
        gone = await services(request).adapters.delete(name)
        return DeletedView(deleted=tuple(str(version.ref) for version in gone))

    @routes.delete("/adapters/{name}/versions/{number}", summary="Delete one version; running requests finish")
    async def delete_version(request: Request, name: _Name, number: _Number) -> DeletedView:
        gone = await services(request).adapters.delete(name, number)
        return DeletedView(deleted=tuple(str(version.ref) for version in gone))


def _add_reading(routes: APIRouter) -> None:
    @routes.get("/adapters", summary="List adapters", response_model=AdapterPageView)
    async def list_adapters(
        request: Request,
        search: str = Query("", max_length=128, pattern=r"^[A-Za-z0-9._-]*$"),
        limit: int = Query(100, ge=1, le=1000),
        cursor: str | None = Query(None, pattern=f"^{NAME_PATTERN}$"),
    ) -> Response:
        page = await services(request).adapters.list(search, limit, cursor)
        view = AdapterPageView(data=tuple(map(AdapterView.of, page.items)), next_cursor=page.next_cursor)
        # Written here: checking what is a model already would take longer than the rest where a page is long.
        return Response(view.model_dump_json(), media_type="application/json")

    @routes.get("/adapters/{name}", summary="One adapter")
    async def show(request: Request, name: _Name) -> AdapterView:
        return AdapterView.of(await services(request).adapters.get(name))

    @routes.get("/adapters/{name}/versions/{number}", summary="One version")
    async def show_version(request: Request, name: _Name, number: _Number) -> VersionView:
        return VersionView.of(await services(request).adapters.get_version(name, number))


def _add_residency(routes: APIRouter) -> None:
    @routes.post("/adapters/{name}:load", summary="Make a version resident")
    async def load(request: Request, name: _Name, body: VersionBody | None = None) -> VersionView:
        return VersionView.of(await services(request).adapters.load(name, body.version if body else None))

    @routes.post("/adapters/{name}:unload", summary="Free a version's memory")
    async def unload(request: Request, name: _Name, body: VersionBody | None = None) -> VersionView:
        return VersionView.of(await services(request).adapters.unload(name, body.version if body else None))

    @routes.post("/adapters/{name}:pin", summary="Keep a version resident")
    async def pin(request: Request, name: _Name, body: VersionBody | None = None) -> VersionView:
        number = body.version if body else None
        return VersionView.of(await services(request).adapters.pin(name, number, pinned=True))

    @routes.post("/adapters/{name}:unpin", summary="Let a version be evicted again")
    async def unpin(request: Request, name: _Name, body: VersionBody | None = None) -> VersionView:
        number = body.version if body else None
        return VersionView.of(await services(request).adapters.pin(name, number, pinned=False))

    @routes.post("/adapters/{name}:verify", summary="Compare the stored files with their digests")
    async def verify(request: Request, name: _Name) -> VerifiedView:
        return VerifiedView(versions=await services(request).adapters.verify(name))
