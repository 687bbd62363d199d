"""What the routes are given: the services that `amalgam.app` built, under one attribute of the application's state."""

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from amalgam.api.inference.body_reader import BodyReader
from amalgam.engine.protocol import Engine
from amalgam.registry.notices import Notices
from amalgam.services.adapters import AdapterService
from amalgam.services.aliases import AliasService
from amalgam.services.answer_book import AnswerBook
from amalgam.services.audit import AuditService
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.batches import BatchService
from amalgam.services.blender_link import BlenderLink
from amalgam.services.cache_salts import CacheSalts
from amalgam.services.catalog import Catalog
from amalgam.services.evaluations import EvaluationService
from amalgam.services.experiment_counts import ExperimentCounts
from amalgam.services.experiments import ExperimentService
from amalgam.services.exports import ExportService
from amalgam.services.feedback import FeedbackService
from amalgam.services.files import FileService
from amalgam.services.fits import FitService
from amalgam.services.idempotency import Idempotency
from amalgam.services.inference import Inference
from amalgam.services.key_directory import KeyDirectory
from amalgam.services.limits import Limiter
from amalgam.services.lineage import LineageService
from amalgam.services.live_jobs import LiveJobs
from amalgam.services.merge_trials import MergeTrials
from amalgam.services.merges import MergeService
from amalgam.services.profiles import ProfileService
from amalgam.services.shadows import Shadows
from amalgam.services.sweeps import SweepService
from amalgam.services.tenants import TenantService
from amalgam.services.usage_ledger import UsageLedger
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
    profiles: ProfileService
    metrics: Metrics
    worker: WorkerLink
    idempotency: Idempotency
    lineage: LineageService
    blender: BlenderLink
    evaluations: EvaluationService
    sweeps: SweepService
    fits: FitService
    trials: MergeTrials
    exports: ExportService
    salts: CacheSalts
    loops: BackgroundLoops
    live_jobs: LiveJobs
    notices: Notices | None
    """It is None where the database tells nobody of changes."""
    bodies: BodyReader
    keys: KeyDirectory
    limits: Limiter
    usage: UsageLedger
    tenants: TenantService
    audit: AuditService
    files: FileService
    batches: BatchService
    answers: AnswerBook
    feedback: FeedbackService
    experiment_counts: ExperimentCounts
    experiments: ExperimentService
    shadows: Shadows


def services(request: Request) -> Services:
    """The services behind ``request``."""
    return cast(Services, request.app.state.amalgam)
