"""How a submitted merge is answered: by the version, as soon as it is there, or by the job that will make it."""

from typing import Any, Final

from starlette.responses import JSONResponse

from amalgam.api.admin_answers import JobAccepted
from amalgam.api.admin_models import JobView, VersionView
from amalgam.services.merges import MergeAnswer, MergeService

MAX_WAIT_S: Final = 600.0
WAIT: Final = "answer with the version if it is there in time"
SUBMITTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": VersionView, "description": "This recipe was built under this name before; nothing is new"},
    201: {"model": VersionView, "description": "Built within wait_s, and answering"},
    202: {"model": JobAccepted, "description": "Queued, or being built"},
}


async def merge_response(merges: MergeService, answer: MergeAnswer, wait_s: float) -> JSONResponse:
    """200, 201 or 202, as ``SUBMITTED`` describes them.

    Args:
        merges: that took the merge.
        answer: what it said.
        wait_s: longest wait for the version, seconds.

    Raises:
        JobFailed: within that time, the job failed or was cancelled.
    """
    version, job = answer.version, answer.job
    if version is None and job is not None and wait_s > 0:
        job = await merges.wait(job.id, wait_s)
        if not job.is_live:
            version = await merges.version_of(job)
    if version is not None:
        return JSONResponse(VersionView.of(version).model_dump(), status_code=201 if job else 200)
    assert job is not None
    location = {"Location": f"/admin/v1/jobs/{job.id}"}
    return JSONResponse({"job": JobView.of(job).model_dump()}, status_code=202, headers=location)
