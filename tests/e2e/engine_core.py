"""The engine's core as a process below a server, and whether the server says that it is ready."""

import time

import httpx
import pytest

from tests.e2e.conftest import RunningServer
from tests.support.processes import titled

RESTART_LIMIT_S = 240


def core_pid(server: RunningServer) -> int:
    """The engine's core among the server's descendants, by the title vLLM gives it."""
    for pid in titled(server.process.pid, "EngineCore"):
        return pid
    raise AssertionError("no engine core among the server's processes")


def wait_until(server: RunningServer, ready: bool, limit_s: float) -> float:
    """Seconds until /readyz says so."""
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        if (httpx.get(f"{server.url}/readyz", timeout=30).status_code == 200) is ready:
            return time.monotonic() - began
        time.sleep(0.05)
    pytest.fail(f"/readyz did not become {ready} within {limit_s} s")
