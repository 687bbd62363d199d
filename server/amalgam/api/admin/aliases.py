"""Aliases on the admin plane: set, show, list, roll back, delete."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import JSONResponse

from amalgam.api.admin.alias_models import (
    MAX_REVISION,
    AliasBody,
    AliasChangeView,
    AliasDeletedView,
    AliasHistoryView,
    AliasPageView,
    AliasView,
    RollbackBody,
)
from amalgam.api.admin.in_scope import covered_page, scopes_of, shown_alias
from amalgam.api.admin.kit import PUBLISHES, READS, WHOLE_NAME, LongLimit, NameCursor, Search, admin_router
from amalgam.api.admin.router_examples import examples_of
from amalgam.api.admin.router_models import ExamplesView, ExplainBody, ExplanationView
from amalgam.api.state import services
from amalgam.domain.alias import Alias, AliasTarget
from amalgam.domain.in_scope import shown_change
from amalgam.errors.aliases import PreconditionFailed, StaleRevision
from amalgam.errors.requests import FieldRefused
from amalgam.routing.request_text import said_in

_ETAG: Final = re.compile(r'"([1-9][0-9]{0,8})"')
_Name = Annotated[str, Path(pattern=WHOLE_NAME, description="alias", examples=["support"])]
_IfMatch = Annotated[
    str | None, Header(max_length=64, description="the ETag of the state that the change is meant for")
]
_IfNoneMatch = Annotated[str | None, Header(max_length=64, description="* where the alias must be new")]
_SET: dict[int | str, dict[str, Any]] = {
    200: {"model": AliasView, "description": "The alias means this now, or did already"},
    201: {"model": AliasView, "description": "The alias is new"},
}


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


def _answer(request: Request, alias: Alias, status: int = 200) -> JSONResponse:
    body = AliasView.of(shown_alias(request, alias)).model_dump()
    return JSONResponse(body, status_code=status, headers={"ETag": f'"{alias.revision}"'})


def router() -> APIRouter:
    """The routes below ``/admin/v1/aliases``."""
    routes = admin_router("Aliases")
    _add_writing(routes)
    _add_reading(routes)
    return routes


async def _put(request: Request, name: str, body: AliasBody, expected: int | None) -> tuple[Alias, bool]:
    found, scopes = services(request), scopes_of(request)
    if body.router is not None:
        spec = body.router.spec(found.catalog.base.served_name, await examples_of(request, body.router))
        return await found.aliases.put_router(name, spec, expected=expected, scopes=scopes)
    targets = [AliasTarget(model=target.model, weight=target.weight) for target in body.targets or ()]
    return await found.aliases.put(name, targets, expected=expected, scopes=scopes)


def _add_writing(routes: APIRouter) -> None:
    @routes.put(
        "/aliases/{name}",
        dependencies=PUBLISHES,
        summary="Make a name mean targets, by weight or by content",
        responses=_SET,
    )
    async def put(
        request: Request,
        name: _Name,
        body: AliasBody,
        if_match: _IfMatch = None,
        if_none_match: _IfNoneMatch = None,
    ) -> JSONResponse:
        with _expectation(body.revision, if_match, if_none_match) as expected:
            alias, created = await _put(request, name, body, expected)
        return _answer(request, alias, 201 if created else 200)

    @routes.post(
        "/aliases/{name}:rollback",
        dependencies=PUBLISHES,
        summary="Bring back what it meant before",
        responses={200: _SET[200]},
    )
    async def rollback(
        request: Request, name: _Name, body: RollbackBody | None = None, if_match: _IfMatch = None
    ) -> JSONResponse:
        body = body or RollbackBody()
        with _expectation(body.revision, if_match) as expected:
            alias = await services(request).aliases.rollback(
                name, to_revision=body.to_revision, expected=expected, scopes=scopes_of(request)
            )
        return _answer(request, alias)

    @routes.delete("/aliases/{name}", dependencies=PUBLISHES, summary="Delete an alias; its history stays")
    async def delete(request: Request, name: _Name, if_match: _IfMatch = None) -> AliasDeletedView:
        with _expectation(None, if_match) as expected:
            alias = await services(request).aliases.delete(name, expected=expected)
        return AliasDeletedView(deleted=alias.name)


def _add_reading(routes: APIRouter) -> None:
    @routes.get("/aliases", dependencies=READS, summary="List aliases")
    async def list_aliases(
        request: Request, search: Search = "", limit: LongLimit = 100, cursor: NameCursor = None
    ) -> AliasPageView:
        scopes = scopes_of(request)
        is_shown = None if scopes.has_every_name else lambda alias: scopes.name(alias.name)
        read = partial(services(request).aliases.list, search)
        found, next_cursor = await covered_page(read, limit, cursor, is_shown, lambda alias: alias.name)
        return AliasPageView.of(found, lambda alias: AliasView.of(shown_alias(request, alias)), next_cursor)

    @routes.get("/aliases/{name}", dependencies=READS, summary="One alias", responses={200: {"model": AliasView}})
    async def show(request: Request, name: _Name) -> JSONResponse:
        return _answer(request, await services(request).aliases.get(name))

    @routes.post("/aliases/{name}:explain", dependencies=PUBLISHES, summary="How a router decides about a prompt")
    async def explain(request: Request, name: _Name, body: ExplainBody) -> ExplanationView:
        said = said_in({"prompt": body.prompt} if body.messages is None else {"messages": list(body.messages)})
        return ExplanationView.of(await services(request).aliases.explain(name, said, scopes_of(request)))

    @routes.get("/aliases/{name}/examples", dependencies=PUBLISHES, summary="What a router was fitted with")
    async def examples(request: Request, name: _Name) -> ExamplesView:
        found = await services(request).aliases.examples(name, scopes_of(request))
        return ExamplesView(examples={target: tuple(texts) for target, texts in found.items()})

    @routes.get("/aliases/{name}/history", dependencies=READS, summary="What it meant, newest first")
    async def history(
        request: Request,
        name: _Name,
        limit: LongLimit = 50,
        cursor: int | None = Query(None, ge=1, le=MAX_REVISION),
    ) -> AliasHistoryView:
        page, scopes = await services(request).aliases.history(name, limit, cursor), scopes_of(request)
        names = services(request).catalog.base.names
        data = tuple(AliasChangeView.of(shown_change(change, scopes, names)) for change in page.items)
        return AliasHistoryView(data=data, next_cursor=page.next_cursor)
