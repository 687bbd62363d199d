"""Reads an upload: a multipart form of a few text fields and of files that stream into the store."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Final, cast

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from amalgam.api.state import services
from amalgam.domain.stored_bytes import StoredBy
from amalgam.errors.requests import FieldRefused
from amalgam.services.new_versions import NewVersion, UploadedFile
from amalgam.store.disk import disk_errors
from amalgam.store.file_rules import names_at_top

MAX_FILES: Final = 64
_MAX_FIELDS: Final = 16
_MAX_TEXT: Final = 4096
_CHUNK_BYTES: Final = 1 << 20
_TEXT_FIELDS: Final = frozenset({"name", "description", "set_default", "if_absent", "use_profile"})
_CHARSET: Final = re.compile(r";\s*charset\s*=\s*\"?([^\";\s]*)", re.IGNORECASE)


def is_multipart(request: Request) -> bool:
    """Whether the body says that it is a form with files."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


@asynccontextmanager
async def upload_form(request: Request) -> AsyncIterator[FormData]:
    """The form, its spooled files removed at the end.

    Raises:
        StoreUnavailable: the disk has no space for its files.
        FieldRefused: a field that is unknown, not text, sent twice or too long; or text that is not UTF-8.
    """
    charset = _CHARSET.search(request.headers.get("content-type", ""))
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8"):
        # Any codec that Python knows would be tried on the names of the parts.
        raise FieldRefused("body", "must be in UTF-8")
    parser = SpoolingParser(request, services(request).adapters.spool)
    try:
        form = await parser.form()
        _check(form)
        yield form
    finally:
        parser.close()


class SpoolingParser(MultiPartParser):
    """Starlette's reader of forms, which spools beside the store and not where a system keeps what is temporary.

    What does not fit there would not fit into the store either, and the temporary folder is small in many containers.
    """

    def __init__(self, request: Request, folder: Path) -> None:
        super().__init__(request.headers, request.stream(), max_files=MAX_FILES, max_fields=_MAX_FIELDS)
        self._folder = folder
        self._spools: list[SpooledTemporaryFile[bytes]] = []

    def on_headers_finished(self) -> None:
        """Give a part that is a file a place of ours."""
        super().on_headers_finished()
        file = self._current_part.file
        if file is not None:
            file.file.close()
            spool = SpooledTemporaryFile(max_size=self.spool_max_size, dir=str(self._folder))  # noqa: SIM115
            self._spools.append(spool)
            file.file = cast(BinaryIO, spool)

    async def form(self) -> FormData:
        """The whole form.

        Raises:
            StoreUnavailable: the disk has no space for its files, or the disk fails.
            HTTPException: 400, it is no form.
        """
        try:
            with disk_errors():
                return await self.parse()
        except MultiPartException as error:
            raise HTTPException(status_code=400, detail=error.message) from error

    def close(self) -> None:
        """Remove what was spooled, also of parts that never came to their end."""
        for spool in self._spools:
            spool.close()


def _check(form: FormData) -> None:
    counts = Counter(field for field, value in form.multi_items() if field in _TEXT_FIELDS or isinstance(value, str))
    for field, count in counts.items():
        if field not in _TEXT_FIELDS:
            raise FieldRefused("body", f"may hold files, and the fields {', '.join(sorted(_TEXT_FIELDS))}")
        value = form[field]
        if count > 1 or not isinstance(value, str):
            raise FieldRefused(field, "must be sent once, and as text")
        if len(value) > _MAX_TEXT or "\x00" in value:
            raise FieldRefused(field, f"must have at most {_MAX_TEXT} characters, and no NUL")


def uploaded_files(form: FormData) -> Iterator[UploadedFile]:
    """Every file of the form, by its name in the adapter: browsers and curl may send folders along."""
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    for name, part in zip(names_at_top([part.filename or "" for part in files]), files, strict=True):
        yield UploadedFile(name, _chunks(part))


def _chunks(part: UploadFile) -> Iterator[bytes]:
    while chunk := part.file.read(_CHUNK_BYTES):
        yield chunk


def new_version(form: FormData, request_key: str | None, stored_by: StoredBy) -> NewVersion:
    """What the form asks for in addition to its files.

    Args:
        form: of the request.
        request_key: the idempotency key that the request holds, if any.
        stored_by: whose bytes the version counts as.

    Raises:
        FieldRefused: it has no name, or a flag is neither.
    """
    name = _text(form, "name")
    if not name:
        raise FieldRefused("name", "is missing")
    return NewVersion(
        name=name,
        description=_text(form, "description"),
        set_default=_flag(form, "set_default", default=True),
        if_absent=_flag(form, "if_absent", default=False),
        request_key=request_key,
        use_profile=_flag(form, "use_profile", default=False),
        stored_by=stored_by,
    )


def _text(form: FormData, field: str) -> str | None:
    value = form.get(field)
    assert not isinstance(value, UploadFile)
    return value


def _flag(form: FormData, field: str, *, default: bool) -> bool:
    value = form.get(field)
    if value is None:
        return default
    if value not in ("true", "false", "1", "0"):
        raise FieldRefused(field, "must be true or false")
    return value in ("true", "1")
