"""Merges and jobs on the admin plane."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from amalgam.api.admin_answers import ADMIN_KEY, JobPageView, PlanView
from amalgam.api.admin_models import JobView, MergeBody
from amalgam.api.error_document import ERRORS
from amalgam.api.job_events import DESCRIBED, events_response
from amalgam.api.merge_answer import MAX_WAIT_S, SUBMITTED, WAIT, merge_response
from amalgam.api.state import services
from amalgam.api.strict_json import StrictRoute

_JOB_ID = r"^[A-Za-z0-9._-]{1,64}$"
_JobId = Annotated[str, Path(pattern=_JOB_ID, description="job id")]


def router() -> APIRouter:
    """The routes of merges and jobs."""
    routes = APIRouter(
        prefix="/admin/v1",
        tags=["Merges"],
        responses=ERRORS,
        dependencies=[Depends(ADMIN_KEY)],
        route_class=StrictRoute,
    )
    _add_merges(routes)
    _add_jobs(routes)
    return routes


def _add_merges(routes: APIRouter) -> None:
    @routes.post(
        "/merges", status_code=202, summary="Build a merged adapter and put it into service", responses=SUBMITTED
    )
    async def create(
        request: Request,
        body: MergeBody,
        wait_s: float = Query(0.0, ge=0, le=MAX_WAIT_S, description=WAIT),
    ) -> JSONResponse:
        merges = services(request).merges
        answer = await merges.submit(body.name, body.described(), set_default=body.set_default)
        return await merge_response(merges, answer, wait_s)

    @routes.post("/merges:plan", summary="What a merge would do; build nothing")
    async def plan(
        request: Request,
        body: MergeBody,
        diagnostics: bool = Query(True, description="run the merge in the worker too, and say what came of it"),
    ) -> PlanView:
        house = services(request)
        plan = await house.merges.plan(body.described())
        if not diagnostics:
            return PlanView.of(plan, None)
        return PlanView.of(plan, await house.merges.forecast(plan.recipe, house.settings.plan_budget_s))


def _add_jobs(routes: APIRouter) -> None:
    @routes.get("/jobs", summary="List jobs, newest first")
    async def list_jobs(
        request: Request, limit: int = Query(50, ge=1, le=500), cursor: str | None = Query(None, pattern=_JOB_ID)
    ) -> JobPageView:
        page = await services(request).merges.list(limit, cursor)
        return JobPageView(data=tuple(JobView.of(job) for job in page.items), next_cursor=page.next_cursor)

    @routes.get("/jobs/{job_id}", summary="One job")
    async def show(request: Request, job_id: _JobId) -> JobView:
        return JobView.of(await services(request).merges.get(job_id))

    @routes.get(
        "/jobs/{job_id}/events",
        summary="Follow one job: server-sent events",
        response_class=StreamingResponse,
        responses=DESCRIBED,
    )
    async def events(request: Request, job_id: _JobId) -> Response:
        merges = services(request).merges
        return events_response(merges.feed, await merges.get(job_id), request)

    @routes.post("/jobs/{job_id}:cancel", summary="Cancel a job")
    async def cancel(request: Request, job_id: _JobId) -> JobView:
        return JobView.of(await services(request).merges.cancel(job_id))
