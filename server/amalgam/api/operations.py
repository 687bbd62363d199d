"""Probes, metrics and version: what orchestrators and operators ask."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from amalgam import __version__
from amalgam.api.state import Services, services
from amalgam.services.live_jobs import live_jobs
from amalgam.telemetry.metrics import ServerState


def router() -> APIRouter:
    """``/livez``, ``/readyz``, ``/metrics``, ``/version``."""
    routes = APIRouter(tags=["Operations"])

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
        state = await server_state(house)
        base, snapshot = house.catalog.base.served_name, house.catalog.snapshot
        house.metrics.make_room({base, *snapshot.versions}, snapshot.aliases)
        scrape = house.metrics.scrape(state)
        # Thousands of lines: written beside the event loop, which has tokens to send meanwhile.
        return Response(await asyncio.to_thread(scrape.text), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/version", summary="Version of this server and of its engine")
    async def version() -> dict[str, Any]:
        return {"version": __version__}

    return routes


async def server_state(house: Services) -> ServerState:
    """The parts of the page that are read when it is asked for."""
    info = house.engine.info()
    snapshot = house.catalog.snapshot
    return ServerState(
        engine_ready=info.state == "ready",
        engine_restarts=info.restarts,
        engine_start_s=dict(info.startup_s),
        registered=len(snapshot.versions),
        resident=len(info.residents),
        pinned=sum(resident.pinned for resident in info.residents),
        held=sum(resident.held > 0 for resident in info.residents),
        capacity=info.capacity,
        slots=info.slots,
        revision=snapshot.revision,
        worker_alive=house.worker.alive,
        worker_restarts=house.worker.restarts,
        blender_alive=house.blender.alive,
        blender_restarts=house.blender.restarts,
        live_jobs=await live_jobs(house.merges.count_live, house.evaluations.count_live),
    )
