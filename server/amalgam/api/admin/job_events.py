"""A job's feed as server-sent events: ``state`` with the whole job, ``progress`` with counts, comments in between."""

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from amalgam.api.admin.job_models import JobView
from amalgam.api.transport.held_response import HeldResponse
from amalgam.domain.job import Job
from amalgam.services.job_feed import JobEvent, JobFeed

_EXAMPLE: Final = (
    "event: state\nid: 1.running.0\ndata: {…the job…}\n\n"
    'event: progress\nid: 1.running.84\ndata: {"attempt": 1, "modules_done": 84, "modules_total": 210}\n\n'
)
DESCRIBED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The job as it stands, then every change; ends after its final state, which has the timings",
        "content": {"text/event-stream": {"schema": {"type": "string", "examples": [_EXAMPLE]}}},
    },
    204: {"description": "Last-Event-ID names the final state: there is nothing more, and no reason to come again"},
}

_OPENING: Final = "retry: 1000\n\n"
"""It is sent at once, so that a listener who comes back to a standing job has its answer; the pause is in milliseconds.
"""
_HEARTBEAT: Final = ": alive\n\n"
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def events_response(feed: JobFeed, job: Job, request: Request) -> Response:
    """The stream of ``job``; the listener is gone when the last byte is out or the client has left."""
    last_id = request.headers.get("last-event-id")
    if last_id is not None and not job.is_live and last_id == f"{job.attempts}.{job.state}.0":
        # A browser comes back after every end until it is told not to.
        return Response(status_code=204)
    stack = AsyncExitStack()
    events = feed.follow(job.id, last_id)
    pieces = _pieces(events)
    stack.push_async_callback(events.aclose)
    stack.push_async_callback(pieces.aclose)
    return HeldResponse(StreamingResponse(pieces, media_type="text/event-stream", headers=_HEADERS), stack)


async def _pieces(events: AsyncGenerator[JobEvent | None, None]) -> AsyncGenerator[str, None]:
    yield _OPENING
    async for event in events:
        yield _HEARTBEAT if event is None else f"event: {event.kind}\nid: {event.id}\ndata: {_data(event)}\n\n"


def _data(event: JobEvent) -> str:
    if event.kind == "state" or event.progress is None:
        return JobView.of(event.job).model_dump_json()
    told = event.progress
    return json.dumps({"attempt": told.attempt, "modules_done": told.modules_done, "modules_total": told.modules_total})
