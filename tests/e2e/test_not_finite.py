"""Adapters that give NaN, by force: validation is switched off, or gone round, on a server of its own."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from amalgam.domain.clock import utc_now
from amalgam.domain.version import VersionDraft
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.store.adapter_store import AdapterStore
from tests.adapter_factory import write_lora
from tests.e2e.conftest import API_KEY, RunningServer, start_server, stop_server
from tests.e2e.engine_core import RESTART_LIMIT_S, wait_until
from tests.e2e.test_adapter_lifecycle import PROMPT, logprobs, push

pytestmark = pytest.mark.slow

OTHERS = ("smollm2", "sql", "json")


@pytest.fixture(scope="module")
def lax(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that takes any finite adapter."""
    running = start_server(tmp_path_factory.mktemp("lax"), AMALGAM_MAX_DELTA_RATIO="inf")
    yield running
    assert stop_server(running.process) == 0, "".join(running.log[-60:])


@pytest.fixture(scope="module")
def golden(lax: RunningServer) -> dict[str, list[float]]:
    with asking(lax) as client:
        return {model: logprobs(client, model) for model in OTHERS}


def asking(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=120)


def enormous(folder: Path, seed: int) -> Path:
    """Finite, and of the right shapes."""
    return write_lora(folder, rank=4, seed=seed, std=0.02e12)


def register(server: RunningServer, name: str, folder: Path) -> None:
    """Into store and registry past everything that judges adapters; return when it can be asked for."""
    store = AdapterStore.open(server.store)
    with store.stage() as staging:
        for path in folder.iterdir():
            staging.receive(path.name, iter([path.read_bytes()]))
        stored = store.publish(staging)

    async def write() -> None:
        async with Database.open(f"sqlite:///{server.store}/registry.sqlite3") as database:
            registry = AdapterRegistry(database, utc_now)
            base = (await registry.get_version("sql", 1)).base_fingerprint
            draft = VersionDraft(name, stored.digest, 4, stored.size_bytes, 210, base, "upload")
            await registry.create_version(draft, set_default=True, if_absent=False)

    asyncio.run(write())
    deadline = time.monotonic() + 30
    with asking(server) as client:
        while name not in [model.id for model in client.models.list()]:
            assert time.monotonic() < deadline, "the catalog does not follow the registry"
            time.sleep(0.2)


def restarts(server: RunningServer) -> float:
    return server.metric("amalgam_engine_restarts_total")


def until_restarted(server: RunningServer, before: float) -> None:
    deadline = time.monotonic() + RESTART_LIMIT_S
    while restarts(server) == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    wait_until(server, True, RESTART_LIMIT_S)


def assert_golden(server: RunningServer, golden: dict[str, list[float]]) -> None:
    """Several times, so that blocks of the cache are used again; short and long prompts."""
    with asking(server) as client:
        for _ in range(2):
            for model, expected in golden.items():
                assert logprobs(client, model) == pytest.approx(expected, abs=0.02), model
                long = client.completions.create(model=model, prompt=list(range(1000, 1900)), max_tokens=2, logprobs=1)
                assert long.choices[0].logprobs is not None


def error_of(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


def test_an_upload_that_gives_nan_is_refused_by_its_probe(
    lax: RunningServer, golden: dict[str, list[float]], tmp_path: Path
) -> None:
    before = restarts(lax)
    with lax.admin() as admin:
        refused = push(admin, "huge", enormous(tmp_path / "a", seed=1))
        assert refused.status_code == 422, refused.text
        assert error_of(refused)["code"] == "non_finite_output"
        assert admin.get("/admin/v1/adapters/huge").status_code == 404
    until_restarted(lax, before)
    assert lax.metric('amalgam_non_finite_answers_total{adapter="huge@1"}') == 1
    assert_golden(lax, golden)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_nan_while_serving_harms_nobody_else(
    lax: RunningServer, golden: dict[str, list[float]], tmp_path: Path, stream: bool
) -> None:
    name = f"planted-{stream}".lower()
    register(lax, name, enormous(tmp_path / "a", seed=2 + stream))
    before = restarts(lax)
    body = {"model": name, "messages": PROMPT, "max_tokens": 16, "stream": stream}
    with lax.client() as http:
        answer = http.post("/v1/chat/completions", json=body)
        told = answer.text
        if answer.status_code == 200:
            assert stream
            assert '"error"' in told
            assert "[DONE]" not in told.split('"error"')[0]
        else:
            assert answer.status_code in (500, 503), told
            assert error_of(answer)["code"] in ("non_finite_output", "engine_not_ready")
        until_restarted(lax, before)
        again = http.post("/v1/chat/completions", json=body)
        assert (again.status_code, error_of(again)["code"]) == (500, "non_finite_output")
    assert restarts(lax) == before + 1
    assert lax.metric(f'amalgam_non_finite_answers_total{{adapter="{name}@1"}}') == 1
    assert_golden(lax, golden)


def test_the_largest_change_that_is_allowed_harms_nobody(
    lax: RunningServer, golden: dict[str, list[float]], tmp_path: Path
) -> None:
    """In every module about a hundred times the weight's own size: nonsense, and finite."""
    before = restarts(lax)
    with lax.admin() as admin:
        # SmolLM2's entries are around 0.1; the product of two factors of rank 32 has entries of 0.5·√32·1.4².
        assert push(admin, "loud", write_lora(tmp_path / "a", rank=32, std=1.4, seed=5)).status_code == 201
    with asking(lax) as client:
        assert client.completions.create(model="loud", prompt=list(range(1000, 1400)), max_tokens=8).choices
    assert restarts(lax) == before
    assert_golden(lax, golden)
