"""The prefix cache and new weights under an old name: nothing that an earlier version left there is found."""

import time
from pathlib import Path
from typing import Final

import httpx
import openai
import pytest

from tests.adapter_factory import write_lora
from tests.e2e.conftest import RunningServer
from tests.e2e.test_adapter_lifecycle import push

PROMPT = list(range(1000, 1600))
"""Several blocks of the cache on every platform; of a prompt shorter than one nothing is kept."""


APART: Final = 0.3
"""Log-probabilities of one version differ by a tenth in bfloat16 where a part of the prompt was found; those of two
versions by more than this in at least one token."""


def answer(server: RunningServer, client: openai.OpenAI, model: str) -> tuple[list[float], float]:
    """Log-probabilities of the first tokens, and how many tokens of the prompt were found in the cache."""
    before = hits(server)
    found = client.completions.create(model=model, prompt=PROMPT, max_tokens=4, temperature=0, logprobs=0)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    return [value for value in logprobs.token_logprobs if value is not None], hits(server) - before


def hits(server: RunningServer) -> float:
    """The counter, once the engine has written it down."""
    time.sleep(0.5)
    return server.metric("vllm:prefix_cache_hits_total")


def test_the_first_answer_of_new_weights_is_their_cold_answer(
    server: RunningServer, admin: httpx.Client, client: openai.OpenAI, tmp_path: Path
) -> None:
    old = write_lora(tmp_path / "old", rank=4, seed=41, std=0.05)
    new = write_lora(tmp_path / "new", rank=4, seed=42, std=0.05)
    assert push(admin, "renewed", old).json()["model"] == "renewed@1"
    first, found = answer(server, client, "renewed")
    assert found == 0
    again, found = answer(server, client, "renewed")
    assert found >= len(PROMPT) // 2, "the prompt is long enough to be found"
    assert again == pytest.approx(first, abs=APART)

    assert push(admin, "twin", new).status_code == 201
    cold, found = answer(server, client, "twin")
    assert found == 0, "a version of another name finds nothing of this one"
    assert cold != pytest.approx(first, abs=APART), "weights that answer alike would prove nothing"

    assert push(admin, "renewed", new).json()["model"] == "renewed@2"
    flipped, found = answer(server, client, "renewed")
    assert found == 0, "the new version finds nothing of the old one"
    assert flipped == pytest.approx(cold, abs=0.05)
    kept, found = answer(server, client, "renewed@1")
    assert found >= len(PROMPT) // 2, "the old one is still there for who names it"
    assert kept == pytest.approx(first, abs=APART)
