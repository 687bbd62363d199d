"""The engine on the admin plane: what is resident, pinned and held."""

from fastapi import APIRouter, Depends, Request

from amalgam.api.admin_answers import ADMIN_KEY, EngineView
from amalgam.api.error_document import ERRORS
from amalgam.api.state import services


def router() -> APIRouter:
    """The routes of the engine."""
    routes = APIRouter(prefix="/admin/v1", tags=["Engine"], responses=ERRORS, dependencies=[Depends(ADMIN_KEY)])

    @routes.get("/engine", summary="State, slots and residents")
    async def show(request: Request) -> EngineView:
        house = services(request)
        return EngineView.of(house.engine.info(), house.catalog.base.fingerprint, worker_alive=house.worker.alive)

    return routes
