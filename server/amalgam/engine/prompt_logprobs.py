"""Log-probabilities of prompts, written on a thread of their own and not on the event loop.

VLLM makes an object of every alternative of every position, with its text, in the one step of the loop in which the
core returns the prompt: a tenth of a second for a prompt at the limit, in which every stream stands still. Here the
tensors are put by, and written when the one request that asked for them is about to be given its answer.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from amalgam.engine.cpu import patches

_THREADS: Final = 2


class _Unwritten(list[Any]):
    """Stands where vLLM keeps a prompt's log-probabilities, with the tensors that are still to be written into it."""

    def __init__(self, begun: list[Any], processor: Any) -> None:
        super().__init__(begun)
        self._processor = processor
        self._tensors: list[Any] = []

    def put_by(self, tensors: Any) -> None:
        """Put by more of the prompt, after what was put by before."""
        self._tensors.append(tensors)

    def write(self) -> None:
        """Write it as vLLM would have done; blocks."""
        # The processor's own list may be another one by now: a stream begins an empty one.
        writer = replace(self._processor, prompt_logprobs=self)
        while self._tensors:
            writer._update_prompt_logprobs(self._tensors.pop(0))


class PromptLogprobs:
    """What is put by for the requests of one client of the engine."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="prompt log-probs")

    def stand_before(self, client: Any) -> None:
        """Put by what ``client``, vLLM's AsyncLLM, receives, write what it gives; its end is that of the threads."""
        processor = client.output_processor
        process, generate, shutdown = processor.process_outputs, client.generate, client.shutdown

        def put_by(outputs: Any, *args: Any, **named: Any) -> Any:
            for output in outputs:
                if output.new_prompt_logprobs_tensors is not None:
                    _put_by(output, processor.request_states.get(output.request_id))
            return process(outputs, *args, **named)

        def chosen(prompt: Any, params: Any, *args: Any, **named: Any) -> Any:
            answers = generate(prompt, params, *args, **named)
            return answers if getattr(params, "prompt_logprobs", None) is None else self._written(answers)

        def ended(*args: Any, **named: Any) -> Any:
            self.close()
            return shutdown(*args, **named)

        patches.put("vllm.v1.engine.output_processor:OutputProcessor.process_outputs", put_by, on=processor)
        patches.put("vllm.v1.engine.async_llm:AsyncLLM.generate", chosen, on=client)
        patches.put("vllm.v1.engine.async_llm:AsyncLLM.shutdown", ended, on=client)

    async def _written(self, answers: Any) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        async with aclosing(answers):
            async for answer in answers:
                if isinstance(answer.prompt_logprobs, _Unwritten):
                    await loop.run_in_executor(self._threads, answer.prompt_logprobs.write)
                yield answer

    def close(self) -> None:
        """Write no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _put_by(output: Any, state: Any) -> None:
    """Take the tensors off ``output``, of the request whose ``state`` it is; None: it was aborted."""
    processor = None if state is None else state.logprobs_processor
    if processor is None or not isinstance(processor.prompt_logprobs, list):
        # Nobody's, or of a form that is written in one go.
        return
    unwritten = processor.prompt_logprobs
    if not isinstance(unwritten, _Unwritten):
        unwritten = _Unwritten(unwritten, processor)
        patches.put("vllm.v1.engine.logprobs:LogprobsProcessor.prompt_logprobs", unwritten, on=processor)
    unwritten.put_by(output.new_prompt_logprobs_tensors)
    patches.put("vllm.v1.engine:EngineCoreOutput.new_prompt_logprobs_tensors", None, on=output)
