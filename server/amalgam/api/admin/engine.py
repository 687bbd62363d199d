"""The engine on the admin plane: what is resident, pinned and held."""

from dataclasses import asdict, replace

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from amalgam.api.admin.in_scope import scopes_of, tenant_of
from amalgam.api.admin.kit import READS, admin_router
from amalgam.api.state import services
from amalgam.engine.protocol import EngineInfo, EngineState


class ResidentView(BaseModel):
    """One version in the engine's memory."""

    model: str = Field(examples=["sql@1"])
    held: int = Field(description="requests that use it right now")
    pinned: bool
    load_s: float = Field(description="seconds its load took")


class EngineView(BaseModel):
    """State, slots and residents of the engine, and whether the merge process runs."""

    model_config = ConfigDict(extra="allow")

    state: EngineState = Field(examples=["ready"])
    served_name: str = Field(examples=["smollm2"])
    slots: int = Field(description="different adapters in one batch", examples=[4])
    capacity: int = Field(description="adapters kept in memory", examples=[64])
    max_rank: int = Field(examples=[32])
    restarts: int = Field(examples=[0])
    residents: tuple[ResidentView, ...]
    startup_s: dict[str, float] = Field(examples=[{"import": 9.1, "load": 14.0, "handlers": 2.2}])
    base_fingerprint: str
    worker_alive: bool

    @classmethod
    def of(cls, info: EngineInfo, base_fingerprint: str, *, worker_alive: bool) -> "EngineView":
        """The view of ``info``, without the engine's own ids."""
        shown = asdict(info)
        for resident in shown["residents"]:
            resident["model"] = resident.pop("engine_name")
            del resident["lora_id"]
        return cls.model_validate(shown | {"base_fingerprint": base_fingerprint, "worker_alive": worker_alive})


def router() -> APIRouter:
    """The routes of the engine."""
    routes = admin_router("Engine")

    @routes.get("/engine", dependencies=READS, summary="State, slots and residents")
    async def show(request: Request) -> EngineView:
        app_services, whose = services(request), (scopes_of(request), tenant_of(request))
        info = app_services.engine.info()
        shown = tuple(one for one in info.residents if app_services.inference.is_shown(one.engine_name, *whose))
        info = replace(info, residents=shown)
        return EngineView.of(info, app_services.catalog.base.fingerprint, worker_alive=app_services.worker.alive)

    return routes
