"""The engine on the admin plane: what is resident, pinned and held."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from amalgam.api.state import services


def router() -> APIRouter:
    """The routes of the engine."""
    routes = APIRouter(prefix="/admin/v1", tags=["Engine"])

    @routes.get("/engine", summary="State, slots and residents")
    async def show(request: Request) -> dict[str, Any]:
        house = services(request)
        shown = asdict(house.engine.info())
        for resident in shown["residents"]:
            resident["model"] = resident.pop("engine_name")
            del resident["lora_id"]
        return shown | {"base_fingerprint": house.catalog.base.fingerprint, "worker_alive": house.worker.alive}

    return routes
