"""The head of Ray dies: engines end with it and say so, fronts are red and answer what needs no engine."""

import importlib.util
import logging
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.cluster.test_command_line import free_port, is_ready, program, until
from tests.support.processes import titled
from tests.support.running_app import write_base

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
logger = logging.getLogger(__name__)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}


def is_answered(url: str) -> bool:
    return httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=60).status_code == 200


def test_a_lost_head_is_told_and_everything_comes_back_with_new_programs(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; make test-cluster installs it.")
    base, store, log, front_log = (
        write_base(tmp_path / "base"),
        tmp_path / "store",
        tmp_path / "e.log",
        tmp_path / "f.log",
    )
    port, url = free_port(), f"http://127.0.0.1:{free_port()}"
    engine = ("engine", str(base), "--port", str(port), "--store", str(store), "--served-model-name", "tiny")
    where = ("--store", str(store), "--engine", f"ray://127.0.0.1:{port}", "--port", url.rpartition(":")[2])
    with program(log, *engine) as engines:
        until(lambda: "Ready" in log.read_text(), log)
        with program(front_log, "serve", str(base), *where) as front:
            until(lambda: is_ready(url) or front.poll() is not None, front_log)
            assert is_answered(url)
            began = time.monotonic()
            (head,) = titled(engines.pid, "gcs_server")
            os.kill(head, signal.SIGKILL)
            until(lambda: engines.poll() is not None, log)
            logger.info("seen engines_ended_after_s=%.1f", time.monotonic() - began)
            assert engines.returncode == 1
            assert "ray_ended" in log.read_text()
            until(lambda: not is_ready(url), front_log)
            logger.info("seen red_after_s=%.1f", time.monotonic() - began)
            if front.poll() is None:
                refused = httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=60)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_not_ready")
                assert httpx.get(f"{url}/admin/v1/adapters", timeout=30).status_code == 200
                assert httpx.get(f"{url}/livez", timeout=5).status_code == 200
            until(lambda: front.poll() is not None or time.monotonic() - began > 100, front_log)
            logger.info("seen front status=%s after_s=%.1f", front.poll(), time.monotonic() - began)
    with program(log, *engine) as engines:
        until(lambda: "Ready" in log.read_text() or engines.poll() is not None, log)
        with program(front_log, "serve", str(base), *where) as front:
            until(lambda: is_ready(url) or front.poll() is not None, front_log)
            assert is_answered(url)
