"""Aliases on the admin plane: set, show, list, roll back, delete."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from starlette.responses import JSONResponse

from amalgam.api.admin_answers import ADMIN_KEY
from amalgam.api.alias_models import (
    AliasBody,
    AliasChangeView,
    AliasDeletedView,
    AliasHistoryView,
    AliasPageView,
    AliasView,
    RollbackBody,
)
from amalgam.api.error_document import ERRORS
from amalgam.api.state import services
from amalgam.api.strict_json import StrictRoute
from amalgam.domain.adapter import NAME_PATTERN
from amalgam.domain.alias import Alias, AliasTarget
from amalgam.errors.aliases import StaleRevision
from amalgam.errors.requests import FieldRefused

_MAX_REVISION: Final = (1 << 31) - 1
_ETAG: Final = re.compile(r'"([1-9][0-9]{0,8})"')
_Name = Annotated[str, Path(pattern=f"^{NAME_PATTERN}$", description="alias", examples=["support"])]
_IfMatch = Annotated[
    str | None, Header(max_length=64, description="the ETag of the state that the change is meant for")
]
_IfNoneMatch = Annotated[str | None, Header(max_length=64, description="* where the alias must be new")]
_SET: dict[int | str, dict[str, Any]] = {
    200: {"model": AliasView, "description": "The alias means this now, or did already"},
    201: {"model": AliasView, "description": "The alias is new"},
}


class PreconditionFailed(StaleRevision):
    """`StaleRevision` where the state was named in a header."""

    status = 412
    param = "If-Match"


@contextmanager
def _expectation(revision: int | None, if_match: str | None, if_none_match: str | None = None) -> Iterator[int | None]:
    """The revision that a change is meant for: of the body, of ``If-Match``, or 0 of ``If-None-Match: *``.

    Raises:
        FieldRefused: a header that names no single state, or two that disagree.
        PreconditionFailed: what the block raised as StaleRevision, where a header named the state.
    """
    named = [] if revision is None else [revision]
    if if_match is not None:
        found = _ETAG.fullmatch(if_match.strip())
        if found is None:
            raise FieldRefused("If-Match", "must be one revision in quotation marks, as the header ETag gives it")
        named.append(int(found[1]))
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise FieldRefused("If-None-Match", "must be *, for an alias that is new")
        named.append(0)
    if len(set(named)) > 1:
        raise FieldRefused("revision", "and the headers If-Match and If-None-Match must agree")
    try:
        yield named[0] if named else None
    except StaleRevision as error:
        if if_match is None and if_none_match is None:
            raise
        raise PreconditionFailed(error.name, error.expected, error.current) from error


def _answer(alias: Alias, status: int = 200) -> JSONResponse:
    body = AliasView.of(alias).model_dump()
    return JSONResponse(body, status_code=status, headers={"ETag": f'"{alias.revision}"'})


def router() -> APIRouter:
    """The routes below ``/admin/v1/aliases``."""
    routes = APIRouter(
        prefix="/admin/v1",
        tags=["Aliases"],
        responses=ERRORS,
        dependencies=[Depends(ADMIN_KEY)],
        route_class=StrictRoute,
    )
    _add_writing(routes)
    _add_reading(routes)
    return routes


def _add_writing(routes: APIRouter) -> None:
    @routes.put("/aliases/{name}", summary="Make a name mean weighted targets", responses=_SET)
    async def put(
        request: Request,
        name: _Name,
        body: AliasBody,
        if_match: _IfMatch = None,
        if_none_match: _IfNoneMatch = None,
    ) -> JSONResponse:
        targets = [AliasTarget(model=target.model, weight=target.weight) for target in body.targets]
        with _expectation(body.revision, if_match, if_none_match) as expected:
            alias, created = await services(request).aliases.put(name, targets, expected=expected)
        return _answer(alias, 201 if created else 200)

    @routes.post("/aliases/{name}:rollback", summary="Bring back what it meant before", responses={200: _SET[200]})
    async def rollback(
        request: Request, name: _Name, body: RollbackBody | None = None, if_match: _IfMatch = None
    ) -> JSONResponse:
        body = body or RollbackBody()
        with _expectation(body.revision, if_match) as expected:
            alias = await services(request).aliases.rollback(name, to_revision=body.to_revision, expected=expected)
        return _answer(alias)

    @routes.delete("/aliases/{name}", summary="Delete an alias; its history stays")
    async def delete(request: Request, name: _Name, if_match: _IfMatch = None) -> AliasDeletedView:
        with _expectation(None, if_match) as expected:
            alias = await services(request).aliases.delete(name, expected=expected)
        return AliasDeletedView(deleted=alias.name)


def _add_reading(routes: APIRouter) -> None:
    @routes.get("/aliases", summary="List aliases")
    async def list_aliases(
        request: Request,
        search: str = Query("", max_length=128, pattern=r"^[A-Za-z0-9._-]*$"),
        limit: int = Query(100, ge=1, le=1000),
        cursor: str | None = Query(None, pattern=f"^{NAME_PATTERN}$"),
    ) -> AliasPageView:
        page = await services(request).aliases.list(search, limit, cursor)
        return AliasPageView(data=tuple(AliasView.of(alias) for alias in page.items), next_cursor=page.next_cursor)

    @routes.get("/aliases/{name}", summary="One alias", responses={200: {"model": AliasView}})
    async def show(request: Request, name: _Name) -> JSONResponse:
        return _answer(await services(request).aliases.get(name))

    @routes.get("/aliases/{name}/history", summary="What it meant, newest first")
    async def history(
        request: Request,
        name: _Name,
        limit: int = Query(50, ge=1, le=1000),
        cursor: int | None = Query(None, ge=1, le=_MAX_REVISION),
    ) -> AliasHistoryView:
        page = await services(request).aliases.history(name, limit, cursor)
        data = tuple(AliasChangeView.of(change) for change in page.items)
        return AliasHistoryView(data=data, next_cursor=page.next_cursor)
