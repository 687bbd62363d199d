"""What is written beside the loop is what vLLM itself would have written, and only for who asked for it."""

import threading
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsTensors

from amalgam.engine.prompt_logprobs import PromptLogprobs

TEXTS = {0: "a", 1: "b", 2: "\ufffd", 3: " c"}


class Tokenizer:
    """Of four tokens; remembers in which threads it was asked."""

    def __init__(self) -> None:
        self.asked_in: set[str] = set()

    def decode(self, ids: Any, *_: Any, **__: Any) -> str:
        self.asked_in.add(threading.current_thread().name)
        return "".join(TEXTS[one] for one in (ids if isinstance(ids, list) else [ids]))


def tensors(positions: int, seed: int) -> LogprobsTensors:
    made = torch.Generator().manual_seed(seed)
    return LogprobsTensors(
        torch.randint(0, 4, (positions, 3), generator=made, dtype=torch.int32),
        -torch.rand((positions, 3), generator=made),
        torch.randint(1, 9, (positions,), generator=made, dtype=torch.int32),
    )


def processor(tokenizer: Tokenizer | None = None) -> LogprobsProcessor:
    return LogprobsProcessor(
        tokenizer=tokenizer or Tokenizer(),
        logprobs=None,
        prompt_logprobs=[None],
        cumulative_logprob=None,
        num_logprobs=None,
        num_prompt_logprobs=2,
    )


class Client:
    """Returns what it is given, as AsyncLLM does with a request's final answer."""

    def __init__(self, its: LogprobsProcessor | None) -> None:
        self.state = SimpleNamespace(logprobs_processor=its)
        self.output_processor = SimpleNamespace(process_outputs=self._process, request_states={"one": self.state})
        self.closed = False

    def _process(self, outputs: list[Any]) -> None:
        for output in outputs:
            state = self.output_processor.request_states.get(output.request_id)
            if state is not None and output.new_prompt_logprobs_tensors is not None:
                state.logprobs_processor._update_prompt_logprobs(output.new_prompt_logprobs_tensors)

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncGenerator[Any]:
        try:
            for _ in range(2):
                yield SimpleNamespace(prompt_logprobs=self.state.logprobs_processor.pop_prompt_logprobs())
        finally:
            self.closed = True

    def shutdown(self, timeout: float) -> str:
        return f"shut down in {timeout}"


def stood_before(client: Client) -> Client:
    PromptLogprobs().stand_before(client)
    return client


def receive(client: Client, given: LogprobsTensors, request_id: str = "one") -> None:
    client.output_processor.process_outputs([SimpleNamespace(request_id=request_id, new_prompt_logprobs_tensors=given)])


ASKED = SimpleNamespace(prompt_logprobs=2)


@pytest.mark.parametrize("pieces", [[5], [3, 4], [1, 1, 1]])
async def test_it_is_what_vllm_writes_and_on_a_thread(pieces: list[int]) -> None:
    given = [tensors(positions, seed) for seed, positions in enumerate(pieces)]
    plain = processor()
    for piece in given:
        plain._update_prompt_logprobs(piece)
    tokenizer = Tokenizer()
    client = stood_before(Client(processor(tokenizer)))
    for piece in given:
        receive(client, piece)
    assert tokenizer.asked_in == set()
    answers = [answer async for answer in client.generate("", ASKED, "one")]
    assert answers[0].prompt_logprobs == plain.prompt_logprobs
    assert isinstance(answers[0].prompt_logprobs, list)
    assert answers[1].prompt_logprobs == []
    assert tokenizer.asked_in
    assert all(name.startswith("prompt log-probs") for name in tokenizer.asked_in)
    assert client.shutdown(2) == "shut down in 2"


async def test_who_leaves_meanwhile_is_forgotten_and_its_request_ended() -> None:
    client = stood_before(Client(processor()))
    receive(client, tensors(3, 0))
    answers = client.generate("", ASKED, "one")
    assert len((await anext(answers)).prompt_logprobs) == 4
    await answers.aclose()
    assert client.closed
    # Aborted before the core's answer came.
    receive(client, tensors(3, 0), request_id="gone")


async def test_requests_that_ask_for_none_are_left_to_vllm() -> None:
    client = Client(processor())
    own = client.generate
    stood_before(client)
    answers = client.generate("", SimpleNamespace(prompt_logprobs=None), "one")
    assert type(answers) is type(own("", None, "one"))
    assert answers.ag_code is own("", None, "one").ag_code  # type: ignore[attr-defined]
    await answers.aclose()


async def test_its_thread_ends_with_the_client() -> None:
    client = stood_before(Client(processor()))
    receive(client, tensors(3, 0))
    client.shutdown(2)
    with pytest.raises(RuntimeError, match="after shutdown"):
        await anext(client.generate("", ASKED, "one"))
