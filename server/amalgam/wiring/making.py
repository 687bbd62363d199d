"""What makes versions, uploads, merges and exports, and what measures them."""

from dataclasses import dataclass
from pathlib import Path

from amalgam.domain.clock import new_evaluation_id, new_server_name
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.registry.fit_jobs import FitJobRegistry
from amalgam.registry.pins import PinRegistry
from amalgam.services.adapter_sources import adapter_sources
from amalgam.services.adapters import AdapterService
from amalgam.services.evaluation_calls import Ask, EvaluationCalls
from amalgam.services.evaluation_run import EvaluationRunner
from amalgam.services.evaluations import EvaluationService
from amalgam.services.exports import ExportService
from amalgam.services.fits import FitService
from amalgam.services.inference import Inference
from amalgam.services.inner_charges import InnerCharges
from amalgam.services.job_feed import JobFeed
from amalgam.services.lineage import LineageService
from amalgam.services.merge_probes import MergeProbes
from amalgam.services.merge_trials import MergeTrials
from amalgam.services.merges import MergeService
from amalgam.services.own_answers import OwnAnswers
from amalgam.services.profiles import ProfileService
from amalgam.services.publish import Publisher
from amalgam.services.retirement import Retirement
from amalgam.services.skill_probes import SkillProbes
from amalgam.services.spare_capacity import SpareCapacity
from amalgam.services.sweeps import SweepService
from amalgam.services.weight_search import WeightSearches
from amalgam.services.work_threads import WorkThreads
from amalgam.services.worker_link import WorkerLink
from amalgam.services.worker_reports import WorkerReports
from amalgam.store.export_folders import ExportFolders
from amalgam.wiring.answering import Answering
from amalgam.wiring.parts import Parts
from amalgam.wiring.storage import Storage


@dataclass(frozen=True, slots=True)
class Making:
    """What makes versions: uploads, merges, exports."""

    adapters: AdapterService
    worker: WorkerLink
    merges: MergeService
    lineage: LineageService
    exports: ExportService

    @classmethod
    def open(
        cls, parts: Parts, kept: Storage, answering: Answering, profiles: ProfileService, probes: SkillProbes
    ) -> "Making":
        """The worker is started later, when the engine is ready."""
        settings, engine, metrics, loops = parts.settings, parts.engine, parts.metrics, parts.loops
        store, catalog, model = kept.store, kept.catalog, parts.args.model
        served = (kept.registry, kept.jobs, store, catalog, engine, answering.queue)
        budget_s = settings.merging.kept_budget_s
        asked = MergeProbes(probes, kept.registry, store, engine, answering.queue, budget_s, metrics)
        publisher = Publisher(*served, metrics=metrics, server=new_server_name(), probes=asked)
        reports = WorkerReports(JobFeed(kept.jobs), metrics)
        worker = WorkerLink(
            parts.start.worker_command,
            parts.child(kept.base.max_lora_rank, model),
            loops,
            metrics,
            on_news=reports.job_changed,
            on_progress=reports.job_progressed,
            on_end=reports.worker_ended,
        )
        merges = MergeService(kept.registry, kept.jobs, store, catalog, publisher, worker, reports, metrics=metrics)
        adapters = AdapterService(
            registry=kept.registry,
            store=store,
            sources=adapter_sources(settings),
            catalog=catalog,
            engine=engine,
            inference=answering.inference,
            publisher=publisher,
            max_upload_bytes=settings.http.max_upload_bytes,
            loops=loops,
            threads=parts.stack.enter_context(WorkThreads.opened()),
            pins=PinRegistry(kept.database, kept.database.clock),
            retirement=Retirement(
                *(kept.registry, store, catalog, engine, answering.inference, loops),
                clock=None if kept.database.is_shared or kept.objects is not None else kept.file_clock,
            ),
            profiles=profiles,
        )
        folders = None if settings.exports.export_root is None else ExportFolders(settings.exports.export_root)
        workspace = settings.merging.merge_workspace_bytes
        exports = ExportService(kept.jobs, store, catalog, merges, worker, folders, Path(model), workspace)
        return cls(adapters, worker, merges, cls._lineage(kept, worker), exports)

    @staticmethod
    def _lineage(kept: Storage, worker: WorkerLink) -> LineageService:
        fits = FitJobRegistry(kept.database, kept.database.clock)
        return LineageService(kept.registry, kept.store, worker, fits, kept.profiles)


@dataclass(frozen=True, slots=True)
class Measuring:
    """Who measures, and who takes the orders."""

    runner: EvaluationRunner
    evaluations: EvaluationService
    sweeps: SweepService
    trials: MergeTrials
    fits: FitService

    @classmethod
    def open(
        cls,
        parts: Parts,
        kept: Storage,
        inference: Inference,
        merges: MergeService,
        ask: Ask,
        probes: SkillProbes,
        charges: InnerCharges,
    ) -> "Measuring":
        """Evaluations ask as clients do, through ``ask``."""
        settings, metrics = parts.settings, parts.metrics
        rows = EvaluationRegistry(kept.database, kept.database.clock, new_evaluation_id)
        given = settings.evaluations
        trials = MergeTrials(probes, inference)
        own = OwnAnswers(probes, trials.hold)
        calls = EvaluationCalls(inference, ask, spare_capacity(parts), kept.base.served_name, own, charges=charges)
        searches = WeightSearches(rows, inference)
        runner = EvaluationRunner(rows, calls, new_evaluation_id(), given.evaluation_concurrency, searches, metrics)
        most = given.evaluation_max_calls
        evaluations = EvaluationService(rows, kept.catalog, inference, most, runner.wake, metrics)
        sweeps = SweepService(evaluations, merges)
        waiting = FitJobRegistry(kept.database, kept.database.clock)
        reads = kept.base.folder is not None
        fits = FitService(evaluations, sweeps, merges, kept.jobs, waiting, reads=reads)
        return cls(runner, evaluations, sweeps, trials, fits)


def skill_probes(parts: Parts, kept: Storage, ask: Ask) -> SkillProbes:
    """What asks inputs and has merges read their answers; it is let in as evaluations are."""
    concurrency = parts.settings.evaluations.evaluation_concurrency
    return SkillProbes(ask, spare_capacity(parts), kept.base.served_name, concurrency)


def spare_capacity(parts: Parts) -> SpareCapacity:
    """When work of our own may begin beside requests of clients."""
    given = parts.settings.evaluations
    return SpareCapacity(parts.metrics.running, given.evaluation_yield_above, given.evaluation_patience_s)
