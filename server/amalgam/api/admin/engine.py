"""The engine on the admin plane: what is resident, pinned and held."""

from collections.abc import Iterable
from dataclasses import asdict, replace

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from amalgam.api.admin.in_scope import scopes_of, tenant_of
from amalgam.api.admin.kit import READS, admin_router
from amalgam.api.state import services
from amalgam.engine.protocol import EngineInfo, EngineState
from amalgam.services.queue_records import AdapterLine


class ResidentView(BaseModel):
    """One version in the engine's memory."""

    model: str = Field(examples=["sql@1"])
    held: int = Field(description="requests that use it right now")
    pinned: bool
    load_s: float = Field(description="seconds its load took")


class QueueView(BaseModel):
    """What is asked of one adapter, or of the base model, right now."""

    model: str = Field(examples=["sql@1"])
    running: int = Field(description="requests in the batch", examples=[3])
    waiting: int = Field(description="requests that wait for a place in it", examples=[12])
    longest_wait_s: float = Field(description="longest wait of these so far, seconds", examples=[0.8])


class EngineView(BaseModel):
    """State, slots, residents and queue of the engine, and whether the merge process runs."""

    model_config = ConfigDict(extra="allow")

    state: EngineState = Field(examples=["ready"])
    served_name: str = Field(examples=["smollm2"])
    slots: int = Field(description="different adapters in one batch", examples=[4])
    capacity: int = Field(description="adapters kept in memory", examples=[64])
    max_rank: int = Field(examples=[32])
    restarts: int = Field(examples=[0])
    residents: tuple[ResidentView, ...]
    queue: tuple[QueueView, ...] = Field(description="a row an adapter that is asked for, the longest wait first")
    startup_s: dict[str, float] = Field(examples=[{"import": 9.1, "load": 14.0, "handlers": 2.2}])
    base_fingerprint: str
    worker_alive: bool

    @classmethod
    def of(
        cls, info: EngineInfo, queue: Iterable[AdapterLine], base_fingerprint: str, *, worker_alive: bool
    ) -> "EngineView":
        """The view of ``info``, without the engine's own ids."""
        shown = asdict(info)
        for resident in shown["residents"]:
            resident["model"] = resident.pop("engine_name")
            del resident["lora_id"]
        lines = [
            {"model": line.name, "running": line.running, "waiting": line.waiting,
             "longest_wait_s": round(line.longest_wait_s, 3)}
            for line in queue
        ]  # fmt: skip
        said = {"queue": lines, "base_fingerprint": base_fingerprint, "worker_alive": worker_alive}
        return cls.model_validate(shown | said)


def router() -> APIRouter:
    """The routes of the engine."""
    routes = admin_router("Engine")

    @routes.get("/engine", dependencies=READS, summary="State, slots, residents and queue")
    async def show(request: Request) -> EngineView:
        app_services, whose = services(request), (scopes_of(request), tenant_of(request))
        info = app_services.engine.info()
        shown = tuple(one for one in info.residents if app_services.inference.is_shown(one.engine_name, *whose))
        info = replace(info, residents=shown)
        queue, fingerprint = app_services.inference.queued(*whose), app_services.catalog.base.fingerprint
        return EngineView.of(info, queue, fingerprint, worker_alive=app_services.worker.alive)

    return routes
