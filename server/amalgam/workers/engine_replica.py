"""The engine process of a cluster: vLLM as the embedded server has it, without HTTP, registry and keys.

Ray starts it, and `amalgam.engine.remote.replica` calls `open_replica` in it.
"""

import asyncio
import logging
import math
import os
import sys
from argparse import Namespace
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final, get_args

from starlette.applications import Starlette

from amalgam.domain.adapter import BaseModelSpec
from amalgam.engine.cpu.fork_server import ForkServer, predicted_environment
from amalgam.engine.cpu.moe import adapts_experts
from amalgam.engine.environment import prepare_environment
from amalgam.engine.protocol import Endpoint, EngineInfo, OwnTemplate
from amalgam.engine.remote.messages import ServedFacts
from amalgam.engine.remote.replica import ReplicaOrder, ReplicaParts
from amalgam.engine.vllm_arguments import our_flags, parsed, serve_parser
from amalgam.engine.vllm_engine import VllmEngine
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.child_environment import template_environment
from amalgam.services.fair_queue import FairQueue, Places
from amalgam.services.profiles import LinkedTemplate
from amalgam.services.template_link import TemplateLink
from amalgam.settings import Settings
from amalgam.store.base_model import base_spec
from amalgam.store.checkpoint_tensors import needs_sixteen_bits
from amalgam.store.hub import local_model
from amalgam.store.page_cache import checked_read_ahead
from amalgam.store.proof_adapter import proof_adapter
from amalgam.telemetry.logs import VLLM_JSON_CONFIG, configure_logging
from amalgam.telemetry.metric_table import COUNTED_BY_ENGINES
from amalgam.telemetry.metrics import Metrics
from amalgam.wiring.parts import ENGINE_START_TIMEOUT_S, UNSAID_SEQUENCES
from amalgam.workers.engine_blends import EngineBlends
from amalgam.workers.engine_files import EngineFiles

logger = logging.getLogger(__name__)

_TEMPLATES: Final = (sys.executable, "-m", "amalgam.workers.template_process")


async def open_replica(order: ReplicaOrder) -> ReplicaParts:
    """The engine of this process, once it has answered a first token.

    Raises:
        EngineStartFailed, BaseModelUnreadable, StoreUnavailable, ObjectStoreUnfit, ObjectStoreUnavailable: what keeps
            it from starting.
    """
    settings = Settings()
    configure_logging(settings.logs.log_format)
    prepare_environment(VLLM_JSON_CONFIG if settings.logs.log_format == "json" else None, settings.http.media_pixels)
    predicted = predicted_environment(os.environ) if settings.engine.engine_start == "forked" else None
    fork_server = None if predicted is None else ForkServer(predicted)
    if fork_server is not None:
        await asyncio.to_thread(fork_server.start)
    model = str(await asyncio.to_thread(local_model, order.model))
    args = await asyncio.to_thread(_arguments, settings, order, model)
    base = await asyncio.to_thread(base_spec, Path(model), args.served_model_name[0], args.max_lora_rank)
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(EngineFiles.open(settings))
        app, metrics = Starlette(), Metrics()
        loops = BackgroundLoops(metrics)
        stack.push_async_callback(loops.stop)
        limit_s = settings.adapters.template_timeout_s
        templates = TemplateLink(_TEMPLATES, template_environment(os.environ), limit_s, loops, metrics)
        await templates.start()
        stack.push_async_callback(templates.stop)
        engine = _engine(settings, args, app, files, metrics, fork_server)
        await engine.start()
        stack.push_async_callback(engine.stop, settings.http.drain_timeout_s)
        files.follow(engine.info)
        await engine.wait_ready(ENGINE_START_TIMEOUT_S)
        opening = EngineBlends.open(settings, model, args.max_lora_rank, engine, files, loops, metrics)
        blends = await stack.enter_async_context(opening)
        facts = _facts(args, base, engine, blends.budget_bytes)
        kept = stack.pop_all()
    template_of = partial(_template, templates)
    queue = _queue(settings, engine.info(), metrics)
    return ReplicaParts(
        engine, app, facts, files.folder, blends, queue, template_of, partial(_page, metrics), kept.aclose
    )


def _arguments(settings: Settings, order: ReplicaOrder, model: str) -> Namespace:
    """VLLM's, with our defaults for the platform of this process."""
    names = list(order.served_names)
    in_sixteen_bits = partial(needs_sixteen_bits, Path(model))
    ours = our_flags(settings, model, names[0], in_sixteen_bits=in_sixteen_bits, is_demo=order.is_demo)
    args = parsed(serve_parser(), [*ours, *order.flags])
    if args.served_model_name == names[:1]:
        args.served_model_name = names
    return args


def _engine(
    settings: Settings, args: Namespace, app: Starlette, files: EngineFiles, metrics: Metrics,
    fork_server: ForkServer | None,
) -> VllmEngine:  # fmt: skip
    return VllmEngine(
        args,
        app.state,
        settings.engine.load_timeout_s,
        settings.engine.engine_hang_s,
        metrics=metrics,
        prepare=checked_read_ahead(files.store.checks),
        fork_server=fork_server,
        proof=partial(proof_adapter, Path(args.model)),
    )


def _queue(settings: Settings, info: EngineInfo, metrics: Metrics) -> FairQueue:
    """Shares for keys are kept by the servers, which know how many there are."""
    batch, given = info.sequences or UNSAID_SEQUENCES, settings.queue
    slots = info.slots if given.fair_queue else math.inf
    quantum, places = -(-batch // info.slots), Places.of(batch, keys=1)
    return FairQueue(slots, quantum, given.fair_queue_wait_s, metrics=metrics, places=places)


def _page(metrics: Metrics) -> bytes:
    return metrics.engine_page(COUNTED_BY_ENGINES).text()


def _facts(args: Namespace, base: BaseModelSpec, engine: VllmEngine, blend_bytes: int) -> ServedFacts:
    endpoints = tuple(one for one in get_args(Endpoint) if engine.supports(one))
    return ServedFacts(
        names=tuple(args.served_model_name),
        fingerprint=base.fingerprint,
        max_lora_rank=args.max_lora_rank,
        max_model_len=args.max_model_len if isinstance(args.max_model_len, int) else None,
        adapts_experts=adapts_experts(),
        adapts_towers=bool(getattr(args, "enable_tower_connector_lora", False)),
        reads_media=not getattr(args, "language_model_only", False),
        endpoints=endpoints,
        blend_bytes=blend_bytes,
    )


def _template(link: TemplateLink, model: str, text: str) -> OwnTemplate:
    """All fronts share one line here; each key has waited for its turn at the front."""
    return LinkedTemplate(model, text, link, "")
