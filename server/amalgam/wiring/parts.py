"""What every subsystem is built from: the settings, the engine, and what a start is asked for."""

import os
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from amalgam.engine.cpu.fork_server import ForkServer
from amalgam.engine.protocol import Engine
from amalgam.engine.vllm_engine import VllmEngine
from amalgam.services.background_loops import BackgroundLoops
from amalgam.services.child_environment import child_environment
from amalgam.settings import Settings
from amalgam.store.artifact_checks import ArtifactChecks
from amalgam.store.page_cache import checked_read_ahead
from amalgam.store.proof_adapter import proof_adapter
from amalgam.telemetry.metrics import Metrics

ENGINE_START_TIMEOUT_S: Final = 1800.0
UNSAID_SEQUENCES: Final = 128
"""A full batch has so many, where vLLM does not say."""

EngineFactory = Callable[[Any], Engine]
"""It makes the engine from the application's state."""


def _ignore(*_: object) -> None:
    """Do nothing with what a caller does not want to hear."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a start is asked for in addition to the settings, and whom it tells what."""

    on_phase: Callable[[str], None] = _ignore
    """It is told what the engine's start is doing."""
    on_ready: Callable[[dict[str, float]], None] = _ignore
    """It is told the seconds of the start by phase, once requests are answered."""
    on_failed: Callable[[BaseException], None] = _ignore
    """It is told why the engine's first start failed; nothing more is tried."""
    demo_folders: Mapping[str, Path] = field(default_factory=dict)
    """These adapters are registered on the first start, by name."""
    lora_modules: Mapping[str, str] = field(default_factory=dict)
    """These are the sources of adapters to serve from the start, by name."""
    fork_server: ForkServer | None = None
    """The engine's processes are forked from it; None: vLLM spawns them."""
    worker_command: Sequence[str] = (sys.executable, "-m", "amalgam", "worker")
    blender_command: Sequence[str] = (sys.executable, "-m", "amalgam", "blender")
    template_command: Sequence[str] = (sys.executable, "-m", "amalgam.workers.template_process")


@dataclass(frozen=True, slots=True)
class Parts:
    """What every subsystem is built from."""

    stack: AsyncExitStack
    """It closes in reverse what is opened."""
    settings: Settings
    args: Namespace
    """They are vLLM's parsed serve arguments."""
    start: Start
    engine: Engine
    metrics: Metrics
    checks: ArtifactChecks
    loops: BackgroundLoops

    def engine_ready(self) -> Awaitable[None]:
        """Returns when the engine answers."""
        return self.engine.wait_ready(ENGINE_START_TIMEOUT_S)

    def child(self, max_lora_rank: int, model_dir: str | None) -> dict[str, str]:
        """The environment of a child process; see `child_environment`."""
        return child_environment(os.environ, self.settings, max_lora_rank, model_dir)


def embedded(
    settings: Settings, args: Namespace, start: Start, metrics: Metrics, checks: ArtifactChecks
) -> EngineFactory:
    """Makes the embedded vLLM."""

    def engine(state: Any) -> Engine:
        limits, prepare = (settings.engine.load_timeout_s, settings.engine.engine_hang_s), checked_read_ahead(checks)
        on_phase, on_failed, proof = start.on_phase, start.on_failed, partial(proof_adapter, Path(args.model))
        return VllmEngine(args, state, *limits, on_phase, metrics, prepare, start.fork_server, on_failed, proof)

    return engine
