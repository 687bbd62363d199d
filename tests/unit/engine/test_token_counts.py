"""What requests take, as it passes through vLLM's output processor: counted for whom it works, and no longer."""

from contextvars import copy_context
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from amalgam.engine.token_usage import count_tokens
from amalgam.telemetry.context import RequestContext, enter


@dataclass(eq=False)
class State:
    """As much of vLLM's state of a request as is read."""

    prompt_len: int
    request_index: int
    is_prefilling: bool = True


class Processor:
    """As much of vLLM's as is touched."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}
        self.processed = 0

    def add_request(self, request: Any, prompt: Any, parent_req: Any, request_index: int, queue: Any) -> None:
        self.request_states[request.request_id] = State(request.prompt_len, request_index)

    def process_outputs(self, outputs: list[Any], at: float) -> str:
        for output in outputs:
            if (state := self.request_states.get(output.request_id)) is not None:
                state.is_prefilling = False
        self.processed += len(outputs)
        return "processed"


def output(request_id: str, tokens: int, cached: int | None = None) -> Any:
    stats = None if cached is None else SimpleNamespace(num_cached_tokens=cached)
    return SimpleNamespace(request_id=request_id, new_token_ids=[7] * tokens, prefill_stats=stats)


@pytest.fixture
def processor() -> Processor:
    made = Processor()
    count_tokens(SimpleNamespace(output_processor=made))
    return made


def asked(processor: Processor, request_id: str, prompt_len: int, choices: int = 1) -> RequestContext:
    """A request of its own, as its handler gives it to the engine."""
    context = RequestContext(request_id)

    def ask() -> None:
        enter(context)
        for index in range(choices):
            request = SimpleNamespace(request_id=f"{index}_{request_id}", prompt_len=prompt_len)
            processor.add_request(request, None, None, index, None)

    copy_context().run(ask)
    return context


def test_prompt_and_tokens_count_for_the_request_that_asked(processor: Processor) -> None:
    one, two = asked(processor, "one", 10), asked(processor, "two", 20)
    assert processor.process_outputs([output("0_one", 1, cached=8), output("0_two", 3, cached=0)], 1.0) == "processed"
    processor.process_outputs([output("0_one", 2)], 2.0)
    assert (one.tokens.prompt, one.tokens.cached, one.tokens.completion) == (10, 8, 3)
    assert (two.tokens.prompt, two.tokens.cached, two.tokens.completion) == (20, 0, 3)


def test_choices_share_a_prompt(processor: Processor) -> None:
    context = asked(processor, "one", 10, choices=3)
    processor.process_outputs([output(f"{index}_one", 4, cached=5) for index in range(3)], 1.0)
    assert (context.tokens.prompt, context.tokens.cached, context.tokens.completion) == (10, 5, 12)


def test_what_was_generated_counts_when_the_client_has_left(processor: Processor) -> None:
    context = asked(processor, "one", 10)
    processor.process_outputs([output("0_one", 5)], 1.0)
    # As vLLM aborts a request; what the core had sent by then is nobody's any more.
    del processor.request_states["0_one"]
    processor.process_outputs([output("0_one", 5)], 2.0)
    assert (context.tokens.prompt, context.tokens.completion) == (10, 5)


def test_a_request_that_begins_anew_does_not_find_its_cache_twice(processor: Processor) -> None:
    context = asked(processor, "one", 10)
    processor.process_outputs([output("0_one", 1, cached=4)], 1.0)
    processor.process_outputs([output("0_one", 1, cached=9)], 2.0)
    assert context.tokens.cached == 4
