"""Evaluations on the admin plane: run, follow, compare, export."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import StreamingResponse

from amalgam.api.access import caller_of
from amalgam.api.admin.audited import made
from amalgam.api.admin.evaluation_export import EXPORTED, export_csv, export_json
from amalgam.api.admin.evaluation_models import (
    ComparisonPageView,
    EvaluationBody,
    EvaluationDeletedView,
    EvaluationPageView,
    EvaluationReportView,
    EvaluationView,
    ItemBody,
    ItemPageView,
    ItemView,
    MeasurementView,
    ResultPageView,
)
from amalgam.api.admin.in_scope import covered_page, require_evaluation, scopes_of, shows_evaluation, tenant_of
from amalgam.api.admin.kit import ID_PATTERN, PUBLISHES, READS, IdCursor, ShortLimit, admin_router
from amalgam.api.fields.by_endpoint import check_fields
from amalgam.api.state import services
from amalgam.domain.evaluation import EvaluationDraft, EvaluationItem, EvaluationKind
from amalgam.errors.requests import FieldRefused

_Id = Annotated[str, Path(pattern=ID_PATTERN, description="evaluation or sweep id")]
_Kind = Annotated[EvaluationKind | None, Query(description="those of this kind alone")]
_Target = Annotated[str, Query(min_length=1, max_length=1024, description="a target: its place or its model")]


def read_items(bodies: Sequence[ItemBody], place: str = "items") -> tuple[EvaluationItem, ...]:
    """The items, each within the bounds of a client's request.

    Args:
        bodies: as they came.
        place: where in the request.

    Raises:
        FieldRefused: of the first item at fault, by its place.
    """
    return tuple(read_item(f"{place}.{index}", body.item) for index, body in enumerate(bodies))


def read_item(place: str, made: Callable[[], EvaluationItem]) -> EvaluationItem:
    """The item that a request describes at ``place``, once what it asks is checked like a client's request.

    Raises:
        FieldRefused: of the item, by its place.
    """
    try:
        item = made()
        if item.messages is not None:
            check_fields("chat_completions", {"messages": [dict(message) for message in item.messages]})
        else:
            check_fields("completions", {"prompt": item.prompt})
    except FieldRefused as error:
        raise FieldRefused(place, error.message) from None
    except ValueError:
        raise FieldRefused(place, "must have either 'messages' or 'prompt'") from None
    return item


def router() -> APIRouter:
    """The routes below ``/admin/v1/evaluations``."""
    routes = admin_router("Evaluations")
    _add_writing(routes)
    _add_reading(routes)
    _add_items(routes)
    _add_results(routes)
    _add_export(routes)
    return routes


def _add_writing(routes: APIRouter) -> None:
    @routes.post("/evaluations", dependencies=PUBLISHES, status_code=202, summary="Ask items of targets, while serving")
    async def create(request: Request, body: EvaluationBody) -> EvaluationView:
        evaluations = services(request).evaluations
        whose = (scopes_of(request), tenant_of(request))
        draft = EvaluationDraft(
            kind="evaluation",
            label=body.label,
            targets=tuple([await evaluations.find(model, *whose) for model in body.targets]),
            items=read_items(body.items),
            metrics=tuple(dict.fromkeys(body.metrics)),
            max_tokens=body.max_tokens,
            tenant=tenant_of(request),
            key_id=caller_of(request).key_id,
        )
        evaluation = await evaluations.submit(draft)
        made(request, evaluation.id)
        return EvaluationView.of(evaluation)

    @routes.post(
        "/evaluations/{evaluation_id}:cancel", dependencies=PUBLISHES, summary="Stop an evaluation; its results stay"
    )
    async def cancel(request: Request, evaluation_id: _Id) -> EvaluationView:
        return EvaluationView.of(await services(request).evaluations.cancel(evaluation_id))

    @routes.post(
        "/evaluations/{evaluation_id}:resume",
        dependencies=PUBLISHES,
        summary="Go on with an interrupted or failed evaluation",
    )
    async def resume(request: Request, evaluation_id: _Id) -> EvaluationView:
        return EvaluationView.of(await services(request).evaluations.resume(evaluation_id))

    @routes.delete(
        "/evaluations/{evaluation_id}", dependencies=PUBLISHES, summary="Forget an evaluation and its results"
    )
    async def delete(request: Request, evaluation_id: _Id) -> EvaluationDeletedView:
        await services(request).evaluations.delete(evaluation_id)
        return EvaluationDeletedView(deleted=evaluation_id)


def _add_reading(routes: APIRouter) -> None:
    @routes.get("/evaluations", dependencies=READS, summary="List evaluations and sweeps, newest first")
    async def list_evaluations(
        request: Request, kind: _Kind = None, limit: ShortLimit = 50, cursor: IdCursor = None
    ) -> EvaluationPageView:
        is_shown = None if scopes_of(request).has_every_name else shows_evaluation(request)
        read = partial(services(request).evaluations.list, kind)
        found, next_cursor = await covered_page(read, limit, cursor, is_shown, lambda evaluation: evaluation.id)
        return EvaluationPageView.of(found, EvaluationView.of, next_cursor)

    @routes.get("/evaluations/{evaluation_id}", dependencies=READS, summary="One evaluation, with its means so far")
    async def show(request: Request, evaluation_id: _Id) -> EvaluationReportView:
        evaluations = services(request).evaluations
        evaluation = await evaluations.get(evaluation_id)
        cells, refused = await evaluations.table(evaluation_id)
        return EvaluationReportView.of(evaluation, cells, refused)


def _add_items(routes: APIRouter) -> None:
    @routes.get("/evaluations/{evaluation_id}/items", dependencies=READS, summary="What is asked")
    async def items(
        request: Request,
        evaluation_id: _Id,
        limit: ShortLimit = 100,
        cursor: str | None = Query(None, pattern=r"^[0-9]{1,5}$"),
    ) -> ItemPageView:
        found = await services(request).evaluations.items(evaluation_id)
        first = 0 if cursor is None else int(cursor) + 1
        page = list(enumerate(found))[first : first + limit]
        next_cursor = str(page[-1][0]) if page and page[-1][0] + 1 < len(found) else None
        return ItemPageView.of(page, lambda pair: ItemView.of(*pair), next_cursor)


def _add_results(routes: APIRouter) -> None:
    @routes.get("/evaluations/{evaluation_id}/results", dependencies=READS, summary="Its measurements, with answers")
    async def results(
        request: Request,
        evaluation_id: _Id,
        target: int | None = Query(
            None, ge=0, le=10_000, description="measurements of this target alone, by its place"
        ),
        limit: ShortLimit = 100,
        cursor: str | None = Query(None, pattern=r"^[0-9]{1,5}\.[0-9]{1,5}$"),
    ) -> ResultPageView:
        evaluations = services(request).evaluations
        evaluation = await evaluations.get(evaluation_id)
        last_target, _, last_item = (cursor or "").partition(".")
        after = (int(last_target), int(last_item)) if cursor else None
        found = await evaluations.results(evaluation_id, target=target, after=after, limit=limit + 1)
        page = found[:limit]
        next_cursor = f"{page[-1].target}.{page[-1].item}" if len(found) > limit else None
        return ResultPageView.of(page, partial(MeasurementView.of, evaluation), next_cursor)

    @routes.get("/evaluations/{evaluation_id}/compare", dependencies=READS, summary="Two targets, item by item")
    async def compare(
        request: Request,
        evaluation_id: _Id,
        baseline: _Target,
        candidate: _Target,
        other: str | None = Query(
            None, pattern=ID_PATTERN, description="take the baseline from this evaluation of the same items"
        ),
    ) -> ComparisonPageView:
        if other is not None:
            await require_evaluation(request, other)
        rows = await services(request).evaluations.compare(evaluation_id, baseline, candidate, other)
        return ComparisonPageView.of(rows)


def _add_export(routes: APIRouter) -> None:
    @routes.get(
        "/evaluations/{evaluation_id}/export",
        dependencies=READS,
        summary="All of it as JSON or CSV",
        response_class=StreamingResponse,
        responses=EXPORTED,
    )
    async def export(
        request: Request, evaluation_id: _Id, form: Literal["json", "csv"] = Query("json", alias="format")
    ) -> StreamingResponse:
        evaluations = services(request).evaluations
        evaluation = await evaluations.get(evaluation_id)
        return await (export_csv if form == "csv" else export_json)(evaluations, evaluation)
