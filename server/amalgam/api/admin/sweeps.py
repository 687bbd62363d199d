"""Sweeps on the admin plane: search over merges, see what came of it, make the winner last."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import JSONResponse

from amalgam.api.access import caller_of
from amalgam.api.admin.audited import made
from amalgam.api.admin.evaluation_models import EvaluationView
from amalgam.api.admin.evaluations import read_items
from amalgam.api.admin.in_scope import require_new_name, scopes_of, tenant_of
from amalgam.api.admin.job_answers import MERGED, WaitForVersion, merge_response, note_job
from amalgam.api.admin.kit import ID_PATTERN, PUBLISHES, READS, admin_router
from amalgam.api.admin.sweep_models import PromoteBody, SweepBody, SweepReportView
from amalgam.api.state import services
from amalgam.domain.evaluation import EvaluationItem
from amalgam.services.sweeps import SweepOrder
from amalgam.services.weight_sweeps import WeightOrder

_Id = Annotated[str, Path(pattern=ID_PATTERN, description="sweep id")]


def router() -> APIRouter:
    """The routes below ``/admin/v1/sweeps``."""
    routes = admin_router("Evaluations")
    _add_searches(routes)
    _add_promotion(routes)
    return routes


def _add_searches(routes: APIRouter) -> None:
    @routes.post(
        "/sweeps",
        dependencies=PUBLISHES,
        status_code=202,
        summary="Search over merges, each tried as a blend on the same items",
    )
    async def create(request: Request, body: SweepBody) -> EvaluationView:
        sweeps, items = services(request).sweeps, read_items(body.items)
        tasks = {name: (task.adapter, task.metric) for name, task in body.tasks.items()}
        if body.search.kind == "weights":
            evaluation = await sweeps.search_weights(weight_order(request, body, items, tasks))
        else:
            evaluation = await sweeps.submit(sweep_order(request, body, items, tasks))
        made(request, evaluation.id)
        return EvaluationView.of(evaluation)

    @routes.get(
        "/sweeps/{sweep_id}", dependencies=READS, summary="One sweep: every candidate, the Pareto front, the winner"
    )
    async def show(request: Request, sweep_id: _Id) -> SweepReportView:
        return SweepReportView.of(await services(request).sweeps.report(sweep_id))


def sweep_order(
    request: Request, body: SweepBody, items: tuple[EvaluationItem, ...], tasks: Mapping[str, tuple[str, str]]
) -> SweepOrder:
    """What is to be tried, all of it known."""
    return SweepOrder(
        label=body.label,
        tasks=tasks,
        items=items,
        search=body.search.search(),
        asked=body.search.model_dump(mode="json", by_alias=True),
        max_tokens=body.max_tokens,
        scopes=scopes_of(request),
        tenant=tenant_of(request),
        key_id=caller_of(request).key_id,
    )


def weight_order(
    request: Request, body: SweepBody, items: tuple[EvaluationItem, ...], tasks: Mapping[str, tuple[str, str]]
) -> WeightOrder:
    """A search whose candidates follow from those before."""
    return WeightOrder(
        label=body.label,
        recipe=body.search.recipe(adapter for adapter, _ in tasks.values()),
        tasks=tasks,
        items=items,
        candidates=body.search.trials,
        budget_s=body.search.budget_s,
        seed=body.search.seed,
        max_tokens=body.max_tokens,
        asked=body.search.model_dump(mode="json", by_alias=True),
        scopes=scopes_of(request),
        tenant=tenant_of(request),
        key_id=caller_of(request).key_id,
    )


def _add_promotion(routes: APIRouter) -> None:
    @routes.post(
        "/sweeps/{sweep_id}:promote",
        dependencies=PUBLISHES,
        status_code=202,
        summary="Make the winner, or another candidate, an adapter: an ordinary merge",
        responses=MERGED,
    )
    async def promote(request: Request, sweep_id: _Id, body: PromoteBody, wait_s: WaitForVersion = 0.0) -> JSONResponse:
        require_new_name(request, body.name)
        answer = await services(request).sweeps.promote(
            sweep_id,
            body.name,
            body.candidate,
            set_default=body.set_default,
            scopes=scopes_of(request),
            stored_by=caller_of(request).stored_by,
        )
        note_job(request, answer.job)
        return await merge_response(request, answer, wait_s)
