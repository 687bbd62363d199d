"""Engines from a file of Ray Serve's, in place of `amalgam engine`: KubeRay and ``serve deploy`` start them so."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from amalgam.engine.remote.app import engines
from amalgam.engine.remote.replica import ReplicaOrder

FACTORY: Final = "amalgam.workers.engine_replica:open_replica"


class ServeArguments(BaseModel):
    """Under ``args`` in the file. Settings of engines are variables of the environment of Ray's nodes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, description="folder, the same on every node, or hub id of the base model")
    served_model_name: str | None = Field(None, description="name of the base model in requests")
    flags: tuple[str, ...] = Field((), description="flags of vLLM's engine")
    generation: str = Field("", description="any word; another one has all engines replaced, one by one")
    replicas: int = Field(1, ge=1, le=1024)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    drain_s: float = Field(600.0, gt=0, description="longest wait for the requests of an engine that is to end")
    busy: int = Field(32, ge=1, description="requests from which on an engine is passed over where another is free")


def build(args: Mapping[str, Any]) -> Any:
    """The application that ``import_path: amalgam.engine.remote.serve_app:build`` means."""
    asked = ServeArguments.model_validate(args)
    order = ReplicaOrder(
        factory=FACTORY,
        model=asked.model,
        served_names=(asked.served_model_name or asked.model,),
        flags=asked.flags,
        generation=asked.generation,
    )
    return engines(order, asked.replicas, cpus=asked.cpus, gpus=asked.gpus, drain_s=asked.drain_s, busy=asked.busy)
