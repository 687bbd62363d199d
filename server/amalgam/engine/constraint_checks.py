"""What vLLM does to check a constraint, done on a thread of its own and with a time limit.

vLLM parses a constraint's schema or expression into a grammar while it adds a request, on the event loop that sends
every stream its tokens. The parser releases the interpreter's lock, so that on a thread it stops nobody; what the
thread found is not checked again. No class of vLLM is changed for it: checks stand before one client's ``add_request``.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from amalgam.engine.cpu import patches
from amalgam.engine.prompt_logprobs import PromptLogprobs
from amalgam.engine.token_texts import remember_short_texts

CHECK_LIMIT_S: Final = 5.0
"""One constraint's check is waited for at most so long, what stands before it in the queue included."""
_THREADS: Final = 2
_VALIDATE: Final = "vllm.sampling_params:SamplingParams._validate_structured_outputs"


class ConstraintChecks:
    """Checks constraints of requests for one client of the engine.

    Args:
        client: vLLM's AsyncLLM; its configuration says what is supported.
        limit_s: see `CHECK_LIMIT_S`.
    """

    def __init__(self, client: Any, limit_s: float = CHECK_LIMIT_S) -> None:
        self._config = client.vllm_config
        self._tokenizer = client.input_processor.tokenizer
        self._limit_s = limit_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="constraint check")
        self._running: dict[int, asyncio.Future[None]] = {}

    def stand_before(self, client: Any) -> None:
        """Check each constraint before ``client.add_request`` sees it; the client's end is that of the threads."""
        add_request, shutdown = client.add_request, client.shutdown

        async def checked(request_id: str, prompt: Any, params: Any, *args: Any, **named: Any) -> Any:
            if getattr(params, "structured_outputs", None) is not None:
                await self.check(params)
            return await add_request(request_id, prompt, params, *args, **named)

        def ended(*args: Any, **named: Any) -> Any:
            self.close()
            return shutdown(*args, **named)

        patches.put("vllm.v1.engine.async_llm:AsyncLLM.add_request", checked, on=client)
        patches.put("vllm.v1.engine.async_llm:AsyncLLM.shutdown", ended, on=client)

    async def check(self, params: Any) -> None:
        """Check what ``params``, vLLM's sampling parameters, constrain an answer to, and remember that it was checked.

        The requests that one body makes share their constraint, and its check.

        Raises:
            VLLMValidationError: vLLM refuses the constraint, or the check took longer than the limit.
        """
        shared = params.structured_outputs
        running = self._running.get(id(shared))
        if running is None:
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._threads, self._validator(params))
            self._running[id(shared)] = running
            running.add_done_callback(lambda done: self._ended(id(shared), done))
        try:
            await asyncio.wait_for(asyncio.shield(running), self._limit_s)
        except TimeoutError:
            from vllm.exceptions import VLLMValidationError

            raise VLLMValidationError(
                f"The constraint takes longer than {self._limit_s:g} seconds to compile. Send a simpler schema or "
                "expression, with fewer repetitions."
            ) from None
        patches.put(_VALIDATE, _checked_already, on=params)

    def close(self) -> None:
        """Take no more checks; one that runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _validator(self, params: Any) -> Callable[[], None]:
        def validate() -> None:
            params._validate_structured_outputs(
                self._config.model_config, self._config.structured_outputs_config, self._tokenizer
            )

        return validate

    def _ended(self, key: int, done: "asyncio.Future[None]") -> None:
        self._running.pop(key, None)
        if not done.cancelled():
            # Read, so that nothing complains where everybody who waited has left.
            done.exception()


def _checked_already(*_: Any) -> None:
    """Stands in the place of a check that was made on a thread."""


async def spare_the_loop(client: Any) -> None:
    """Keep from the event loop what ``client``, a new AsyncLLM, would do on it for one request alone."""
    from vllm.utils.gc_utils import freeze_gc_heap

    if client.input_processor.tokenizer is not None:
        remember_short_texts(client.input_processor.tokenizer)
    ConstraintChecks(client).stand_before(client)
    PromptLogprobs().stand_before(client)
    # What was imported and built stays; without this, each full collection walks it and stops the event loop.
    await asyncio.to_thread(freeze_gc_heap)
