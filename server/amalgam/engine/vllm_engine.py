"""vLLM behind the `Engine` protocol: one AsyncLLM in this process, its core in another, and vLLM's own handlers.

vLLM is imported when the engine starts, in a thread, so that the server answers its probes meanwhile.
"""

import asyncio
import logging
import multiprocessing
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from amalgam.engine.cpu_lora_preload import EXTENSION
from amalgam.engine.fork_server import ForkServer
from amalgam.engine.preload_link import PreloadLink
from amalgam.engine.protocol import Endpoint, EngineInfo, EngineState, LoadableVersion
from amalgam.engine.residency import Residency
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady, EngineRefused
from amalgam.errors.requests import EndpointUnsupported
from amalgam.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_HEALTH_PERIOD_S = 0.2
_PING_PERIOD_S = 1.0
_RESTART_PAUSE_S = 1.0


class VllmEngine:
    """The embedded engine.

    Args:
        args: vLLM's parsed serve arguments, with LoRA enabled.
        app_state: the Starlette application's state; vLLM's handlers live in it.
        load_timeout_s: longest wait for an adapter to find a place.
        hang_limit_s: a core that is silent for so long is taken for hung, and restarted.
        on_phase: told in words what the start is doing.
        metrics: told of loads, evictions and waits.
        prepare: called in a thread before a folder is loaded; blocks, and may raise.
        fork_server: what the core and its worker are forked from; None: vLLM spawns them.
    """

    def __init__(
        self,
        args: Namespace,
        app_state: Any,
        load_timeout_s: float,
        hang_limit_s: float = 60.0,
        on_phase: Callable[[str], None] = lambda phase: None,
        metrics: Metrics | None = None,
        prepare: Callable[[Path], None] = lambda folder: None,
        fork_server: ForkServer | None = None,
    ) -> None:
        self._args = args
        self._prepare = prepare
        self._fork_server = fork_server
        self._app_state = app_state
        self._on_phase = on_phase
        self._hang_limit_s = hang_limit_s
        self._client: Any = None
        self._preloads: PreloadLink | None = None
        self._booting: asyncio.Future[Any] | None = None
        self._endpoints: Mapping[Endpoint, Any] = {}
        self._state: EngineState = "starting"
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._restarts = 0
        self._startup_s: dict[str, float] = {}
        self._supervisor: asyncio.Task[None] | None = None
        self._start_error: BaseException | None = None
        capacity = args.max_cpu_loras or args.max_loras
        self._residency = Residency(capacity, self._add_lora, self._remove_lora, load_timeout_s, metrics=metrics)

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life; a dead core shows here within the health period."""
        if self._state == "ready" and self._client.errored:
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
        )

    async def start(self) -> None:
        """Begin to start, under a supervisor that restarts a dead core."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when ready; raises EngineNotReady otherwise, and the start's own error where the start failed."""
        try:
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        except TimeoutError:
            raise EngineNotReady(self._state) from None
        if self._start_error is not None:
            raise self._start_error

    async def _supervise(self) -> None:
        pinned: tuple[LoadableVersion, ...] = ()
        while True:
            try:
                await self._boot()
            except Exception as error:
                logger.exception("the engine did not start")
                if self._restarts == 0:
                    # A first start that fails is a fault of the configuration; trying again would hide it.
                    self._state, self._start_error = "stopped", error
                    self._ready.set()
                    return
                await asyncio.sleep(_RESTART_PAUSE_S)
                continue
            restored = asyncio.create_task(self._restore(pinned), name="restore pinned versions")
            # Watched from here on: a core that dies or hangs over a pinned version is restarted too.
            try:
                await self._watch()
            finally:
                restored.cancel()
            [is_whole] = await asyncio.gather(restored, return_exceptions=True)
            logger.error("the engine's core %s; restarting it", "hangs" if self._state == "hung" else "died")
            self._ready.clear()
            self._state = "restarting"
            self._lost.set()
            self._restarts += 1
            # What a core was lost over is what the next one is to bring back.
            pinned = self._residency.pinned() if is_whole is True else pinned
            self._residency.forget_all()
            await self._bury()

    async def _watch(self) -> None:
        """Return when the core is dead, or silent for longer than the limit.

        A ping is a question that the core's own loop answers between two steps, so a core that hangs does not.
        """
        ping: asyncio.Task[Any] | None = None
        asked_at = time.monotonic()
        while not self._client.errored:
            now = time.monotonic()
            if ping is None or (ping.done() and now - asked_at >= _PING_PERIOD_S):
                ping, asked_at = asyncio.create_task(self._client.list_loras()), now
                ping.add_done_callback(_observe)
            elif not ping.done() and now - asked_at > self._hang_limit_s:
                self._state = "hung"
                break
            await asyncio.sleep(_HEALTH_PERIOD_S)
        if ping is not None:
            ping.cancel()

    async def _bury(self) -> None:
        """End the old core for good, and the requests that wait for it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        # A request that is on its way to a hung core is refused there too, instead of waiting for ever.
        self._client.engine_core.resources.engine_dead = True
        self._client.output_processor.propagate_error(EngineDeadError())
        await asyncio.to_thread(self._end_core, 1.0)

    async def _restore(self, pinned: Iterable[LoadableVersion]) -> bool:
        """Bring the pinned versions back, then open the door; False where the core was lost meanwhile."""
        for version in pinned:
            try:
                async with self._residency.hold(version):
                    self._residency.pin(version.lora_id, pinned=True)
            except Exception:
                if self._client.errored:
                    return False
                # Whatever it was: one version must not keep the door closed to all others.
                logger.exception("%s could not be pinned again", version.engine_name)
        self._state = "ready"
        self._ready.set()
        return True

    async def _boot(self) -> None:
        """Import vLLM, load the model, build vLLM's handlers."""
        began = time.monotonic()
        self._on_phase("importing vLLM")
        await asyncio.to_thread(_import_vllm)
        imported = time.monotonic()
        self._on_phase("loading the base model")
        self._booting = asyncio.ensure_future(asyncio.to_thread(_build_client, self._args, self._fork_server))
        self._client = await asyncio.shield(self._booting)
        self._lost = asyncio.Event()
        await self._client.reset_mm_cache()
        self._preloads = await _listened_to(self._client, self._args)
        loaded = time.monotonic()
        self._on_phase("preparing the endpoints")
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state

        from amalgam.engine.vllm_endpoints import endpoint_table

        await init_app_state(self._client, self._app_state, self._args, await self._client.get_supported_tasks())
        self._endpoints = endpoint_table()
        ready = time.monotonic()
        self._startup_s = {"import": imported - began, "load": loaded - imported, "handlers": ready - loaded}

    async def stop(self, drain_s: float) -> None:
        """Let running requests end within ``drain_s`` seconds, then stop the core."""
        deadline = time.monotonic() + drain_s
        while self._residency.held and time.monotonic() < deadline:  # noqa: ASYNC110  (a wait with a limit, once)
            await asyncio.sleep(0.05)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._state = "stopped"
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
        async with self._residency.hold(version):
            yield

    async def load(self, version: LoadableVersion) -> None:
        """Make ``version`` resident."""
        async with self.hold(version):
            return

    async def probe(self, version: LoadableVersion) -> None:
        """Generate one token with ``version``."""
        from vllm import SamplingParams

        async with self.hold(version):
            params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
            request_id = f"probe-{version.engine_name}-{time.monotonic_ns()}"
            stream = self._client.generate(
                {"prompt_token_ids": [0, 1]}, params, request_id, lora_request=_lora_request(version)
            )
            async for _ in stream:
                continue

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

    async def call(self, endpoint: Endpoint, body: dict[str, Any], raw_request: Any) -> Any:
        """Answer one request through vLLM's own handler."""
        self._require_ready()
        if not self.supports(endpoint):
            raise EndpointUnsupported(endpoint)
        from amalgam.engine.vllm_endpoints import answer

        try:
            return await answer(self._endpoints[endpoint], body, raw_request)
        except EngineRefused as error:
            # A core that dies under a request reads as an internal error there; the caller may try again here.
            if error.status >= 500 and self.state != "ready":
                raise EngineNotReady("restarting") from None
            raise

    def _require_ready(self) -> None:
        if self.state != "ready":
            raise EngineNotReady(self.state)

    async def _add_lora(self, version: LoadableVersion) -> None:
        request = _lora_request(version)
        try:
            await asyncio.to_thread(self._prepare, version.folder)
            if self._preloads is None or not await self._ask(self._preloads.ask(version)):
                await self._ask(self._client.add_lora(request))
        except EngineNotReady:
            raise
        except Exception as error:
            if self.state != "ready":
                raise EngineNotReady("restarting") from error
            logger.exception("vLLM refused %s", version.engine_name)
            raise EngineLoadFailed(version.engine_name) from error
        # vLLM's handlers find adapters here by name; this is its own table, so no resolver is needed.
        self._app_state.openai_serving_models.lora_requests[version.engine_name] = request

    async def _remove_lora(self, version: LoadableVersion) -> None:
        self._app_state.openai_serving_models.lora_requests.pop(version.engine_name, None)
        try:
            await self._ask(self._client.remove_lora(version.lora_id))
        except EngineNotReady:
            logger.info("%s went with the engine's core", version.engine_name)

    async def _ask(self, question: Coroutine[Any, Any, Any]) -> Any:
        """The core's answer; vLLM leaves a question that a lost core did not answer open for ever.

        Raises:
            EngineNotReady: the core was lost first.
        """
        answer, lost = asyncio.ensure_future(question), asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait((answer, lost), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise EngineNotReady("restarting")
            return answer.result()
        finally:
            answer.cancel()
            lost.cancel()


def _import_vllm() -> None:
    import vllm.entrypoints.launchers.api_server.app_state
    import vllm.v1.engine.async_llm  # noqa: F401


def _build_client(args: Namespace, fork_server: ForkServer | None) -> Any:
    """Start the core process and connect to it; blocks until the model is loaded."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    if fork_server is not None:
        # Also when a core is started again: the fork server may have died with it.
        fork_server.start()
        fork_server.adopt_core()
    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    return AsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
    )


async def _listened_to(client: Any, args: Namespace) -> PreloadLink | None:
    """Where the worker reads adapters beside its steps; None where it has not learned to, or is not alone."""
    if args.worker_extension_cls != EXTENSION or client.vllm_config.parallel_config.world_size > 1:
        return None
    where = f"\0amalgam-preload-{uuid4().hex}"
    await client.collective_rpc("listen_for_preloads", args=(where,))
    return PreloadLink(where)


def _lora_request(version: LoadableVersion) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name=version.engine_name, lora_int_id=version.lora_id, lora_path=str(version.folder))


def _observe(task: asyncio.Task[Any]) -> None:
    """Read a ping's outcome: a core that dies under it is seen by other means, and asyncio need not report it too."""
    if not task.cancelled():
        task.exception()
