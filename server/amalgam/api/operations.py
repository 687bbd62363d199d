"""Probes, metrics and version: what orchestrators and operators ask."""

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from amalgam import __version__
from amalgam.api.error_document import ERRORS
from amalgam.api.state import services


def router() -> APIRouter:
    """``/livez``, ``/readyz``, ``/metrics``, ``/version``."""
    routes = APIRouter(tags=["Operations"], responses=ERRORS)

    @routes.get("/livez", summary="Whether the process answers")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @routes.get("/readyz", summary="Whether requests can be served")
    async def readyz(request: Request) -> JSONResponse:
        state = services(request).engine.state
        ready = state == "ready"
        headers = {} if ready else {"Retry-After": "1"}
        return JSONResponse({"status": state}, status_code=200 if ready else 503, headers=headers)

    @routes.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        house = services(request)
        info = house.engine.info()
        snapshot = house.catalog.snapshot
        house.metrics.engine_ready.set(info.state == "ready")
        house.metrics.engine_restarts.set(info.restarts)
        house.metrics.resident.set(len(info.residents))
        house.metrics.registered.set(len(snapshot.versions))
        house.metrics.revision.set(snapshot.revision)
        return Response(house.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/version", summary="Version of this server and of its engine")
    async def version() -> dict[str, Any]:
        return {"version": __version__}

    return routes
