"""vLLM behind the `Engine` protocol: one AsyncLLM in this process, its core in another, and vLLM's own handlers.

vLLM is imported when the engine starts, in a thread, so that the server answers its probes meanwhile.
"""

import asyncio
import logging
import multiprocessing
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from amalgam.engine.constraint_checks import spare_the_loop
from amalgam.engine.constraint_failures import explained
from amalgam.engine.core_watch import watch_core
from amalgam.engine.cpu.fork_server import ForkServer
from amalgam.engine.engine_metrics import drop_combinations
from amalgam.engine.finite_answers import is_answer_finite, watch_answers
from amalgam.engine.load_threads import LoadThreads
from amalgam.engine.protocol import (
    FIRST_BLEND_ID,
    CallProfile,
    Endpoint,
    EngineInfo,
    EngineState,
    LoadableVersion,
)
from amalgam.engine.residency import Residency
from amalgam.engine.spawned import SpawnedCore
from amalgam.engine.start_proof import Proof, no_proof, prove_adapter, prove_base
from amalgam.engine.start_reason import is_of_configuration, start_reason
from amalgam.engine.token_usage import count_tokens
from amalgam.engine.vllm_adapters import VllmAdapters
from amalgam.engine.vllm_client import build_client, facts, import_vllm, listened_to, lora_request, refuse_all
from amalgam.engine.written_answers import AnswerThreads
from amalgam.errors import AmalgamError
from amalgam.errors.engine import EngineNotReady, EngineRefused, EngineStartFailed, NonFiniteOutput
from amalgam.errors.requests import EndpointUnsupported
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.no_metrics import NO_METRICS

logger = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0
"""It lies before the first restart, and doubles with every failed one."""
LONGEST_PAUSE_S = 30.0
"""It bounds the pauses between restarts."""
_MAX_FAILED_STARTS = 6
"""So many restarts may fail in a row; with the pauses between them, they are a minute and the time that the starts
take."""


class VllmEngine:
    """The embedded engine.

    Args:
        args: vLLM's parsed serve arguments, with LoRA enabled.
        app_state: the Starlette application's state; vLLM's handlers live in it.
        load_timeout_s: longest wait for an adapter to find a place.
        hang_limit_s: a core that is silent for so long is taken for hung, and restarted.
        on_phase: told in words what the start is doing.
        on_failed: told why, once the first start has failed; there is no second one.
        metrics: told of loads, evictions and waits.
        prepare: called in a thread before a folder is loaded; blocks, and may raise.
        fork_server: what the core and its worker are forked from; None: vLLM spawns them.
        proof: gives the folder of an adapter that each new core is tried with; blocks.
    """

    def __init__(
        self,
        args: Namespace,
        app_state: Any,
        load_timeout_s: float,
        hang_limit_s: float = 60.0,
        on_phase: Callable[[str], None] = lambda phase: None,
        metrics: Metrics = NO_METRICS,
        prepare: Callable[[Path], None] = lambda folder: None,
        fork_server: ForkServer | None = None,
        on_failed: Callable[[BaseException], None] = lambda error: None,
        proof: Proof = no_proof,
    ) -> None:
        self._args = args
        self._proof = proof
        self._fork_server = fork_server
        self._processes = fork_server or SpawnedCore()
        self._app_state = app_state
        self._on_phase = on_phase
        self._on_failed = on_failed
        self._metrics = metrics
        self._hang_limit_s = hang_limit_s
        self._client: Any = None
        self._booting: asyncio.Future[Any] | None = None
        self._endpoints: Mapping[Endpoint, Any] = {}
        self._state: EngineState = "starting"
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._restarts = 0
        self._startup_s: dict[str, float] = {}
        self._supervisor: asyncio.Task[None] | None = None
        self._start_error: BaseException | None = None
        self._is_unclean = False
        self._barred: set[str] = set()
        self._blend_ids = count(FIRST_BLEND_ID)
        capacity = args.max_cpu_loras or args.max_loras
        self._adapters = VllmAdapters(app_state, LoadThreads(prepare, capacity), lambda: self.state)
        self._residency = Residency(
            capacity, self._adapters.add, self._adapters.remove, load_timeout_s, metrics=metrics
        )
        self._answers = AnswerThreads()

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life; a dead core shows here within the health period."""
        if self._state == "ready" and (self._client.errored or self._is_unclean):
            return "dead"
        return self._state

    def info(self) -> EngineInfo:
        """A snapshot for operators."""
        return EngineInfo(
            state=self.state,
            served_name=self._args.served_model_name[0],
            slots=self._args.max_loras,
            capacity=self._args.max_cpu_loras or self._args.max_loras,
            max_rank=self._args.max_lora_rank,
            restarts=self._restarts,
            residents=self._residency.residents(),
            startup_s=dict(self._startup_s),
            **facts(self._client),
        )

    def new_blend_id(self) -> int:
        """The next one."""
        return next(self._blend_ids)

    @property
    def is_elsewhere(self) -> bool:
        """It is in this process."""
        return False

    async def pages(self) -> Mapping[str, bytes]:
        """None: its numbers are in this process."""
        return {}

    async def start(self) -> None:
        """Begin to start, under a supervisor that restarts a dead core."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when ready; raises EngineNotReady otherwise, and EngineStartFailed where the start failed."""
        try:
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        except TimeoutError:
            raise EngineNotReady(self._state) from None
        if self._start_error is not None:
            # One error for all who wait, which would gather all their traces.
            raise self._start_error.with_traceback(None)

    async def _supervise(self) -> None:
        pinned: tuple[LoadableVersion, ...] = ()
        failures = 0
        while True:
            try:
                await self._boot()
            except Exception as error:
                reason = start_reason(error, self._processes.cause())
                shown = None if is_of_configuration(error) else error
                logger.error("engine_start_failed reason=%s", reason, exc_info=shown)
                failures += 1
                # A first start that fails is a fault of the configuration; trying again would hide it.
                if self._restarts == 0 or failures >= _MAX_FAILED_STARTS:
                    is_told = isinstance(error, AmalgamError) and start_reason(error) == reason
                    self._give_up(error if is_told else EngineStartFailed(reason))
                    return
                await asyncio.sleep(_pause_s(failures))
                continue
            restored = asyncio.create_task(self._restore(pinned), name="restore pinned versions")
            # Watched from here on: a core that dies or hangs over a pinned version is restarted too.
            try:
                if await watch_core(self._client, self._hang_limit_s, lambda: self._is_unclean) == "hung":
                    self._state = "hung"
            finally:
                restored.cancel()
            [is_whole] = await asyncio.gather(restored, return_exceptions=True)
            logger.error("engine_restarting reason=%s", self._what_happened())
            failures = 0 if self._ready.is_set() else failures + 1
            self._ready.clear()
            self._state = "restarting"
            self._lost.set()
            self._restarts += 1
            # What a core was lost over is what the next one is to bring back.
            pinned = self._residency.pinned() if is_whole is True else pinned
            self._residency.forget_all()
            await self._shut_down_core()
            if failures >= _MAX_FAILED_STARTS:
                self._give_up(EngineNotReady("lost each time before it is ready"))
                return
            await asyncio.sleep(_pause_s(failures) if failures else 0)

    def _give_up(self, error: BaseException) -> None:
        """Nothing more is tried: whoever started this process knows by its end, or by `/livez`."""
        self._state, self._start_error = "down", error
        self._ready.set()
        if self._restarts == 0:
            self._on_failed(error)

    def _what_happened(self) -> str:
        if self._is_unclean:
            return "gave values that are not finite"
        return "hangs" if self._state == "hung" else "died"

    async def _shut_down_core(self) -> None:
        """End the old core for good, and the requests that wait for it."""
        refuse_all(self._client)
        await asyncio.to_thread(self._end_core, 1.0)

    async def _restore(self, pinned: Iterable[LoadableVersion]) -> bool:
        """Bring the pinned versions back, then accept requests; False where the core was lost meanwhile."""
        for version in pinned:
            try:
                async with self._residency.hold(version):
                    self._residency.pin(version.lora_id, pinned=True)
            except Exception:
                if self._client.errored:
                    return False
                # Whatever it was: one version must not keep all others from being served.
                logger.exception("pin_failed version=%s", version.engine_name)
        self._state = "ready"
        self._ready.set()
        return True

    async def _boot(self) -> None:
        """Import vLLM, load the model, build vLLM's handlers."""
        began = time.monotonic()
        self._on_phase("importing vLLM")
        await asyncio.to_thread(import_vllm)
        imported = time.monotonic()
        self._on_phase("loading the base model")
        self._booting = asyncio.ensure_future(asyncio.to_thread(build_client, self._args, self._processes))
        self._client = await asyncio.shield(self._booting)
        loaded = time.monotonic()
        try:
            prepared = await self._equip()
        except BaseException:
            # Nobody would end this core: the next start makes another.
            await asyncio.to_thread(self._end_core, 1.0)
            raise
        self._startup_s = {
            "import": imported - began,
            "load": loaded - imported,
            "handlers": prepared - loaded,
            "first token": time.monotonic() - prepared,
        }

    async def _equip(self) -> float:
        """What a new core needs before it is of use; the monotonic time at which all but its first token was there."""
        self._lost, self._is_unclean = asyncio.Event(), False
        watch_answers(self._client, self._found_not_finite)
        count_tokens(self._client)
        drop_combinations(self._client.logger_manager)
        await self._client.reset_mm_cache()
        self._adapters.begin(self._client, self._lost, await listened_to(self._client, self._args))
        self._on_phase("preparing the endpoints")
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state

        from amalgam.engine.vllm_endpoints import prepared_endpoints

        tasks = await self._client.get_supported_tasks()
        await init_app_state(self._client, self._app_state, self._args, tasks)
        self._endpoints = prepared_endpoints(self._app_state, self._answers)
        await spare_the_loop(self._client)
        prepared = time.monotonic()
        if "generate" in tasks:
            self._on_phase("asking for a first token")
            await prove_base(self._client, self._args.served_model_name[0], lambda: self._is_unclean)
            self._on_phase("asking an adapter for a token")
            await prove_adapter(self._client, self._proof, lambda: self._is_unclean)
        return prepared

    def _found_not_finite(self, names: frozenset[str | None]) -> None:
        """Logits of these adapters held NaN, and so does the cache: the core is restarted, and they are let in no more.

        The base model, None among them, cannot be kept out.
        """
        base = self._args.served_model_name[0]
        logger.error("answer_not_finite versions=%s", ",".join(sorted(name or base for name in names)))
        for name in names:
            self._metrics.answer_not_finite(name or base)
        self._barred |= {name for name in names if name is not None}
        self._is_unclean = True

    async def stop(self, drain_s: float) -> None:
        """Let running requests end within ``drain_s`` seconds, then stop the core."""
        deadline = time.monotonic() + drain_s
        while self._residency.held and time.monotonic() < deadline:  # noqa: ASYNC110  (a wait with a limit, once)
            await asyncio.sleep(0.05)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._state = "stopped"
        self._adapters.close()
        self._answers.close()
        if self._booting is not None:
            if not self._booting.done():
                # The thread that waits for a starting core cannot be cancelled; without its core it gives up by itself.
                for child in multiprocessing.active_children():
                    child.kill()
                if self._fork_server is not None:
                    self._fork_server.end_children()
            await asyncio.wait([self._booting])
            if self._booting.exception() is None:
                self._client = self._booting.result()
        if self._client is not None:
            await asyncio.to_thread(self._end_core, 5.0)

    def _end_core(self, timeout_s: float) -> None:
        self._client.shutdown(timeout=timeout_s)
        if self._fork_server is not None:
            self._fork_server.end_children()

    @asynccontextmanager
    async def hold(self, version: LoadableVersion | None) -> AsyncIterator[None]:
        """Keep ``version`` resident while the block runs; None is the base model."""
        self._require_ready()
        if version is None:
            yield
            return
        self._require_finite(version.engine_name)
        async with self._residency.hold(version):
            yield

    async def load(self, version: LoadableVersion) -> None:
        """Make ``version`` resident."""
        async with self.hold(version):
            return

    async def probe(self, version: LoadableVersion) -> None:
        """Generate one token with ``version``, and look at its log-probability."""
        from vllm.v1.engine.exceptions import EngineDeadError

        async with self.hold(version):
            try:
                is_finite = await is_answer_finite(self._client, version.engine_name, lora_request(version))
            except EngineDeadError:
                self._require_finite(version.engine_name)
                raise EngineNotReady("restarting") from None
            if not is_finite:
                self._found_not_finite(frozenset({version.engine_name}))
                self._require_finite(version.engine_name)

    async def untaken(self, modules: Collection[str]) -> frozenset[str]:
        """Those of ``modules`` that it puts no LoRA on; none before it is ready."""
        return await self._adapters.untaken(modules) if self.state == "ready" else frozenset()

    async def unload(self, lora_id: int) -> bool:
        """Wait until nobody holds the version, then free it."""
        return await self._residency.unload(lora_id)

    async def pin(self, lora_id: int, *, pinned: bool) -> bool:
        """Exempt a resident version from eviction, or end that."""
        return self._residency.pin(lora_id, pinned=pinned)

    def supports(self, endpoint: Endpoint) -> bool:
        """Whether vLLM built a handler for ``endpoint``."""
        spec = self._endpoints.get(endpoint)
        return spec is not None and getattr(self._app_state, spec.state_attribute, None) is not None

    async def call(
        self, endpoint: Endpoint, body: dict[str, Any], raw_request: Any, profile: CallProfile | None = None
    ) -> Any:
        """Answer one request through vLLM's own handler."""
        self._require_ready()
        if not self.supports(endpoint):
            raise EndpointUnsupported(endpoint)
        from amalgam.engine.vllm_endpoints import answer

        try:
            return await answer(self._endpoints[endpoint], body, raw_request, self._answers, profile)
        except (EngineRefused, EngineNotReady) as error:
            if error.status >= 500 and self.state != "ready":
                self._require_finite(body["model"])
                # A core that dies under a request reads as an internal error there; the caller may try again here.
                raise EngineNotReady("restarting") from None
            raise explained(error, body) from None

    def _require_finite(self, engine_name: str) -> None:
        if engine_name in self._barred:
            raise NonFiniteOutput(engine_name)

    def _require_ready(self) -> None:
        if self.state != "ready":
            raise EngineNotReady(self.state)


def _pause_s(failures: int) -> float:
    return float(min(RESTART_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S))
