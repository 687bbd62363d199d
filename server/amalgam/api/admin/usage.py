"""Usage on the admin plane: by any of its dimensions, as JSON or as a table."""

import csv
import io
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from amalgam.api.access import READ
from amalgam.api.admin.kit import ADMIN_KEY, Timestamp
from amalgam.api.admin.organization_usage import (
    MAX_TIME,
    listed,
    moment,
    shown_name,
    shown_tenants,
    shown_versions,
    span,
)
from amalgam.api.admin.spreadsheet import harmless
from amalgam.api.errors import ERRORS
from amalgam.api.state import services
from amalgam.domain.usage import COUNTS, DIMENSIONS, MINUTE_S, UsageLine, UsageQuery
from amalgam.errors.requests import FieldRefused

_DAY_S: Final = 86_400
_WIDTHS_S: Final[dict[str, int]] = {"1m": 60, "1h": 3600, "1d": _DAY_S}
MAX_BUCKETS: Final = 1440
_MAX_LINES: Final = 100_000
_TABLE: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The lines, in order of time and names",
        "content": {"text/csv": {"schema": {"type": "string", "examples": ["start_time,end_time,tenant,requests\n"]}}},
    }
}


class UsageLineView(BaseModel):
    """Sums of one group; what is not told apart is null."""

    start_time: Timestamp
    end_time: Timestamp
    tenant: str | None = None
    key: str | None = Field(None, description="id of the key; empty on a server without keys")
    alias: str | None = Field(None, description="alias that was asked for; empty where none was")
    version: str | None = Field(None, description="exact version, blend, or the base model", examples=["sql@3"])
    model: str | None = Field(None, description="the version's name without its number; all blends are blend")
    endpoint: str | None = Field(None, examples=["chat_completions"])
    requests: int
    prompt_tokens: int = Field(description="tokens of prompts, with those found in the cache")
    cached_tokens: int
    completion_tokens: int
    blend_builds: int = Field(description="blends that were built for these requests")


class UsageReportView(BaseModel):
    """What was used in a span of time."""

    start_time: Timestamp
    end_time: Timestamp
    data: tuple[UsageLineView, ...]


def router() -> APIRouter:
    """The route."""
    routes = APIRouter(
        prefix="/admin/v1", tags=["Usage"], responses=ERRORS, dependencies=[Depends(ADMIN_KEY), Depends(READ)]
    )

    @routes.get(
        "/usage", summary="What was used, by whom and of what", response_model=UsageReportView, responses=_TABLE
    )
    async def usage(
        request: Request,
        start_time: Annotated[int | None, Query(ge=0, le=MAX_TIME, description="Unix seconds; none: a day ago")] = None,
        end_time: Annotated[int | None, Query(ge=0, le=MAX_TIME, description="Unix seconds; none: now")] = None,
        by: Annotated[str, Query(max_length=64, description=f"any of {', '.join(DIMENSIONS)}, by commas")] = "",
        bucket_width: Annotated[
            Literal["1m", "1h", "1d"] | None, Query(description="width of a bucket; none: one sum for all")
        ] = None,
        format: Literal["json", "csv"] = "json",  # noqa: A002  (the parameter's name)
    ) -> Any:
        query = _query(request, start_time, end_time, bucket_width)
        lines = await services(request).usage.lines(query)
        if len(lines) > _MAX_LINES:
            raise FieldRefused("by", f"makes more than {_MAX_LINES} lines; ask for a shorter time or less at once")
        views = [_view(request, query, line) for line in lines]
        if format == "csv":
            return Response(_table(query, views), media_type="text/csv; charset=utf-8")
        return UsageReportView(start_time=query.start, end_time=query.end, data=tuple(views))

    return routes


def _query(request: Request, start: int | None, end: int | None, width: str | None) -> UsageQuery:
    by = tuple(dict.fromkeys(listed(request, "by")))
    unknown = next((name for name in by if name not in DIMENSIONS), None)
    if unknown is not None:
        raise FieldRefused("by", f"must be of {', '.join(DIMENSIONS)}")
    width_s = None if width is None else _WIDTHS_S[width]
    until = int(services(request).usage.now().timestamp()) + 1 if end is None else end
    first = (until - _DAY_S if start is None else start) // (width_s or MINUTE_S) * (width_s or MINUTE_S)
    if width_s is not None and until - first > MAX_BUCKETS * width_s:
        raise FieldRefused("start_time", f"makes more than {MAX_BUCKETS} buckets of {width}; ask for wider ones")
    return UsageQuery(
        start=moment(max(first, 0)),
        end=moment(max(until, first)),
        by=tuple(dimension for dimension in DIMENSIONS if dimension in by),
        width_s=width_s,
        tenants=shown_tenants(request, listed(request, "tenants")),
        keys=listed(request, "keys"),
        versions=shown_versions(request, listed(request, "versions")),
    )


def _view(request: Request, query: UsageQuery, line: UsageLine) -> UsageLineView:
    start, end = span(query.start, query.end, line.bucket, query.width_s)
    named: dict[str, str | None] = dict(zip(query.by, line.names, strict=True))
    for dimension in ("version", "model"):
        if named.get(dimension):
            named[dimension] = shown_name(request, str(named[dimension]))
    counts = {name: getattr(line.counts, name) for name in COUNTS}
    return UsageLineView(start_time=start, end_time=end, **named, **counts)


def _table(query: UsageQuery, views: Sequence[UsageLineView]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    columns = ("start_time", "end_time", *query.by, *COUNTS)
    writer.writerow(columns)
    for view in views:
        row = view.model_dump(mode="json")
        writer.writerow([harmless(row[name]) for name in columns])
    return text.getvalue()
