"""Adapters that vLLM loads and frees: read, sent to its core, and listed where its handlers look for them."""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from amalgam.engine.adaptable import ASKED, untaken
from amalgam.engine.core_watch import answer_unless_lost
from amalgam.engine.cpu.preload import EXTENSION, PreloadLink
from amalgam.engine.load_threads import LoadThreads
from amalgam.engine.protocol import EngineState, LoadableVersion
from amalgam.engine.start_reason import start_reason
from amalgam.engine.vllm_client import lora_request
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady

logger = logging.getLogger(__name__)


class VllmAdapters:
    """Loads and frees adapters in one core after another.

    Args:
        app_state: the Starlette application's state, where vLLM's handlers have their table of adapters.
        loads: threads that read a folder before the core is told of it.
        state: where the engine is in its life.
    """

    def __init__(self, app_state: Any, loads: LoadThreads, state: Callable[[], EngineState]) -> None:
        self._app_state = app_state
        self._loads = loads
        self._state = state
        self._client: Any = None
        self._lost: asyncio.Event | None = None
        self._preloads: PreloadLink | None = None
        self._untaken: frozenset[str] | None = None

    def begin(self, client: Any, lost: asyncio.Event, preloads: PreloadLink | None) -> None:
        """Speak to a new core from now on.

        Args:
            client: vLLM's, of that core.
            lost: set when the core is lost.
            preloads: where its worker reads adapters in parallel with its steps; None where it does not.
        """
        self._client, self._lost, self._preloads = client, lost, preloads

    async def add(self, version: LoadableVersion) -> None:
        """Have the core load ``version``.

        Raises:
            EngineNotReady: the core is lost meanwhile.
            EngineLoadFailed: vLLM refuses it. Besides, as `LoadThreads.prepare`.
        """
        request = lora_request(version)
        # Of a file that is damaged the core never hears.
        await self._loads.prepare(version)
        try:
            if self._preloads is None or not await self._ask(self._preloads.ask(version)):
                await self._ask(self._client.add_lora(request))
        except EngineNotReady:
            raise
        except Exception as error:
            if self._state() != "ready":
                raise EngineNotReady("restarting") from error
            logger.exception("adapter_load_failed version=%s reason=vLLM refused it", version.engine_name)
            reason = start_reason(error).replace(str(version.folder), "its folder")
            raise EngineLoadFailed(version.engine_name, reason) from error
        # vLLM's handlers find adapters here by name; this is its own table, so no resolver is needed.
        self._app_state.openai_serving_models.lora_requests[version.engine_name] = request

    async def remove(self, version: LoadableVersion) -> None:
        """Have the core free ``version``; one that is lost has freed everything."""
        self._app_state.openai_serving_models.lora_requests.pop(version.engine_name, None)
        try:
            await self._ask(self._client.remove_lora(version.lora_id))
        except EngineNotReady:
            logger.info("adapter_lost version=%s reason=the engine's core ended", version.engine_name)

    async def untaken(self, modules: Collection[str]) -> frozenset[str]:
        """Those of ``modules`` that the core takes no factors for; none where a worker of another class cannot say."""
        if self._client.vllm_config.parallel_config.worker_extension_cls not in (ASKED, EXTENSION):
            return frozenset()
        if self._untaken is None:
            try:
                # Of one base model and one set of flags, it is the same in every core.
                self._untaken = await self._ask(untaken(self._client, modules))
            except EngineNotReady:
                raise
            except Exception as error:
                # What no layer takes is then found out by the load, before the version serves a request.
                logger.warning("modules_not_told reason=%s", start_reason(error))
                return frozenset()
        return self._untaken

    def close(self) -> None:
        """Begin no more loads."""
        self._loads.close()

    async def _ask(self, question: Coroutine[Any, Any, Any]) -> Any:
        assert self._lost is not None
        return await answer_unless_lost(question, self._lost)
