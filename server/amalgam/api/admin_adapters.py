"""Adapters on the admin plane: upload, validate, list, change, load, pin, delete."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse

from amalgam.api.admin_answers import ADMIN_KEY, AdapterPageView, DeletedView, ReportView
from amalgam.api.admin_models import AdapterView, PatchBody, SourceBody, VersionBody, VersionView
from amalgam.api.error_document import ERRORS
from amalgam.api.openai import read_json
from amalgam.api.state import services
from amalgam.errors.requests import FieldRefused
from amalgam.services.adapters import NewVersion, UploadedFile

_CHUNK_BYTES = 1 << 20
_MAX_FILES = 64
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


def _is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """The form, its spooled files removed at the end."""
    try:
        form = await request.form(max_files=_MAX_FILES, max_fields=16)
    except MultiPartException as error:
        raise FieldRefused("body", error.message) from None
    try:
        yield form
    finally:
        await form.close()


def _files(form: FormData) -> Iterator[UploadedFile]:
    for _, part in form.multi_items():
        if isinstance(part, UploadFile):
            # Browsers and curl may send a folder along; the store decides on the bare name.
            yield UploadedFile((part.filename or "").replace("\\", "/").rsplit("/", 1)[-1], _chunks(part))


def _chunks(part: UploadFile) -> Iterator[bytes]:
    while chunk := part.file.read(_CHUNK_BYTES):
        yield chunk


def _flag(form: FormData, field: str, *, default: bool) -> bool:
    value = form.get(field)
    if value is None:
        return default
    if value not in ("true", "false", "1", "0"):
        raise FieldRefused(field, "must be true or false")
    return value in ("true", "1")


def _text(form: FormData, field: str) -> str | None:
    value = form.get(field)
    if value is not None and not isinstance(value, str):
        raise FieldRefused(field, "must be text, not a file")
    if value is not None and len(value) > 4096:
        raise FieldRefused(field, "must have at most 4096 characters")
    return value


def _new_version(form: FormData) -> NewVersion:
    name = _text(form, "name")
    if not name:
        raise FieldRefused("name", "is missing")
    return NewVersion(
        name=name,
        description=_text(form, "description"),
        set_default=_flag(form, "set_default", default=True),
        if_absent=_flag(form, "if_absent", default=False),
    )


async def _source(request: Request) -> SourceBody:
    try:
        return SourceBody.model_validate(await read_json(request))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise FieldRefused(".".join(map(str, first["loc"])) or "body", first["msg"]) from None


def router() -> APIRouter:
    """The routes below ``/admin/v1/adapters``."""
    routes = APIRouter(prefix="/admin/v1", tags=["Adapters"], responses=ERRORS, dependencies=[Depends(ADMIN_KEY)])
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
        if _is_multipart(request):
            async with _form(request) as form:
                version, created = await adapters.upload(_new_version(form), _files(form))
        else:
            body = await _source(request)
            new = NewVersion(body.name, body.description, body.set_default, body.if_absent)
            version, created = await adapters.take_source(new, body.source)
        return JSONResponse(VersionView.of(version).model_dump(), status_code=201 if created else 200)

    @routes.post("/adapters:validate", summary="Report every finding; change nothing", openapi_extra=_UPLOAD_SCHEMA)
    async def validate(request: Request) -> ReportView:
        adapters = services(request).adapters
        if _is_multipart(request):
            async with _form(request) as form:
                return ReportView.of(await adapters.validate_upload(_files(form)))
        return ReportView.of(await adapters.validate_source((await _source(request)).source))

    @routes.patch("/adapters/{name}", summary="Move the default version, or describe")
    async def patch(request: Request, name: str, body: PatchBody) -> AdapterView:
        adapters = services(request).adapters
        if body.default_version is not None:
            await adapters.set_default(name, body.default_version)
        if body.description is not None:
            await adapters.describe(name, body.description)
        return AdapterView.of(await adapters.get(name))

    @routes.delete("/adapters/{name}", summary="Delete an adapter; running requests finish")
    async def delete(request: Request, name: str) -> DeletedView:
        gone = await services(request).adapters.delete(name)
        return DeletedView(deleted=tuple(str(version.ref) for version in gone))

    @routes.delete("/adapters/{name}/versions/{number}", summary="Delete one version; running requests finish")
    async def delete_version(request: Request, name: str, number: int) -> DeletedView:
        gone = await services(request).adapters.delete(name, number)
        return DeletedView(deleted=tuple(str(version.ref) for version in gone))


def _add_reading(routes: APIRouter) -> None:
    @routes.get("/adapters", summary="List adapters")
    async def list_adapters(
        request: Request,
        search: str = Query("", max_length=128),
        limit: int = Query(100, ge=1, le=1000),
        cursor: str | None = Query(None, max_length=256),
    ) -> AdapterPageView:
        page = await services(request).adapters.list(search, limit, cursor)
        data = tuple(AdapterView.of(adapter) for adapter in page.items)
        return AdapterPageView(data=data, next_cursor=page.next_cursor)

    @routes.get("/adapters/{name}", summary="One adapter")
    async def show(request: Request, name: str) -> AdapterView:
        return AdapterView.of(await services(request).adapters.get(name))

    @routes.get("/adapters/{name}/versions/{number}", summary="One version")
    async def show_version(request: Request, name: str, number: int) -> VersionView:
        return VersionView.of(await services(request).adapters.get_version(name, number))


def _add_residency(routes: APIRouter) -> None:
    @routes.post("/adapters/{name}:load", summary="Make a version resident")
    async def load(request: Request, name: str, body: VersionBody | None = None) -> VersionView:
        return VersionView.of(await services(request).adapters.load(name, body.version if body else None))

    @routes.post("/adapters/{name}:unload", summary="Free a version's memory")
    async def unload(request: Request, name: str, body: VersionBody | None = None) -> VersionView:
        return VersionView.of(await services(request).adapters.unload(name, body.version if body else None))

    @routes.post("/adapters/{name}:pin", summary="Keep a version resident")
    async def pin(request: Request, name: str, body: VersionBody | None = None) -> VersionView:
        number = body.version if body else None
        return VersionView.of(await services(request).adapters.pin(name, number, pinned=True))

    @routes.post("/adapters/{name}:unpin", summary="Let a version be evicted again")
    async def unpin(request: Request, name: str, body: VersionBody | None = None) -> VersionView:
        number = body.version if body else None
        return VersionView.of(await services(request).adapters.pin(name, number, pinned=False))
