"""The audit on the admin plane: pages of changes, and all of them as a file."""

import csv
import io
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import StreamingResponse

from amalgam.api.admin.in_scope import covered_page, scopes_of, sees_every_tenant, tenant_of
from amalgam.api.admin.kit import READS, ShortLimit, admin_router
from amalgam.api.admin.tenant_models import AuditEntryView, AuditPageView
from amalgam.api.state import services
from amalgam.domain.audit import NAMING_KINDS, AuditEntry, AuditKind
from amalgam.domain.tenant import TENANT_PATTERN
from amalgam.errors.requests import FieldRefused
from amalgam.services.audit import AuditQuery

_Tenant = Annotated[str | None, Query(pattern=f"^{TENANT_PATTERN}$", description="entries by this tenant's keys alone")]
_Moment = Annotated[datetime | None, Query(description="a moment with its offset from UTC")]
_Kind = Annotated[AuditKind | None, Query(description="entries about objects of this kind alone")]
_Object = Annotated[
    str | None,
    Query(
        alias="object",
        min_length=1,
        max_length=256,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$",
        description="entries about the object of this name or id alone",
    ),
]
_Cursor = Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")]
_COLUMNS: Final = tuple(AuditEntryView.model_fields)
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_EXPORTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Every change, oldest first",
        "content": {
            "application/jsonl": {"schema": {"type": "string", "examples": ['{"id": 17, "verb": "alias.set"}\n']}},
            "text/csv": {"schema": {"type": "string", "examples": [",".join(_COLUMNS) + "\n"]}},
        },
    }
}


def router() -> APIRouter:
    """The routes of the audit."""
    routes = admin_router("Tenants and keys")
    _add_list(routes)
    _add_export(routes)
    return routes


def _add_list(routes: APIRouter) -> None:
    @routes.get("/audit", dependencies=READS, summary="Changes of the admin plane, newest first")
    async def list_changes(
        request: Request,
        tenant: _Tenant = None,
        since: _Moment = None,
        until: _Moment = None,
        kind: _Kind = None,
        object_name: _Object = None,
        limit: ShortLimit = 100,
        cursor: _Cursor = None,
    ) -> AuditPageView:
        asked = _query(request, tenant, since, until, kind, object_name)

        async def read(most: int, after: str | None) -> Any:
            return await services(request).audit.page(asked, most, after)

        found, next_cursor = await covered_page(read, limit, cursor, _is_shown(request), lambda entry: str(entry.id))
        return AuditPageView.of(found, AuditEntryView.of, next_cursor)


def _add_export(routes: APIRouter) -> None:
    @routes.get(
        "/audit/export",
        dependencies=READS,
        summary="Every change as lines of JSON, or CSV",
        response_class=StreamingResponse,
        responses=_EXPORTED,
    )
    async def export(
        request: Request,
        tenant: _Tenant = None,
        since: _Moment = None,
        until: _Moment = None,
        kind: _Kind = None,
        object_name: _Object = None,
        form: Literal["jsonl", "csv"] = Query("jsonl", alias="format"),
    ) -> StreamingResponse:
        asked = _query(request, tenant, since, until, kind, object_name)
        entries = services(request).audit.all(asked)
        is_shown = _is_shown(request)
        shown = (entry async for entry in entries if is_shown is None or is_shown(entry))
        pieces, media_type = (
            (_csv(shown), "text/csv; charset=utf-8") if form == "csv" else (_lines(shown), "application/jsonl")
        )
        headers = {"Content-Disposition": f'attachment; filename="audit.{form}"'}
        return StreamingResponse(pieces, media_type=media_type, headers=headers)


def _query(
    request: Request,
    tenant: str | None,
    since: datetime | None,
    until: datetime | None,
    kind: AuditKind | None,
    object_name: str | None,
) -> AuditQuery:
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and moment.tzinfo is None:
            raise FieldRefused(name, "must have an offset from UTC, as 2030-01-31T12:00:00Z")
    if sees_every_tenant(request):
        return AuditQuery(tenant, since, until, kind, object_name)
    if tenant not in (None, tenant_of(request)):
        # Nobody has this id: of another tenant there is nothing to be told.
        return AuditQuery("", since, until, kind, object_name)
    return AuditQuery(tenant_of(request), since, until, kind, object_name)


def _is_shown(request: Request) -> Callable[[AuditEntry], bool] | None:
    """Whether an entry names nothing that is out of scope; None where everything is in scope."""
    scopes = scopes_of(request)
    if scopes.has_every_name:
        return None
    return lambda entry: entry.kind not in NAMING_KINDS or scopes.asked(entry.object)


async def _lines(entries: AsyncIterator[AuditEntry]) -> AsyncIterator[str]:
    async for entry in entries:
        yield AuditEntryView.of(entry).model_dump_json() + "\n"


async def _csv(entries: AsyncIterator[AuditEntry]) -> AsyncIterator[str]:
    yield _row(list(_COLUMNS))
    async for entry in entries:
        yield _row(list(AuditEntryView.of(entry).model_dump().values()))


def _row(cells: list[Any]) -> str:
    """A text that a spreadsheet would run as a formula gets an apostrophe in front."""
    text = io.StringIO()
    inert = [f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell for cell in cells]
    csv.writer(text, lineterminator="\n").writerow(inert)
    return text.getvalue()
