"""Adapters on the admin plane: upload, validate, list, change, load, pin, delete."""

from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response, StreamingResponse

from amalgam.api.access import caller_of
from amalgam.api.admin.adapter_models import (
    AdapterPageView,
    AdapterView,
    DeletedView,
    PatchBody,
    RegisterBody,
    ReportView,
    SourceBody,
    VerifiedView,
    VersionBody,
    VersionView,
)
from amalgam.api.admin.audited import about
from amalgam.api.admin.idempotency import request_key
from amalgam.api.admin.in_scope import covered_page, require_new_name, require_sources, scopes_of
from amalgam.api.admin.kit import (
    ADMINISTERS,
    PUBLISHES,
    READS,
    AdapterName,
    LongLimit,
    NameCursor,
    Search,
    VersionNumber,
    admin_router,
)
from amalgam.api.admin.upload_form import is_multipart, new_version, upload_form, uploaded_files
from amalgam.api.errors import refused_field
from amalgam.api.fields.strict_json import read_object
from amalgam.api.state import services
from amalgam.services.new_versions import NewVersion

_Source = TypeVar("_Source", bound=SourceBody)
_CREATED: dict[int | str, dict[str, Any]] = {
    200: {"model": VersionView, "description": "The default version holds these very bytes already; nothing is new"},
    201: {"model": VersionView, "description": "The new version, answering"},
}
_TAR: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary", "examples": ["…"]}}},
        "description": "The files; they never change, and the ETag is the version's digest",
    },
    304: {"description": "The caller has them already"},
}


def _takes(source: type[SourceBody]) -> dict[str, Any]:
    """The body of a route that takes a form with files, or a source."""
    fields = {
        "name": {"type": "string", "examples": ["sql"]},
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "description": {"type": "string"},
        "set_default": {"type": "boolean", "default": True},
        "if_absent": {"type": "boolean", "default": False},
        "use_profile": {"type": "boolean", "default": False},
    }
    required = [name for name in ("name", "files") if name == "files" or source.model_fields[name].is_required()]
    content = {
        "multipart/form-data": {"schema": {"type": "object", "required": required, "properties": fields}},
        "application/json": {"schema": source.model_json_schema()},
    }
    return {"requestBody": {"required": True, "content": content}}


async def _source(request: Request, kind: type[_Source]) -> _Source:
    try:
        return kind.model_validate(await read_object(request))
    except ValidationError as error:
        raise refused_field(error.errors(include_input=False, include_url=False)) from None


def router() -> APIRouter:
    """The routes below ``/admin/v1/adapters``."""
    routes = admin_router("Adapters")
    _add_writing(routes)
    _add_changing(routes)
    _add_reading(routes)
    _add_residency(routes)
    return routes


def _add_writing(routes: APIRouter) -> None:
    @routes.post(
        "/adapters",
        dependencies=PUBLISHES,
        status_code=201,
        summary="Register a new version",
        responses=_CREATED,
        openapi_extra=_takes(RegisterBody),
    )
    async def create(request: Request) -> JSONResponse:
        adapters = services(request).adapters
        if is_multipart(request):
            async with upload_form(request) as form:
                new = new_version(form, request_key(request), caller_of(request).stored_by)
                require_new_name(request, new.name)
                await about(request, new.name)
                version, created = await adapters.upload(new, uploaded_files(form))
        else:
            require_sources(request)
            body = await _source(request, RegisterBody)
            await about(request, body.name)
            asked = (body.description, body.set_default, body.if_absent)
            new = NewVersion(body.name, *asked, request_key(request), body.use_profile, caller_of(request).stored_by)
            version, created = await adapters.take_source(new, body.source)
        return JSONResponse(VersionView.of(version).model_dump(), status_code=201 if created else 200)

    @routes.post(
        "/adapters:validate",
        dependencies=PUBLISHES,
        summary="Report every finding; change nothing",
        openapi_extra=_takes(SourceBody),
    )
    async def validate(request: Request) -> ReportView:
        adapters = services(request).adapters
        if is_multipart(request):
            async with upload_form(request) as form:
                return ReportView.of(await adapters.validate_upload(uploaded_files(form)))
        require_sources(request)
        return ReportView.of(await adapters.validate_source((await _source(request, SourceBody)).source))


def _add_changing(routes: APIRouter) -> None:
    @routes.patch("/adapters/{name}", dependencies=PUBLISHES, summary="Move the default version, or describe")
    async def patch(request: Request, name: AdapterName, body: PatchBody) -> AdapterView:
        adapters = services(request).adapters
        if body.default_version is not None:
            await adapters.set_default(name, body.default_version)
        if body.description is not None:
            await adapters.describe(name, body.description)
        return AdapterView.of(await adapters.get(name), scopes_of(request))

    @routes.delete("/adapters/{name}", dependencies=PUBLISHES, summary="Delete an adapter; running requests finish")
    async def delete(request: Request, name: AdapterName) -> DeletedView:
        gone = await services(request).adapters.delete(name, scopes=scopes_of(request))
        return DeletedView(deleted=tuple(str(version.ref) for version in gone))

    @routes.delete(
        "/adapters/{name}/versions/{number}",
        dependencies=PUBLISHES,
        summary="Delete one version; running requests finish",
    )
    async def delete_version(request: Request, name: AdapterName, number: VersionNumber) -> DeletedView:
        gone = await services(request).adapters.delete(name, number, scopes=scopes_of(request))
        return DeletedView(deleted=tuple(str(version.ref) for version in gone))


def _add_reading(routes: APIRouter) -> None:
    @routes.get("/adapters", dependencies=READS, summary="List adapters", response_model=AdapterPageView)
    async def list_adapters(
        request: Request, search: Search = "", limit: LongLimit = 100, cursor: NameCursor = None
    ) -> Response:
        adapters, scopes = services(request).adapters, scopes_of(request)
        is_shown = None if scopes.has_every_name else lambda adapter: scopes.name(adapter.name)
        read = partial(adapters.list, search, scopes=scopes)
        found, next_cursor = await covered_page(read, limit, cursor, is_shown, lambda adapter: adapter.name)
        view = AdapterPageView.of(found, partial(AdapterView.of, scopes=scopes), next_cursor)
        # Written here: checking what is a model already would take longer than the rest where a page is long.
        return Response(view.model_dump_json(), media_type="application/json")

    @routes.get("/adapters/{name}", dependencies=READS, summary="One adapter")
    async def show(request: Request, name: AdapterName) -> AdapterView:
        return AdapterView.of(await services(request).adapters.get(name), scopes_of(request))

    @routes.get("/adapters/{name}/versions/{number}", dependencies=READS, summary="One version")
    async def show_version(request: Request, name: AdapterName, number: VersionNumber) -> VersionView:
        return VersionView.of(await services(request).adapters.get_version(name, number), scopes_of(request))

    @routes.get(
        "/adapters/{name}/versions/{number}/files",
        dependencies=READS,
        summary="The stored files of a version, as a tar",
        response_class=StreamingResponse,
        responses=_TAR,
    )
    async def files(request: Request, name: AdapterName, number: VersionNumber) -> Response:
        version, archive = await services(request).adapters.archive(name, number, scopes_of(request))
        headers = {"ETag": f'"{version.digest}"', "Cache-Control": "private, immutable"}
        if version.digest in request.headers.get("if-none-match", ""):
            archive.close()
            return Response(status_code=304, headers=headers)
        headers |= {
            "Content-Length": str(archive.size_bytes),
            "Content-Disposition": f'attachment; filename="{name}-{number}.tar"',
        }
        return StreamingResponse(archive.chunks(), media_type="application/x-tar", headers=headers)


def _add_residency(routes: APIRouter) -> None:
    @routes.post("/adapters/{name}:load", dependencies=ADMINISTERS, summary="Make a version resident")
    async def load(request: Request, name: AdapterName, body: VersionBody | None = None) -> VersionView:
        return VersionView.of(await services(request).adapters.load(name, body.version if body else None))

    @routes.post("/adapters/{name}:unload", dependencies=ADMINISTERS, summary="Free a version's memory")
    async def unload(request: Request, name: AdapterName, body: VersionBody | None = None) -> VersionView:
        return VersionView.of(await services(request).adapters.unload(name, body.version if body else None))

    @routes.post("/adapters/{name}:pin", dependencies=ADMINISTERS, summary="Keep a version resident")
    async def pin(request: Request, name: AdapterName, body: VersionBody | None = None) -> VersionView:
        number = body.version if body else None
        return VersionView.of(await services(request).adapters.pin(name, number, pinned=True))

    @routes.post("/adapters/{name}:unpin", dependencies=ADMINISTERS, summary="Let a version be evicted again")
    async def unpin(request: Request, name: AdapterName, body: VersionBody | None = None) -> VersionView:
        number = body.version if body else None
        return VersionView.of(await services(request).adapters.pin(name, number, pinned=False))

    @routes.post(
        "/adapters/{name}:verify", dependencies=PUBLISHES, summary="Compare the stored files with their digests"
    )
    async def verify(request: Request, name: AdapterName) -> VerifiedView:
        return VerifiedView(versions=await services(request).adapters.verify(name))
