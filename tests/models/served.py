"""Tiny models in a real server: written with their adapters, asked, and compared with transformers and PEFT."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

from tests.e2e.conftest import RunningServer, start_server, stop_server

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LIKELIEST = 5

LogProbs = Mapping[int, float]


def expected(model: torch.nn.Module, **inputs: torch.Tensor) -> LogProbs:
    """Log-probabilities of the next token, by its id, in transformers."""
    given = inputs or {"input_ids": torch.tensor([PROMPT])}
    with torch.inference_mode():
        logits: torch.Tensor = model(**given).logits[0, -1]
    return dict(enumerate(torch.log_softmax(logits.double(), -1).tolist()))


def difference(found: LogProbs, reference: LogProbs) -> float:
    """Largest, of the tokens that were found, in nats."""
    assert len(found) >= LIKELIEST
    return max(abs(value - reference[token]) for token, value in found.items())


def apart(one: LogProbs, other: LogProbs) -> float:
    """How far two references are from each other on the tokens that are likeliest in the first."""
    likeliest = sorted(one, key=lambda token: one[token], reverse=True)[:LIKELIEST]
    return max(abs(one[token] - other[token]) for token in likeliest)


@contextmanager
def serving(folder: Path, adapters: Mapping[str, Path], *flags: str) -> Iterator[RunningServer]:
    """A server on the base model in ``folder/base``, with adapters, which ends well."""
    modules = [f"{name}={path}" for name, path in adapters.items()]
    given = ["--lora-modules", *modules] if modules else []
    server = start_server(folder, str(folder / "base"), "--", *flags, *given)
    try:
        yield server
    finally:
        code = stop_server(server.process)
    assert code == 0


def completed(server: RunningServer, model: str) -> LogProbs:
    """Of the next token after `PROMPT`."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": LIKELIEST}
    with server.client() as client:
        answer = client.post("/v1/completions", json=body | {"return_tokens_as_token_ids": True})
    assert answer.status_code == 200, answer.text
    [found] = answer.json()["choices"][0]["logprobs"]["top_logprobs"]
    return {_id(token): value for token, value in found.items()}


def chatted(server: RunningServer, model: str, *parts: dict[str, Any]) -> LogProbs:
    """Of the first token of an answer to one message."""
    return likeliest(asked(server, model, *parts))


def asked(server: RunningServer, model: str, *parts: dict[str, Any]) -> httpx.Response:
    """One message, whose answer is one token with its log-probabilities."""
    body = {"model": model, "messages": [{"role": "user", "content": list(parts)}], "max_tokens": 1, "temperature": 0}
    body |= {"logprobs": True, "top_logprobs": LIKELIEST, "return_tokens_as_token_ids": True}
    with server.client() as client:
        return client.post("/v1/chat/completions", json=body)


def likeliest(answer: httpx.Response) -> LogProbs:
    """Of the first token of what `asked` gave."""
    assert answer.status_code == 200, answer.text
    [first] = answer.json()["choices"][0]["logprobs"]["content"]
    return {_id(one["token"]): one["logprob"] for one in first["top_logprobs"]}


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def finite(values: LogProbs) -> bool:
    """Whether each is a number."""
    return all(map(math.isfinite, values.values()))
