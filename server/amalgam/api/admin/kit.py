"""What routes of the admin plane are made of: a router, their markers, bodies, pages, and the parameters of lists.

A route that is added through `admin_router` says with `READS`, `PUBLISHES` or `ADMINISTERS` whom it answers, and
answers nobody without. It shows nothing whose path is out of the key's scope, records what it changes, reads JSON
strictly, and has its errors and its key in the OpenAPI document.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Annotated, Final, Generic, Self, TypeVar

from fastapi import APIRouter, Depends, Path, Query
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema

from amalgam.api.access import ADMIN, PUBLISH, READ
from amalgam.api.admin.audited import AuditedRoute
from amalgam.api.admin.in_scope import require_in_scope
from amalgam.api.errors import ERRORS
from amalgam.domain.adapter import MAX_VERSION, NAME_PATTERN

ADMIN_KEY: Final = HTTPBearer(
    auto_error=False,
    scheme_name="adminKey",
    description="AMALGAM_ADMIN_KEY, or a key whose role the route lets in. Checked before the body is read; without "
    "keys the server is on loopback only.",
)
"""It describes the key in the API's document. What checks it is the marker of `amalgam.api.access`."""
READS: Final = (Depends(READ),)
"""A route has it that shows what is in scope."""
PUBLISHES: Final = (Depends(PUBLISH),)
"""A route has it that changes what is in scope."""
ADMINISTERS: Final = (Depends(ADMIN),)
"""A route has it that is for the operator alone."""


def admin_router(tag: str, *, prefix: str = "/admin/v1") -> APIRouter:
    """A router for routes of the admin plane, shown under ``tag``; each says whom it answers."""
    return APIRouter(
        prefix=prefix,
        tags=[tag],
        responses=ERRORS,
        dependencies=[Depends(ADMIN_KEY), Depends(require_in_scope)],
        route_class=AuditedRoute,
    )


# --- names and numbers. What cannot be one is refused here: no database is asked for it.

WHOLE_NAME: Final = f"^{NAME_PATTERN}$"
ID_PATTERN: Final = r"^[A-Za-z0-9._-]{1,64}$"
NO_NUL: Final = r"^[^\x00]*$"
"""No database and no file system takes a NUL."""
AdapterName = Annotated[str, Path(pattern=WHOLE_NAME, description="adapter name", examples=["sql"])]
VersionNumber = Annotated[int, Path(ge=1, le=MAX_VERSION, description="version", examples=[1])]
NewName = Annotated[str, Field(max_length=128, pattern=WHOLE_NAME, description="adapter name", examples=["sql"])]
"""It names what a body asks to be made."""


# --- parameters of lists

Search = Annotated[str, Query(max_length=128, pattern=r"^[A-Za-z0-9._-]*$")]
NameCursor = Annotated[str | None, Query(pattern=WHOLE_NAME)]
IdCursor = Annotated[str | None, Query(pattern=ID_PATTERN)]
ShortLimit = Annotated[int, Query(ge=1, le=500)]
LongLimit = Annotated[int, Query(ge=1, le=1000)]


# --- bodies and views

Timestamp = Annotated[
    datetime,
    PlainSerializer(datetime.isoformat, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2030-01-31T12:00:00+00:00"]}),
]
"""It is a moment, written with its offset from UTC."""
_Item = TypeVar("_Item")
_Row = TypeVar("_Row")


class Body(BaseModel):
    """A body of the admin plane: nothing unknown in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(BaseModel, Generic[_Item]):
    """One page of a list."""

    data: tuple[_Item, ...]
    next_cursor: str | None = Field(description="pass it back as cursor for the next page; null on the last")

    @classmethod
    def of(cls, rows: Iterable[_Row], view: Callable[[_Row], _Item], next_cursor: str | None) -> Self:
        """The page with the view of every row."""
        return cls(data=tuple(map(view, rows)), next_cursor=next_cursor)
