"""Sweeps on the admin plane: search over merges, see what came of it, make the winner last."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import JSONResponse

from amalgam.api.admin_answers import ADMIN_KEY
from amalgam.api.admin_evaluations import EVALUATION_ID, read_items
from amalgam.api.error_document import ERRORS
from amalgam.api.evaluation_models import EvaluationView
from amalgam.api.merge_answer import MAX_WAIT_S, SUBMITTED, WAIT, merge_response
from amalgam.api.state import services
from amalgam.api.strict_json import StrictRoute
from amalgam.api.sweep_models import PromoteBody, SweepBody, SweepReportView
from amalgam.services.sweeps import SweepOrder

_Id = Annotated[str, Path(pattern=EVALUATION_ID, description="sweep id")]


def router() -> APIRouter:
    """The routes below ``/admin/v1/sweeps``."""
    routes = APIRouter(
        prefix="/admin/v1",
        tags=["Evaluations"],
        responses=ERRORS,
        dependencies=[Depends(ADMIN_KEY)],
        route_class=StrictRoute,
    )
    _add_searches(routes)
    _add_promotion(routes)
    return routes


def _add_searches(routes: APIRouter) -> None:
    @routes.post("/sweeps", status_code=202, summary="Search over merges, each tried as a blend on the same items")
    async def create(request: Request, body: SweepBody) -> EvaluationView:
        order = SweepOrder(
            label=body.label,
            tasks={name: (task.adapter, task.metric) for name, task in body.tasks.items()},
            items=read_items(body.items),
            search=body.search.search(),
            asked=body.search.model_dump(mode="json", by_alias=True),
            max_tokens=body.max_tokens,
        )
        return EvaluationView.of(await services(request).sweeps.submit(order))

    @routes.get("/sweeps/{sweep_id}", summary="One sweep: every candidate, the Pareto front, the winner")
    async def show(request: Request, sweep_id: _Id) -> SweepReportView:
        return SweepReportView.of(await services(request).sweeps.report(sweep_id))


def _add_promotion(routes: APIRouter) -> None:
    @routes.post(
        "/sweeps/{sweep_id}:promote",
        status_code=202,
        summary="Make the winner, or another candidate, an adapter: an ordinary merge",
        responses=SUBMITTED,
    )
    async def promote(
        request: Request,
        sweep_id: _Id,
        body: PromoteBody,
        wait_s: float = Query(0.0, ge=0, le=MAX_WAIT_S, description=WAIT),
    ) -> JSONResponse:
        house = services(request)
        answer = await house.sweeps.promote(sweep_id, body.name, body.candidate, set_default=body.set_default)
        return await merge_response(house.merges, answer, wait_s)
