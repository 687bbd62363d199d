"""What the routes are given: the services that `amalgam.app` built, under one attribute of the application's state."""

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from amalgam.engine.protocol import Engine
from amalgam.services.adapters import AdapterService
from amalgam.services.aliases import AliasService
from amalgam.services.blender_link import BlenderLink
from amalgam.services.catalog import Catalog
from amalgam.services.evaluations import EvaluationService
from amalgam.services.exports import ExportService
from amalgam.services.idempotency import Idempotency
from amalgam.services.inference import Inference
from amalgam.services.lineage import LineageService
from amalgam.services.merges import MergeService
from amalgam.services.sweeps import SweepService
from amalgam.services.worker_link import WorkerLink
from amalgam.settings import Settings
from amalgam.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a route may call."""

    settings: Settings
    engine: Engine
    catalog: Catalog
    inference: Inference
    adapters: AdapterService
    aliases: AliasService
    merges: MergeService
    metrics: Metrics
    worker: WorkerLink
    idempotency: Idempotency
    lineage: LineageService
    blender: BlenderLink
    evaluations: EvaluationService
    sweeps: SweepService
    exports: ExportService


def services(request: Request) -> Services:
    """The services behind ``request``."""
    return cast(Services, request.app.state.amalgam)
