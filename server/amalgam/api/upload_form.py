"""Reads an upload: a multipart form of a few text fields and of files that stream into the store."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from amalgam.errors.requests import FieldRefused
from amalgam.services.adapters import NewVersion, UploadedFile

MAX_FILES: Final = 64
_MAX_FIELDS: Final = 16
_MAX_TEXT: Final = 4096
_CHUNK_BYTES: Final = 1 << 20
_TEXT_FIELDS: Final = frozenset({"name", "description", "set_default", "if_absent"})
_CHARSET: Final = re.compile(r";\s*charset\s*=\s*\"?([^\";\s]*)", re.IGNORECASE)


def is_multipart(request: Request) -> bool:
    """Whether the body says that it is a form with files."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


@asynccontextmanager
async def upload_form(request: Request) -> AsyncIterator[FormData]:
    """The form, its spooled files removed at the end.

    Raises:
        FieldRefused: a field that is unknown, not text, sent twice or too long; or text that is not UTF-8.
    """
    charset = _CHARSET.search(request.headers.get("content-type", ""))
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8"):
        # Any codec that Python knows would be tried on the names of the parts.
        raise FieldRefused("body", "must be in UTF-8")
    form = await request.form(max_files=MAX_FILES, max_fields=_MAX_FIELDS)
    try:
        _check(form)
        yield form
    finally:
        await form.close()


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
    """Every file of the form, under its bare name."""
    for _, part in form.multi_items():
        if isinstance(part, UploadFile):
            # Browsers and curl may send a folder along; the store decides on the bare name.
            yield UploadedFile((part.filename or "").replace("\\", "/").rsplit("/", 1)[-1], _chunks(part))


def _chunks(part: UploadFile) -> Iterator[bytes]:
    while chunk := part.file.read(_CHUNK_BYTES):
        yield chunk


def new_version(form: FormData, request_key: str | None) -> NewVersion:
    """What the form asks for beside its files.

    Args:
        form: of the request.
        request_key: the idempotency key that the request holds, if any.

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
