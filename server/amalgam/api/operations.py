"""Probes, metrics and version: what orchestrators and operators ask."""

import asyncio
import time
from typing import Any, Final

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from amalgam import __version__
from amalgam.api.access import ADMIN, CLIENT, METRICS, OPEN
from amalgam.api.gateway_view import gateway_view
from amalgam.api.state import Services, services
from amalgam.telemetry.server_state import ServerState

_RETRY: Final = {"Retry-After": "1"}
STALE_S: Final = 5.0
"""The registry is looked at every second; a server that has seen nothing of it for so long says so."""


def router() -> APIRouter:
    """Probes, with the names that other servers have for them; metrics, the version, the document of the API."""
    routes = APIRouter(tags=["Operations"])
    _add_probes(routes)
    _add_pages(routes)
    return routes


def _add_probes(routes: APIRouter) -> None:
    @routes.get("/livez", dependencies=[Depends(OPEN)], summary="Whether the process is of use, or is to be replaced")
    async def livez(request: Request) -> JSONResponse:
        is_down = services(request).engine.state == "down"
        return JSONResponse({"status": "down" if is_down else "alive"}, status_code=503 if is_down else 200)

    @routes.get("/readyz", dependencies=[Depends(OPEN)], summary="Whether requests can be served")
    @routes.get("/health", dependencies=[Depends(OPEN)], summary="The same, by the name that vLLM's server has for it")
    @routes.get("/ping", dependencies=[Depends(OPEN)], summary="The same, by the name that SageMaker asks for")
    async def readyz(request: Request) -> JSONResponse:
        if request.app.state.shutdown.is_stopping:
            return JSONResponse({"status": "stopping"}, status_code=503, headers=_RETRY)
        app_services = services(request)
        state, down = app_services.engine.state, app_services.loops.down
        if state != "ready":
            return JSONResponse({"status": state}, status_code=503, headers=_RETRY)
        if down:
            return JSONResponse({"status": "loops_down", "loops": list(down)}, status_code=503, headers=_RETRY)
        # Requests are served all the same, by what was known last.
        stale_s = app_services.metrics.registry_staleness_s
        stale = {"registry_staleness_s": round(stale_s, 1)} if stale_s >= STALE_S else {}
        return JSONResponse({"status": state} | stale)


def _add_pages(routes: APIRouter) -> None:
    @routes.get("/metrics", dependencies=[Depends(METRICS)], summary="Prometheus metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        app_services = services(request)
        state = server_state(app_services)
        catalog = app_services.catalog
        app_services.metrics.make_room({catalog.base.served_name, *catalog.refs}, catalog.snapshot.aliases)
        gateway = await gateway_view(app_services)
        scrape = app_services.metrics.scrape(state).beside(gateway.series(time.time()))
        pages = await app_services.engine.pages()
        # Thousands of lines: written off the event loop, which has tokens to send meanwhile.
        return Response(await asyncio.to_thread(scrape.text, engines=pages), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/version", dependencies=[Depends(CLIENT)], summary="Version of this server and of its engine")
    async def version() -> dict[str, Any]:
        return {"version": __version__}

    @routes.get("/openapi.json", dependencies=[Depends(ADMIN)], include_in_schema=False)
    async def document(request: Request) -> JSONResponse:
        # Some hundred milliseconds when it is asked for the first time.
        found = await asyncio.to_thread(request.app.openapi)
        root_path = request.scope.get("root_path", "")
        return JSONResponse(found | ({"servers": [{"url": root_path}]} if root_path else {}))


def server_state(app_services: Services) -> ServerState:
    """The parts of the page that are read when it is asked for; all of them in memory, so that it waits for nobody."""
    info = app_services.engine.info()
    snapshot = app_services.catalog.snapshot
    return ServerState(
        engine_ready=info.state == "ready",
        engine_restarts=info.restarts,
        engine_start_s=dict(info.startup_s),
        artifacts_damaged=app_services.adapters.found_damaged,
        registered=snapshot.served,
        resident=len(info.residents),
        pinned=sum(resident.pinned for resident in info.residents),
        held=sum(resident.held > 0 for resident in info.residents),
        capacity=info.capacity,
        slots=info.slots,
        revision=snapshot.revision,
        worker_alive=app_services.worker.alive,
        worker_restarts=app_services.worker.restarts,
        blender_alive=app_services.blender.alive,
        blender_restarts=app_services.blender.restarts,
        registry_up=app_services.live_jobs.is_answered,
        registry_notices=app_services.notices is not None and app_services.notices.is_listening,
        live_jobs=app_services.live_jobs.counts,
    )
