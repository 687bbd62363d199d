"""`/v1/files`: files of requests for batches, and what batches write, in OpenAI's shapes."""

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.responses import StreamingResponse

from amalgam.api.access import CLIENT
from amalgam.api.admin.kit import ID_PATTERN
from amalgam.api.admin.upload_form import SpoolingParser, is_multipart
from amalgam.api.errors import ERRORS
from amalgam.api.inference.batch_models import MAX_KEPT_S, MIN_KEPT_S, FileDeletedView, FileListView, FileView, Seconds
from amalgam.api.inference.owner import owner_of
from amalgam.api.state import services
from amalgam.domain.stored_file import KEPT_S, FilePurpose
from amalgam.errors.requests import FieldRefused
from amalgam.registry.files import FileList

FILES_PATH: Final = "/v1/files"
FileId = Annotated[str, Path(pattern=ID_PATTERN, description="id of a file", examples=["file-8f14e45fceea4e6f"])]
_MOST: Final = 10_000
_CHUNK_BYTES: Final = 1 << 20
_FORM_BYTES: Final = 4096
"""A form may have so much around its file, so its file may be so much less than the body."""
_ANCHOR: Final = "expires_after[anchor]"
_SECONDS: Final = "expires_after[seconds]"
_FIELDS: Final = ("file", "purpose", _ANCHOR, _SECONDS)
_LONGEST_NAME: Final = 255
_ATTACHED: Final = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
_BYTES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
_FORM: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "lines of JSON"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        _ANCHOR: {"type": "string", "enum": ["created_at"]},
                        _SECONDS: {"type": "integer", "minimum": MIN_KEPT_S, "maximum": MAX_KEPT_S},
                    },
                }
            }
        },
    }
}


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(responses=ERRORS, dependencies=[Depends(CLIENT)], tags=["OpenAI plane"])

    @routes.post(FILES_PATH, summary="Store a file", openapi_extra=_FORM)
    async def upload(request: Request) -> FileView:
        if not is_multipart(request):
            raise FieldRefused("file", "must come in a form, as multipart/form-data")
        files, owner = services(request).files, owner_of(request)
        declared = int(request.headers.get("content-length", "0"))
        # Before it is read: what does not fit is not waited for.
        await files.require_storage(owner, max(0, declared - _FORM_BYTES))
        parser = SpoolingParser(request, services(request).adapters.spool)
        try:
            form = await parser.form()
            part, kept_s = _read(form)
            name = (part.filename or "file")[:_LONGEST_NAME]
            stored = await files.upload(owner, name, _chunks(part), kept_s)
        finally:
            parser.close()
        return FileView.of(stored)

    _add_reading(routes)
    return routes


def _add_reading(routes: APIRouter) -> None:
    """The routes of what is stored."""

    @routes.get(FILES_PATH, summary="Stored files")
    async def list_files(
        request: Request,
        purpose: Annotated[FilePurpose | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=_MOST)] = _MOST,
        order: Annotated[Literal["asc", "desc"], Query(description="order of creation")] = "desc",
        after: Annotated[str | None, Query(pattern=ID_PATTERN, description="last_id of the page before")] = None,
    ) -> FileListView:
        asked = FileList(purpose, limit, after, newest_first=order == "desc")
        return FileListView.of(await services(request).files.list(owner_of(request), asked))

    @routes.get(f"{FILES_PATH}/{{file_id}}", summary="One stored file")
    async def show_file(request: Request, file_id: FileId) -> FileView:
        return FileView.of(await services(request).files.get(owner_of(request), file_id))

    @routes.get(
        f"{FILES_PATH}/{{file_id}}/content",
        summary="The bytes of a file",
        response_class=StreamingResponse,
        responses=_BYTES,
    )
    async def read_file(request: Request, file_id: FileId) -> StreamingResponse:
        files = services(request).files
        found = await files.get(owner_of(request), file_id)
        pieces = files.chunks(file_id)
        # Before the answer begins: bytes that are gone are a 404.
        first = await asyncio.to_thread(next, pieces, b"")
        headers = _ATTACHED | {"content-length": str(found.bytes)}
        return StreamingResponse(_from(first, pieces), media_type="application/octet-stream", headers=headers)

    @routes.delete(f"{FILES_PATH}/{{file_id}}", summary="Delete a file")
    async def delete_file(request: Request, file_id: FileId) -> FileDeletedView:
        await services(request).files.delete(owner_of(request), file_id)
        return FileDeletedView(id=file_id)


def _read(form: FormData) -> tuple[UploadFile, int]:
    """The file, and for how many seconds it is kept. Raises FieldRefused."""
    names = [name for name, _ in form.multi_items()]
    for name in names:
        if name not in _FIELDS or names.count(name) > 1:
            raise FieldRefused("body", f"may hold each of the fields {', '.join(_FIELDS)} once, and no other")
    if form.get("purpose") != "batch":
        raise FieldRefused("purpose", "must be batch; files are stored for nothing else")
    part = form.get("file")
    if not isinstance(part, UploadFile):
        raise FieldRefused("file", "is missing, or is no file")
    if not part.size:
        raise FieldRefused("file", "is empty")
    return part, _kept_s(form)


def _kept_s(form: FormData) -> int:
    anchor, seconds = form.get(_ANCHOR), form.get(_SECONDS)
    if anchor is None and seconds is None:
        return KEPT_S
    if anchor != "created_at":
        raise FieldRefused(_ANCHOR, "must be created_at")
    try:
        return TypeAdapter(Seconds).validate_python(seconds)
    except ValidationError:
        raise FieldRefused(_SECONDS, f"must be a number of seconds from {MIN_KEPT_S} to {MAX_KEPT_S}") from None


def _chunks(part: UploadFile) -> Iterator[bytes]:
    while chunk := part.file.read(_CHUNK_BYTES):
        yield chunk


def _from(first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from pieces
