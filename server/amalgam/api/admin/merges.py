"""Merges and jobs on the admin plane."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from amalgam.api.access import caller_of
from amalgam.api.admin.in_scope import covered_page, require_new_name, scopes_of, shows_job
from amalgam.api.admin.job_answers import MERGED, WaitForVersion, merge_response, note_job
from amalgam.api.admin.job_events import DESCRIBED, events_response
from amalgam.api.admin.job_models import JobPageView, JobView
from amalgam.api.admin.kit import ID_PATTERN, PUBLISHES, READS, IdCursor, ShortLimit, admin_router
from amalgam.api.admin.merge_models import MergeBody, PlanView
from amalgam.api.admin.method_models import MethodListView
from amalgam.api.admin.probe_order import fitted_merge, read_probe
from amalgam.api.state import Services, services
from amalgam.merge.methods import METHODS
from amalgam.services.fits import FittedMerge

_JobId = Annotated[str, Path(pattern=ID_PATTERN, description="job id")]


def router() -> APIRouter:
    """The routes of merges and jobs."""
    routes = admin_router("Merges")
    _add_merges(routes)
    _add_jobs(routes)
    return routes


def _add_merges(routes: APIRouter) -> None:
    @routes.post(
        "/merges",
        dependencies=PUBLISHES,
        status_code=202,
        summary="Build a merged adapter and put it into service",
        responses=MERGED,
    )
    async def create(request: Request, body: MergeBody, wait_s: WaitForVersion = 0.0) -> JSONResponse:
        require_new_name(request, body.name)
        merges, scopes = services(request).merges, scopes_of(request)
        probe = await read_probe(request, body)
        if body.fit is not None:
            answer = await services(request).fits.submit(await fitted_merge(request, body, body.fit, probe))
        else:
            answer = await merges.submit(
                body.name,
                body.described(),
                set_default=body.set_default,
                scopes=scopes,
                probe=probe,
                stored_by=caller_of(request).stored_by,
            )
        note_job(request, answer.job)
        return await merge_response(request, answer, wait_s)

    @routes.post("/merges:plan", dependencies=PUBLISHES, summary="What a merge would do; build nothing")
    async def plan(
        request: Request,
        body: MergeBody,
        diagnostics: bool = Query(True, description="run the merge in the worker too, and say what came of it"),
    ) -> PlanView:
        app_services, recipe = services(request), body.described()
        require_new_name(request, body.name)
        order = await read_probe(request, body)
        if body.fit is not None:
            fitted = await fitted_merge(request, body, body.fit, order)
            return await _fit_plan(app_services, fitted, diagnostics=diagnostics)
        plan = await app_services.merges.plan(recipe, scopes=scopes_of(request))
        probe = None if order is None else await app_services.merges.pinned_probe(recipe, order)
        budget_s = app_services.settings.merging.plan_budget_s
        kept = None if probe is None else await app_services.trials.kept(plan.recipe, probe, budget_s)
        forecast = await app_services.merges.forecast(plan.recipe, budget_s) if diagnostics else None
        return PlanView.of(plan, forecast, kept)

    @routes.get("/merge-methods", dependencies=READS, summary="The merge methods with their parameters")
    async def methods() -> MethodListView:
        return MethodListView.of(METHODS.values())


async def _fit_plan(app_services: Services, order: FittedMerge, *, diagnostics: bool) -> PlanView:
    """The plan of a merge with a fit: that of its inputs as they are, and what the fit will take."""
    found = await app_services.fits.plan(order, asks_worker=diagnostics)
    budget_s = app_services.settings.merging.plan_budget_s
    forecast = await app_services.merges.forecast(found.plan.recipe, budget_s) if diagnostics else None
    return PlanView.of_fit(found, forecast)


def _add_jobs(routes: APIRouter) -> None:
    @routes.get("/jobs", dependencies=READS, summary="List jobs, newest first")
    async def list_jobs(request: Request, limit: ShortLimit = 50, cursor: IdCursor = None) -> JobPageView:
        is_shown = None if scopes_of(request).has_every_name else shows_job(request)
        read = services(request).merges.list
        found, next_cursor = await covered_page(read, limit, cursor, is_shown, lambda job: job.id)
        return JobPageView.of(found, JobView.of, next_cursor)

    @routes.get("/jobs/{job_id}", dependencies=READS, summary="One job")
    async def show(request: Request, job_id: _JobId) -> JobView:
        return JobView.of(await services(request).merges.get(job_id))

    @routes.get(
        "/jobs/{job_id}/events",
        dependencies=READS,
        summary="Follow one job: server-sent events",
        response_class=StreamingResponse,
        responses=DESCRIBED,
    )
    async def events(request: Request, job_id: _JobId) -> Response:
        merges = services(request).merges
        return events_response(merges.feed, await merges.get(job_id), request)

    @routes.post("/jobs/{job_id}:cancel", dependencies=PUBLISHES, summary="Cancel a job")
    async def cancel(request: Request, job_id: _JobId) -> JobView:
        return JobView.of(await services(request).merges.cancel(job_id))
