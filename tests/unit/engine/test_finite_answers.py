"""NaN in logits, as it comes out of a core: noticed before anybody is answered; and the probe's judgement."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.engine.exceptions import EngineDeadError

from amalgam.engine.finite_answers import is_answer_finite, quick_count, watch_answers


class Processor:
    """What vLLM gives a core's outputs to."""

    def __init__(self) -> None:
        names = {"q-1": "sql@1", "q-2": "json@1", "q-3": None}
        self.request_states = {key: SimpleNamespace(lora_name=name) for key, name in names.items()}
        self.processed: list[Any] = []

    def process_outputs(self, outputs: list[Any], at: float) -> str:
        self.processed += outputs
        return "processed"


def output(request_id: str, nans: int = 0) -> Any:
    return SimpleNamespace(request_id=request_id, num_nans_in_logits=nans)


@pytest.fixture
def watched() -> tuple[Processor, list[frozenset[str | None]]]:
    found: list[Any] = []
    processor = Processor()
    watch_answers(SimpleNamespace(output_processor=processor), found.append)
    return processor, found


def test_what_is_finite_goes_its_way(watched: tuple[Processor, list[Any]]) -> None:
    processor, found = watched
    outputs = [output("q-1"), output("q-3")]
    assert processor.process_outputs(outputs, 1.0) == "processed"
    assert (processor.processed, found) == (outputs, [])


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ({"q-1"}, {"sql@1"}),
        ({"q-1", "q-2"}, {"sql@1", "json@1"}),
        ({"q-3"}, {None}),
        ({"gone"}, set()),
        ({"gone", "q-2"}, {"json@1"}),
    ],
)
def test_nan_is_told_and_nothing_of_that_step_is_answered(
    watched: tuple[Processor, list[Any]], bad: set[str], names: set[str | None]
) -> None:
    processor, found = watched
    outputs = [output(key, 49152 if key in bad else 0) for key in ("q-1", "q-2", "q-3", "gone")]
    with pytest.raises(EngineDeadError):
        processor.process_outputs(outputs, 1.0)
    assert found == [names]
    assert processor.processed == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_with_nan_are_told_from_those_without(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    logits = torch.randn(5, 49152).to(getattr(torch, dtype))
    logits[0] = 60_000
    logits[1, 7] = math.nan
    # What a grammar forbids is no fault.
    logits[2, :-1] = -math.inf
    logits[3, 0], logits[3, 1] = math.inf, -math.inf
    assert quick_count(None)(logits).tolist() == [0, 1, 0, 1, 0]


def client(*logprobs: float | None, tokens: tuple[int, ...] = (7,)) -> Any:
    """Answers a probe with these; None: without log-probabilities."""

    async def generate(prompt: Any, params: Any, request_id: str, lora_request: Any) -> Any:
        assert params.logprobs is not None, "a probe that does not ask cannot judge"
        for value in logprobs:
            told = None if value is None else [{7: SimpleNamespace(logprob=value)}]
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, logprobs=told)])

    return SimpleNamespace(generate=generate)


@pytest.mark.parametrize(
    ("asked", "is_finite"),
    [
        (client(-0.5), True),
        (client(math.nan), False),
        (client(-math.inf), False),
        (client(math.inf), False),
        (client(None), False),
        (client(-0.5, tokens=()), False),
        (client(-0.5, tokens=(8,)), False),
        (client(), False),
    ],
)
async def test_a_probe_needs_a_token_with_a_finite_log_probability(asked: Any, is_finite: bool) -> None:
    assert await is_answer_finite(asked, "sql@1", None) is is_finite
