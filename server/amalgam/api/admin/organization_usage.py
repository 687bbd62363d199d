"""What was used, in the shape of OpenAI's administration API: its client library reads it as it stands."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from amalgam.api.access import READ, caller_of
from amalgam.api.errors import ERRORS
from amalgam.api.state import services
from amalgam.domain.tenant import Role
from amalgam.domain.usage import Dimension, UsageLine, UsageQuery
from amalgam.errors.requests import FieldRefused

Width = Literal["1m", "1h", "1d"]
_WIDTHS_S: Final[dict[str, int]] = {"1m": 60, "1h": 3600, "1d": 86_400}
_BUCKETS: Final[dict[str, tuple[int, int]]] = {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 31)}
"""By width, it tells how many buckets a page has where nothing is said, and at most."""
_GROUPS: Final[dict[str, Dimension]] = {"project_id": "tenant", "api_key_id": "key", "model": "version"}
_UNKNOWN_GROUPS: Final = frozenset({"user_id", "batch", "service_tier", "api_source"})
"""OpenAI's API has these groups too; what is not told apart here is null in every result."""
MAX_TIME: Final = 1 << 34
_MAX_NAMES: Final = 100


class UsageResultView(BaseModel):
    """Sums of one group in one bucket of time."""

    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int = Field(description="tokens of prompts, with those found in the cache", examples=[1200])
    output_tokens: int = Field(examples=[340])
    input_cached_tokens: int = Field(examples=[800])
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    num_model_requests: int = Field(examples=[7])
    project_id: str | None = Field(None, description="the tenant, where it is told apart")
    user_id: str | None = None
    api_key_id: str | None = Field(None, description="where it is told apart")
    model: str | None = Field(None, description="exact version, where it is told apart", examples=["sql@3"])
    batch: bool | None = None

    @classmethod
    def of(cls, request: Request, by: Sequence[str], line: UsageLine) -> "UsageResultView":
        """The view of ``line``, which tells apart ``by``, for who asks."""
        counts = line.counts
        named: dict[str, str | None] = dict(zip(by, line.names, strict=True))
        if named.get("model"):
            named["model"] = shown_name(request, str(named["model"]))
        return cls(
            input_tokens=counts.prompt_tokens,
            output_tokens=counts.completion_tokens,
            input_cached_tokens=counts.cached_tokens,
            num_model_requests=counts.requests,
            **named,
        )


class UsageBucketView(BaseModel):
    """One span of time."""

    object: Literal["bucket"] = "bucket"
    start_time: int = Field(description="Unix seconds", examples=[1767225600])
    end_time: int = Field(description="Unix seconds; not in the bucket any more", examples=[1767312000])
    results: tuple[UsageResultView, ...]


class UsagePageView(BaseModel):
    """Buckets in order of time, empty ones included."""

    object: Literal["page"] = "page"
    data: tuple[UsageBucketView, ...]
    has_more: bool
    next_page: str | None = Field(description="pass it back as page")


def listed(request: Request, name: str) -> tuple[str, ...]:
    """A parameter that is a list, however clients write it: repeated, with brackets, or with commas.

    Raises:
        FieldRefused: too many names, or one that is too long.
    """
    values = [*request.query_params.getlist(name), *request.query_params.getlist(f"{name}[]")]
    found = tuple(part.strip() for value in values for part in value.split(",") if part.strip())
    if len(found) > _MAX_NAMES or any(len(part) > 256 or "\x00" in part for part in found):
        raise FieldRefused(name, f"must be at most {_MAX_NAMES} names of at most 256 characters")
    return found


def shown_tenants(request: Request, asked: Sequence[str]) -> tuple[str, ...]:
    """The tenants whose usage the caller may see, of those that are asked for; empty: all.

    A tenant that may not be seen has no usage, as one that does not exist.
    """
    caller = caller_of(request)
    if Role.ADMIN in caller.roles:
        return tuple(asked)
    return (caller.tenant_id,) if not asked or caller.tenant_id in asked else ("",)


def shown_versions(request: Request, asked: Sequence[str]) -> tuple[str, ...]:
    """The versions that are asked for and that the caller may know of; empty: all.

    An alias in scope may mean what is not, and what it means is not to be found out here either.
    """
    found = tuple(name for name in asked if _is_shown(request, name))
    return found or (("",) if asked else ())


def shown_name(request: Request, version: str) -> str | None:
    """A version as the caller may see it; None where it may not be named to them."""
    return version if not version or _is_shown(request, version) else None


def _is_shown(request: Request, version: str) -> bool:
    caller = caller_of(request)
    return services(request).inference.is_shown(version, caller.scopes, caller.tenant_id)


def moment(unix_s: int) -> datetime:
    """A moment of a parameter."""
    return datetime.fromtimestamp(unix_s, UTC)


Seconds = Annotated[int, Query(ge=0, le=MAX_TIME, description="Unix seconds")]


def router() -> APIRouter:
    """The route."""
    routes = APIRouter(responses=ERRORS, dependencies=[Depends(READ)], tags=["Usage"])

    @routes.get(
        "/v1/organization/usage/completions",
        summary="Requests and tokens by time, in OpenAI's shape",
        openapi_extra={"parameters": [_list_parameter(name) for name in ("group_by", "project_ids", "models")]},
    )
    async def completions(
        request: Request,
        start_time: Seconds,
        end_time: Annotated[int | None, Query(ge=0, le=MAX_TIME, description="Unix seconds; none: now")] = None,
        bucket_width: Width = "1d",
        limit: Annotated[int | None, Query(ge=1, le=1440, description="buckets of a page")] = None,
        page: Annotated[str | None, Query(pattern=r"^page_[0-9]{1,11}$")] = None,
    ) -> UsagePageView:
        app_services = services(request)
        width_s = _WIDTHS_S[bucket_width]
        usual, most = _BUCKETS[bucket_width]
        if limit is not None and limit > most:
            raise FieldRefused("limit", f"must be at most {most} for buckets of {bucket_width}")
        by = _groups(request)
        until = int(app_services.usage.now().timestamp()) + 1 if end_time is None else end_time
        # Buckets begin where days, hours and minutes do, in UTC.
        first = (start_time if page is None else max(start_time, int(page.removeprefix("page_")))) // width_s * width_s
        count = max(0, min(limit or usual, -(-(until - first) // width_s)))
        last = first + count * width_s
        query = UsageQuery(
            start=moment(first),
            end=moment(min(last, max(until, first))),
            by=tuple(_GROUPS[name] for name in by),
            width_s=width_s,
            tenants=shown_tenants(request, listed(request, "project_ids")),
            keys=listed(request, "api_key_ids"),
            versions=shown_versions(request, listed(request, "models")),
        )
        lines = await app_services.usage.lines(query) if count else ()
        return _page(request, by, lines, first, count, width_s, last if last < until else None)

    return routes


def _list_parameter(name: str) -> dict[str, Any]:
    schema = {"type": "array", "items": {"type": "string"}}
    return {"name": name, "in": "query", "required": False, "schema": schema, "style": "form", "explode": True}


def _groups(request: Request) -> tuple[str, ...]:
    asked = dict.fromkeys(listed(request, "group_by"))
    for name in asked:
        if name not in _GROUPS and name not in _UNKNOWN_GROUPS:
            raise FieldRefused("group_by", f"must be of {', '.join(_GROUPS)}")
    return tuple(name for name in asked if name in _GROUPS)


def _page(
    request: Request,
    by: Sequence[str],
    lines: Sequence[UsageLine],
    first: int,
    count: int,
    width_s: int,
    following: int | None,
) -> UsagePageView:
    results: list[list[UsageResultView]] = [[] for _ in range(count)]
    for line in lines:
        results[line.bucket].append(UsageResultView.of(request, by, line))
    buckets = tuple(
        UsageBucketView(start_time=first + n * width_s, end_time=first + (n + 1) * width_s, results=tuple(found))
        for n, found in enumerate(results)
    )
    page = None if following is None else f"page_{following}"
    return UsagePageView(data=buckets, has_more=page is not None, next_page=page)


def span(start: datetime, end: datetime, bucket: int, width_s: int | None) -> tuple[datetime, datetime]:
    """When a bucket begins and ends."""
    if width_s is None:
        return start, end
    begin = start + timedelta(seconds=bucket * width_s)
    return begin, begin + timedelta(seconds=width_s)
