"""How what a job makes is answered: by the result, as soon as it is there, or by the job that will make it."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

from fastapi import Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse

from amalgam.api.admin.adapter_models import VersionView
from amalgam.api.admin.audited import made
from amalgam.api.admin.job_models import JobAccepted, JobView
from amalgam.api.state import services
from amalgam.domain.job import Job
from amalgam.services.merges import MergeAnswer

MAX_WAIT_S: Final = 600.0
WaitForVersion = Annotated[
    float, Query(ge=0, le=MAX_WAIT_S, description="answer with the version if it is there in time")
]
MERGED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": VersionView, "description": "This recipe was built under this name before; nothing is new"},
    201: {"model": VersionView, "description": "Built within wait_s, and answering"},
    202: {"model": JobAccepted, "description": "Queued, or being built"},
}


def note_job(request: Request, job: Job | None) -> None:
    """Record the job that a request queued, or joined; where there is none, nothing is new."""
    if job is not None:
        made(request, job.id)


async def job_or_result(
    request: Request,
    job: Job | None,
    result: BaseModel | None,
    wait_s: float,
    finished: Callable[[Job], Awaitable[BaseModel]],
    accepted: Callable[..., JobAccepted] = JobAccepted,
) -> JSONResponse:
    """200 with a result that was there before, 201 with one that the job has made in time, else 202 with the job.

    Args:
        request: that asked.
        job: the one that will make it; None where the result is there.
        result: what was there before; None where a job is needed.
        wait_s: longest wait for the result, seconds.
        finished: the result of a job that has ended; raises where it failed.
        accepted: makes the answer 202 of the ``job`` that it shows.

    Raises:
        ReportedError: within that time, the job failed or was cancelled.
    """
    if result is None and job is not None and wait_s > 0:
        job = await services(request).merges.wait(job.id, wait_s)
        if not job.is_live:
            result = await finished(job)
    if result is not None:
        return JSONResponse(result.model_dump(), status_code=201 if job else 200)
    assert job is not None
    # Below the prefix that a proxy serves this server under.
    place = {"Location": f"{request.scope.get('root_path', '')}/admin/v1/jobs/{job.id}"}
    return JSONResponse(accepted(job=JobView.of(job)).model_dump(), status_code=202, headers=place)


async def merge_response(request: Request, answer: MergeAnswer, wait_s: float) -> JSONResponse:
    """The answer to a submitted merge, as ``MERGED`` describes it."""
    merges = services(request).merges

    async def finished(job: Job) -> VersionView:
        return VersionView.of(await merges.version_of(job))

    version = VersionView.of(answer.version) if answer.version is not None else None
    return await job_or_result(request, answer.job, version, wait_s, finished)
