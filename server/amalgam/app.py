"""Builds every serving object once, in the lifespan, hands them down, and closes them in reverse."""

import asyncio
import logging
import os
import random
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from amalgam import __version__
from amalgam.api import (
    admin_adapters,
    admin_aliases,
    admin_engine,
    admin_evaluations,
    admin_exports,
    admin_lineage,
    admin_merges,
    admin_sweeps,
    lora_compat,
    openai,
    operations,
)
from amalgam.api.auth import AuthMiddleware, KeyRing
from amalgam.api.errors import install_error_handlers
from amalgam.api.idempotency import IdempotencyKeys
from amalgam.api.inner_request import inner_ask
from amalgam.api.middleware import BodyLimit, HeaderLimit, RequestId
from amalgam.api.observed import Observed
from amalgam.api.state import Services
from amalgam.domain.adapter import BaseModelSpec
from amalgam.domain.clock import new_evaluation_id, new_id, utc_now
from amalgam.engine.fork_server import ForkServer
from amalgam.engine.protocol import Engine
from amalgam.engine.vllm_engine import VllmEngine
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.aliases import AliasRegistry
from amalgam.registry.database import Database
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.registry.idempotency import IdempotencyRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.services.adapters import AdapterService
from amalgam.services.aliases import AliasService
from amalgam.services.blend_tier import BlendTier
from amalgam.services.blender_link import BlenderLink
from amalgam.services.blends import BlendLimits, Blends
from amalgam.services.catalog import Catalog
from amalgam.services.demo_adapters import register_missing
from amalgam.services.evaluation_calls import Ask, EvaluationCalls
from amalgam.services.evaluation_run import EvaluationRunner
from amalgam.services.evaluations import EvaluationService
from amalgam.services.exports import ExportService
from amalgam.services.fair_queue import FairQueue
from amalgam.services.idempotency import Idempotency
from amalgam.services.inference import Inference
from amalgam.services.lineage import LineageService
from amalgam.services.merges import MergeService
from amalgam.services.publish import Publisher
from amalgam.services.retention import Retention
from amalgam.services.spare_capacity import SpareCapacity
from amalgam.services.sweeps import SweepService
from amalgam.services.usage import Usage
from amalgam.services.worker_link import WorkerLink
from amalgam.settings import Settings
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.base_model import base_spec
from amalgam.store.blend_folders import BlendFolders, default_root
from amalgam.store.export_folders import ExportFolders
from amalgam.store.hub_source import HubSource
from amalgam.store.page_cache import read_ahead
from amalgam.store.sources import sources
from amalgam.telemetry.build import build_versions
from amalgam.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_ENGINE_START_TIMEOUT_S = 1800.0
_SEQUENCES = 128
"""Of a full batch, where vLLM is not told."""
_UPLOAD_PATHS = frozenset({"/admin/v1/adapters", "/admin/v1/adapters:validate"})

EngineFactory = Callable[[Any], Engine]
Ready = Callable[[dict[str, float]], None]


def create_app(
    settings: Settings,
    args: Namespace,
    *,
    on_phase: Callable[[str], None] = lambda phase: None,
    on_ready: Ready = lambda startup_s: None,
    demo_folders: dict[str, Path] | None = None,
    fork_server: ForkServer | None = None,
    engine_factory: EngineFactory | None = None,
) -> FastAPI:
    """The application.

    Args:
        settings: of this process.
        args: vLLM's parsed serve arguments.
        on_phase: told what the engine's start is doing.
        on_ready: told the seconds of the start by phase, once requests are answered.
        demo_folders: adapters to register on the first start, by name.
        fork_server: what the engine's processes are forked from; None: vLLM spawns them.
        engine_factory: makes the engine from the application's state; the embedded vLLM unless a test says otherwise.
    """
    metrics = Metrics(build=build_versions())
    make_engine = engine_factory or (
        lambda state: VllmEngine(
            args, state, settings.load_timeout_s, settings.engine_hang_s, on_phase, metrics, read_ahead, fork_server
        )
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            engine = make_engine(app.state)
            ask = inner_ask(app, engine)
            app.state.amalgam = await _build(stack, settings, args, engine, demo_folders or {}, on_ready, metrics, ask)
            yield

    app = FastAPI(
        title="Amalgam",
        version=__version__,
        summary="Many LoRA adapters on one base model, and new ones merged while it serves",
        lifespan=lifespan,
        redirect_slashes=False,
        # The pages of documentation load scripts from elsewhere; the document itself is enough.
        docs_url=None,
        redoc_url=None,
    )
    install_error_handlers(app)
    app.include_router(openai.router(time.time()))
    app.include_router(lora_compat.router())
    app.include_router(admin_adapters.router())
    app.include_router(admin_aliases.router())
    app.include_router(admin_merges.router())
    app.include_router(admin_lineage.router())
    app.include_router(admin_exports.router())
    app.include_router(admin_engine.router())
    app.include_router(admin_evaluations.router())
    app.include_router(admin_sweeps.router())
    app.include_router(operations.router())
    _add_middleware(app, settings, metrics)
    return app


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """From the inside out: what comes last sees a request first."""
    app.add_middleware(IdempotencyKeys)
    app.add_middleware(
        BodyLimit,
        json_bytes=settings.max_body_bytes,
        upload_bytes=settings.max_upload_bytes,
        upload_paths=_UPLOAD_PATHS,
    )
    app.add_middleware(AuthMiddleware, keys=KeyRing.of(settings))
    app.add_middleware(HeaderLimit)
    app.add_middleware(
        Observed, metrics=metrics, endpoints=openai.ENDPOINT_PATHS, access_log=settings.access_log_enabled
    )
    app.add_middleware(RequestId)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is stored, and what is known of it."""

    base: BaseModelSpec
    store: AdapterStore
    database: Database
    registry: AdapterRegistry
    jobs: JobRegistry
    catalog: Catalog


@dataclass(frozen=True, slots=True)
class _Serving:
    """What answers requests and makes versions."""

    inference: Inference
    adapters: AdapterService
    merges: MergeService
    worker: WorkerLink
    blender: BlenderLink


async def _build(
    stack: AsyncExitStack,
    settings: Settings,
    args: Namespace,
    engine: Engine,
    demo_folders: dict[str, Path],
    on_ready: Ready,
    metrics: Metrics,
    ask: Ask,
) -> Services:
    """Open in order; the stack closes in reverse: HTTP has ended by then, the worker goes before the database."""
    kept = await _open(stack, settings, args, metrics)
    serving = await _connect(stack, settings, args, engine, metrics, kept)
    await engine.start()
    stack.push_async_callback(engine.stop, settings.drain_timeout_s)
    await register_missing(serving.adapters, kept.registry, demo_folders)
    await serving.worker.start(after=engine.wait_ready(_ENGINE_START_TIMEOUT_S))
    stack.push_async_callback(serving.worker.stop)
    idempotency = Idempotency(IdempotencyRegistry(kept.database, utc_now), settings.idempotency_keep_s, new_id)
    runner, evaluations = _evaluating(settings, kept.database, kept.catalog, serving.inference, ask, metrics)
    for loop in (
        serving.merges.publish_loop(),
        Retention(kept.registry, kept.store, utc_now).sweep_loop(),
        idempotency.sweep_loop(),
        runner.loop(),
        kept.catalog.follow_loop(metrics.registry_read),
        _announce_ready(engine, on_ready),
    ):
        _run_until_closed(stack, loop)
    return _services(settings, args.model, engine, metrics, kept, serving, idempotency, evaluations)


async def _open(stack: AsyncExitStack, settings: Settings, args: Namespace, metrics: Metrics) -> _Kept:
    base = await asyncio.to_thread(base_spec, Path(args.model), args.served_model_name[0], args.max_lora_rank)
    store = await asyncio.to_thread(AdapterStore.open, settings.store)
    database = await stack.enter_async_context(Database.open(settings.registry_url))
    registry, jobs = AdapterRegistry(database, utc_now), JobRegistry(database, utc_now, new_id)
    catalog = Catalog(base, registry)
    await catalog.refresh()
    metrics.registry_read()
    return _Kept(base, store, database, registry, jobs, catalog)


async def _connect(
    stack: AsyncExitStack, settings: Settings, args: Namespace, engine: Engine, metrics: Metrics, kept: _Kept
) -> _Serving:
    base, store, catalog, usage = kept.base, kept.store, kept.catalog, Usage()
    blender, tier = await _blend_tier(stack, settings, base, store, engine, metrics)
    blends = Blends(catalog, store, usage, tier, blender, BlendLimits.of(settings), metrics=metrics)
    queue = _fair_queue(settings, args, metrics)
    inference = Inference(catalog, engine, store, random.SystemRandom().random, usage, blends, queue)
    publisher = Publisher(kept.registry, kept.jobs, store, catalog, engine, metrics=metrics, queue=queue)
    merges = MergeService(kept.registry, kept.jobs, store, catalog, publisher, metrics=metrics)
    adapters = AdapterService(
        registry=kept.registry,
        store=store,
        sources=sources(settings.source_roots, _hub(settings)),
        catalog=catalog,
        engine=engine,
        inference=inference,
        publisher=publisher,
        max_upload_bytes=settings.max_upload_bytes,
        clock=utc_now,
    )
    return _Serving(inference, adapters, merges, _worker(settings, base, args.model, merges), blender)


def _services(
    settings: Settings,
    model: str,
    engine: Engine,
    metrics: Metrics,
    kept: _Kept,
    serving: _Serving,
    idempotency: Idempotency,
    evaluations: EvaluationService,
) -> Services:
    """What routes reach."""
    merges, worker, catalog = serving.merges, serving.worker, kept.catalog
    aliases = AliasRegistry(kept.database, utc_now, kept.base.served_name)
    folders = None if settings.export_root is None else ExportFolders(settings.export_root)
    return Services(
        settings=settings,
        engine=engine,
        catalog=catalog,
        inference=serving.inference,
        adapters=serving.adapters,
        aliases=AliasService(aliases, catalog, serving.inference.resolve),
        merges=merges,
        metrics=metrics,
        worker=worker,
        idempotency=idempotency,
        lineage=LineageService(kept.registry, kept.store, worker),
        blender=serving.blender,
        evaluations=evaluations,
        sweeps=SweepService(evaluations, merges),
        exports=ExportService(kept.jobs, kept.store, catalog, merges, worker, folders, Path(model)),
    )


def _fair_queue(settings: Settings, args: Namespace, metrics: Metrics) -> FairQueue | None:
    """A turn may begin as many requests as are its slot's share of a full batch."""
    if not settings.fair_queue:
        return None
    sequences = getattr(args, "max_num_seqs", None) or _SEQUENCES
    return FairQueue(args.max_loras, -(-sequences // args.max_loras), settings.fair_queue_wait_s, metrics=metrics)


def _worker(settings: Settings, base: BaseModelSpec, model: str, merges: MergeService) -> WorkerLink:
    worker = WorkerLink(
        _worker_command(),
        _worker_environment(settings, base, model),
        merges.hear,
        on_progress=merges.hear_progress,
        on_end=merges.worker_ended,
    )
    merges.attach(worker)
    return worker


def _evaluating(
    settings: Settings, database: Database, catalog: Catalog, inference: Inference, ask: Ask, metrics: Metrics
) -> tuple[EvaluationRunner, EvaluationService]:
    rows = EvaluationRegistry(database, utc_now, new_evaluation_id)
    spare = SpareCapacity(metrics.running, settings.evaluation_yield_above, settings.evaluation_patience_s)
    calls = EvaluationCalls(inference, ask, spare, catalog.base.served_name)
    runner = EvaluationRunner(rows, calls, new_evaluation_id(), settings.evaluation_concurrency, metrics)
    return runner, EvaluationService(rows, catalog, inference, settings.evaluation_max_calls, runner.wake, metrics)


async def _blend_tier(
    stack: AsyncExitStack,
    settings: Settings,
    base: BaseModelSpec,
    store: AdapterStore,
    engine: Engine,
    metrics: Metrics,
) -> tuple[BlenderLink, BlendTier]:
    """The blend process and the memory for what it builds; the process runs only where blends are served."""
    root = settings.blend_dir or default_root(store.root)
    folders = await asyncio.to_thread(BlendFolders.open, root)
    stack.push_async_callback(asyncio.to_thread, folders.close)
    budget = await asyncio.to_thread(folders.budget, settings.blend_bytes)
    if budget < settings.blend_bytes:
        logger.warning("blends get %d bytes, half of what is free for them, not %d", budget, settings.blend_bytes)
    blender = BlenderLink(_blender_command(), _worker_environment(settings, base, ""), settings.blend_timeout_s)
    if settings.inline_blends:
        # Their imports are as long as the engine's and would compete with it for the same cores.
        await blender.start(after=engine.wait_ready(_ENGINE_START_TIMEOUT_S))
        stack.push_async_callback(blender.stop)
    tier = BlendTier(folders, engine, budget, settings.load_timeout_s, metrics=metrics)
    stack.push_async_callback(tier.close)
    return blender, tier


def _hub(settings: Settings) -> HubSource | None:
    if not settings.hub_sources:
        return None
    return HubSource(settings.hub_endpoint or None, settings.max_upload_bytes)


def _run_until_closed(stack: AsyncExitStack, loop: Any) -> None:
    task = asyncio.create_task(loop)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)


async def _announce_ready(engine: Engine, on_ready: Ready) -> None:
    await engine.wait_ready(_ENGINE_START_TIMEOUT_S)
    on_ready(dict(engine.info().startup_s))


def _worker_command() -> tuple[str, ...]:
    return (sys.executable, "-m", "amalgam", "worker")


def _blender_command() -> tuple[str, ...]:
    return (sys.executable, "-m", "amalgam", "blender")


def _worker_environment(settings: Settings, base: BaseModelSpec, model_dir: str) -> dict[str, str]:
    """This process's environment with the settled settings; flags of the command line reach the worker this way."""
    return dict(os.environ) | {
        "AMALGAM_STORE": str(settings.store),
        "AMALGAM_DATABASE_URL": settings.database_url,
        "AMALGAM_MAX_LORA_RANK": str(base.max_lora_rank),
        "OMP_NUM_THREADS": str(settings.worker_threads),
        **({"AMALGAM_EXPORT_ROOT": str(settings.export_root)} if settings.export_root else {}),
        **({"AMALGAM_BASE_MODEL": model_dir} if model_dir else {}),
    }
