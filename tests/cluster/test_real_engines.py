"""Two engines with vLLM on the demo model, and two fronts: one set of greedy answers, though an engine or core dies."""

import importlib.util
import logging
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.cluster.test_command_line import free_port, is_ready, program, until
from tests.support.processes import titled

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
logger = logging.getLogger(__name__)
MODELS = ("smollm2", "sql", "json", "code", "0.6*sql + 0.4*json", "0.5*code + 0.5*json")
ENGINE, CORE = "ServeReplica", "EngineCore"
PROMPT = "List the names of all customers who ordered twice."


def answers(url: str) -> dict[str, str]:
    """Of every model, one after another."""
    found = {}
    for model in MODELS:
        body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12, "temperature": 0}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=300)
        assert answer.status_code == 200, (model, answer.text)
        found[model] = answer.json()["choices"][0]["message"]["content"]
    return found


def test_two_fronts_and_two_engines_give_one_set_of_answers(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; make test-cluster installs it.")
    store, port, urls = tmp_path / "store", free_port(), [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    with ExitStack() as stack:
        log = tmp_path / "engines.log"
        command = ("engine", "--replicas", "2", "--port", str(port), "--store", str(store))
        engines = stack.enter_context(program(log, *command, is_fake=False))
        until(lambda: "Ready" in log.read_text() or engines.poll() is not None, log, 900)
        for url in urls:
            of_front = tmp_path / f"front-{url.rpartition(':')[2]}.log"
            told = ("--engine", f"ray://127.0.0.1:{port}", "--store", str(store), "--port", url.rpartition(":")[2])
            stack.enter_context(program(of_front, "serve", *told, is_fake=False))
            until(lambda url=url: is_ready(url), of_front, 300)  # type: ignore[misc]
        began = time.monotonic()
        said = answers(urls[0])
        logger.info("seen answers_s=%.1f %s", time.monotonic() - began, said)
        assert len(set(said.values())) > 3, "adapters answer otherwise than the base model"
        assert answers(urls[1]) == said
        (victim, *_) = found = titled(engines.pid, ENGINE)
        assert len(found) == 2
        os.kill(victim, signal.SIGKILL)
        assert answers(urls[1]) == said
        deadline = time.monotonic() + 600
        while len([pid for pid in titled(engines.pid, ENGINE) if pid != victim]) < 2:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(1)
        assert answers(urls[0]) == said
        core, *_ = before = titled(engines.pid, CORE)
        assert len(before) == 2
        began = time.monotonic()
        os.kill(core, signal.SIGKILL)
        assert answers(urls[1]) == said
        logger.info("seen answers_while_a_core_is_away_s=%.1f", time.monotonic() - began)
        until(lambda: len([pid for pid in titled(engines.pid, CORE) if pid != core]) == 2, log, 600)
        logger.info("seen core_back_after_s=%.1f", time.monotonic() - began)
        assert answers(urls[0]) == said
