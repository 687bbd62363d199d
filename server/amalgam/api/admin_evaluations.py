"""Evaluations on the admin plane: run, follow, compare, export."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import StreamingResponse

from amalgam.api.admin_answers import ADMIN_KEY
from amalgam.api.error_document import ERRORS
from amalgam.api.evaluation_export import EXPORTED, export_csv, export_json
from amalgam.api.evaluation_models import (
    ComparisonPageView,
    EvaluationBody,
    EvaluationDeletedView,
    EvaluationPageView,
    EvaluationReportView,
    EvaluationView,
    ItemBody,
    MeasurementView,
    ResultPageView,
)
from amalgam.api.fields import check_fields
from amalgam.api.state import services
from amalgam.api.strict_json import StrictRoute
from amalgam.domain.evaluation import EvaluationDraft, EvaluationItem, EvaluationKind
from amalgam.errors.requests import FieldRefused

EVALUATION_ID: Final = r"^[A-Za-z0-9._-]{1,64}$"
_Id = Annotated[str, Path(pattern=EVALUATION_ID, description="evaluation or sweep id")]
_Kind = Annotated[EvaluationKind | None, Query(description="of this kind alone")]
_Target = Annotated[str, Query(min_length=1, max_length=1024, description="a target: its place or its model")]


def read_items(bodies: Sequence[ItemBody]) -> tuple[EvaluationItem, ...]:
    """The items, each within the bounds of a client's request.

    Raises:
        FieldRefused: of the first item at fault, by its place.
    """
    return tuple(_item(index, body) for index, body in enumerate(bodies))


def _item(index: int, body: ItemBody) -> EvaluationItem:
    try:
        item = body.item()
        if item.messages is not None:
            check_fields("chat_completions", {"messages": [dict(message) for message in item.messages]})
        else:
            check_fields("completions", {"prompt": item.prompt})
    except FieldRefused as error:
        raise FieldRefused(f"items.{index}", error.message) from None
    except ValueError:
        raise FieldRefused(f"items.{index}", "must have either 'messages' or 'prompt'") from None
    return item


def router() -> APIRouter:
    """The routes below ``/admin/v1/evaluations``."""
    routes = APIRouter(
        prefix="/admin/v1",
        tags=["Evaluations"],
        responses=ERRORS,
        dependencies=[Depends(ADMIN_KEY)],
        route_class=StrictRoute,
    )
    _add_writing(routes)
    _add_reading(routes)
    _add_results(routes)
    _add_export(routes)
    return routes


def _add_writing(routes: APIRouter) -> None:
    @routes.post("/evaluations", status_code=202, summary="Ask items of targets, beside serving")
    async def create(request: Request, body: EvaluationBody) -> EvaluationView:
        evaluations = services(request).evaluations
        draft = EvaluationDraft(
            kind="evaluation",
            label=body.label,
            targets=tuple(evaluations.pin(model) for model in body.targets),
            items=read_items(body.items),
            metrics=tuple(dict.fromkeys(body.metrics)),
            max_tokens=body.max_tokens,
        )
        return EvaluationView.of(await evaluations.submit(draft))

    @routes.post("/evaluations/{evaluation_id}:cancel", summary="Stop an evaluation; its results stay")
    async def cancel(request: Request, evaluation_id: _Id) -> EvaluationView:
        return EvaluationView.of(await services(request).evaluations.cancel(evaluation_id))

    @routes.post("/evaluations/{evaluation_id}:resume", summary="Go on with an interrupted or failed evaluation")
    async def resume(request: Request, evaluation_id: _Id) -> EvaluationView:
        return EvaluationView.of(await services(request).evaluations.resume(evaluation_id))

    @routes.delete("/evaluations/{evaluation_id}", summary="Forget an evaluation and its results")
    async def delete(request: Request, evaluation_id: _Id) -> EvaluationDeletedView:
        await services(request).evaluations.delete(evaluation_id)
        return EvaluationDeletedView(deleted=evaluation_id)


def _add_reading(routes: APIRouter) -> None:
    @routes.get("/evaluations", summary="List evaluations and sweeps, newest first")
    async def list_evaluations(
        request: Request,
        kind: _Kind = None,
        limit: int = Query(50, ge=1, le=500),
        cursor: str | None = Query(None, pattern=EVALUATION_ID),
    ) -> EvaluationPageView:
        page = await services(request).evaluations.list(kind, limit, cursor)
        return EvaluationPageView(data=tuple(map(EvaluationView.of, page.items)), next_cursor=page.next_cursor)

    @routes.get("/evaluations/{evaluation_id}", summary="One evaluation, with its means so far")
    async def show(request: Request, evaluation_id: _Id) -> EvaluationReportView:
        evaluations = services(request).evaluations
        evaluation = await evaluations.get(evaluation_id)
        cells, refused = await evaluations.table(evaluation_id)
        return EvaluationReportView.of(evaluation, cells, refused)


def _add_results(routes: APIRouter) -> None:
    @routes.get("/evaluations/{evaluation_id}/results", summary="Its measurements, with answers")
    async def results(
        request: Request,
        evaluation_id: _Id,
        target: int | None = Query(None, ge=0, le=10_000, description="of this target alone, by its place"),
        limit: int = Query(100, ge=1, le=500),
        cursor: str | None = Query(None, pattern=r"^[0-9]{1,5}\.[0-9]{1,5}$"),
    ) -> ResultPageView:
        evaluations = services(request).evaluations
        evaluation = await evaluations.get(evaluation_id)
        last_target, _, last_item = (cursor or "").partition(".")
        after = (int(last_target), int(last_item)) if cursor else None
        found = await evaluations.results(evaluation_id, target=target, after=after, limit=limit + 1)
        page = found[:limit]
        next_cursor = f"{page[-1].target}.{page[-1].item}" if len(found) > limit else None
        return ResultPageView(data=tuple(MeasurementView.of(evaluation, one) for one in page), next_cursor=next_cursor)

    @routes.get("/evaluations/{evaluation_id}/compare", summary="Two targets, item by item")
    async def compare(
        request: Request,
        evaluation_id: _Id,
        baseline: _Target,
        candidate: _Target,
        other: str | None = Query(
            None, pattern=EVALUATION_ID, description="take the baseline from this evaluation of the same items"
        ),
    ) -> ComparisonPageView:
        rows = await services(request).evaluations.compare(evaluation_id, baseline, candidate, other)
        return ComparisonPageView.of(rows)


def _add_export(routes: APIRouter) -> None:
    @routes.get(
        "/evaluations/{evaluation_id}/export",
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
