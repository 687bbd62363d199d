"""The prefix cache on the real engine: one key finds what it has asked itself, and never what another has."""

import time
import uuid

import httpx

from tests.e2e.conftest import RunningServer

HITS = "vllm:prefix_cache_hits_total"
WORDS = 400
"""Several blocks of the cache; a shorter prompt would be found by nobody."""


def hits(server: RunningServer) -> float:
    """The counter, once the engine has written it down."""
    time.sleep(0.5)
    return server.metric(HITS)


def ask(session: httpx.Client, model: str, prompt: str) -> None:
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    answer = session.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text


def test_a_prompt_of_another_key_is_not_found(server: RunningServer) -> None:
    for model in ("smollm2", "sql"):
        prompt = f"{uuid.uuid4()} " + "word " * WORDS
        with server.client() as one, server.admin() as other:
            before = hits(server)
            ask(one, model, prompt)
            assert hits(server) == before, "nobody has asked this"
            ask(other, model, prompt)
            assert hits(server) == before, "another key has asked this, and the second is told so"
            ask(one, model, prompt)
            own = hits(server)
            assert own > before, "the same key finds what it has asked"
            ask(other, model, prompt)
            assert hits(server) > own


def test_a_salt_of_the_clients_own_is_refused(server: RunningServer) -> None:
    with server.client() as session:
        answer = session.post("/v1/completions", json={"model": "sql", "prompt": "a", "cache_salt": "another's"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cache_salt")
