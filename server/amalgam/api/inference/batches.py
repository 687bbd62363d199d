"""`/v1/batches`: files of requests, answered while there is capacity to spare, in OpenAI's shapes."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query, Request

from amalgam.api.access import CLIENT
from amalgam.api.admin.kit import ID_PATTERN
from amalgam.api.errors import ERRORS
from amalgam.api.fields.strict_json import StrictRoute
from amalgam.api.inference.batch_models import BatchBody, BatchListView, BatchView
from amalgam.api.inference.openai import ENDPOINT_PATHS
from amalgam.api.inference.owner import owner_of
from amalgam.api.state import services
from amalgam.domain.batch import BatchDraft
from amalgam.domain.stored_file import KEPT_S
from amalgam.errors.requests import EndpointUnsupported

BATCHES_PATH: Final = "/v1/batches"
BatchId = Annotated[str, Path(pattern=ID_PATTERN, description="id of a batch", examples=["batch_8f14e45fceea4e6f"])]


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(responses=ERRORS, dependencies=[Depends(CLIENT)], tags=["OpenAI plane"], route_class=StrictRoute)

    @routes.post(BATCHES_PATH, summary="Have a file of requests answered")
    async def create_batch(request: Request, body: BatchBody) -> BatchView:
        endpoint = ENDPOINT_PATHS[body.endpoint]
        if not services(request).engine.supports(endpoint):
            raise EndpointUnsupported(endpoint)
        expires = body.output_expires_after
        kept_s = KEPT_S if expires is None else expires.seconds
        draft = BatchDraft(body.endpoint, body.input_file_id, kept_s, body.metadata)
        return BatchView.of(await services(request).batches.create(owner_of(request), draft))

    @routes.get(BATCHES_PATH, summary="Batches, newest first")
    async def list_batches(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(pattern=ID_PATTERN, description="last_id of the page before")] = None,
    ) -> BatchListView:
        return BatchListView.of(await services(request).batches.list(owner_of(request), limit, after))

    @routes.get(f"{BATCHES_PATH}/{{batch_id}}", summary="One batch")
    async def show_batch(request: Request, batch_id: BatchId) -> BatchView:
        return BatchView.of(await services(request).batches.get(owner_of(request), batch_id))

    @routes.post(f"{BATCHES_PATH}/{{batch_id}}/cancel", summary="Have a batch end with what it has")
    async def cancel_batch(request: Request, batch_id: BatchId) -> BatchView:
        return BatchView.of(await services(request).batches.cancel(owner_of(request), batch_id))

    return routes
