"""One real server for the whole session: `amalgam serve` in a process of its own, on the demo model, with keys."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest

ADMIN_KEY = "ak_test_admin-secret"
API_KEY = "ak_test_client-secret"
START_LIMIT_S = 300
_PR_SET_PDEATHSIG = 1


@dataclass
class RunningServer:
    """A served process and how to reach it."""

    process: subprocess.Popen[str]
    url: str
    store: Path
    sources: Path
    log: list[str] = field(default_factory=list)
    stopped: bool = False
    """Whether a test has stopped it, and judged how."""

    def admin(self, timeout_s: float = 120) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=timeout_s)

    def client(self, timeout_s: float = 120) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {API_KEY}"}, timeout=timeout_s)

    def metric(self, line_start: str) -> float:
        """The value of the first sample whose line begins so; 0 where there is none."""
        for line in httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines():
            if line.startswith(line_start):
                return float(line.rsplit(" ", 1)[1])
        return 0.0


def start_server(folder: Path, *arguments: str, **environment: str) -> RunningServer:
    """Start, and return once the server says that it is ready."""
    store, sources = folder / "store", folder / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    settings = {
        "AMALGAM_ADMIN_KEY": ADMIN_KEY,
        "AMALGAM_API_KEYS": API_KEY,
        "AMALGAM_STORE": str(store),
        "AMALGAM_SOURCE_ROOTS": str(sources),
        "AMALGAM_EXPORT_ROOT": str(folder / "exports"),
        "AMALGAM_MAX_LORAS": "4",
        "AMALGAM_MAX_CPU_LORAS": "6",
        "AMALGAM_BLEND_BYTES": str(32 << 20),
        "AMALGAM_DRAIN_TIMEOUT_S": "20",
        "AMALGAM_ENGINE_HANG_S": "30",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # Threads that spin while they wait for each other stand still on a machine that is busy with other work.
        "OMP_WAIT_POLICY": "PASSIVE",
        "NO_COLOR": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "amalgam", "serve", "--port", "0", *arguments],
        env=os.environ | settings | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # A test run that is killed takes its server along.
        preexec_fn=lambda: ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
    )
    log: list[str] = []
    ready = threading.Event()
    url: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            found = re.search(r"Ready.*?(http://\S+)", line)
            if found:
                url.append(found[1])
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    if not ready.wait(START_LIMIT_S) or not url:
        stop_server(process)
        pytest.fail("the server did not start:\n" + "".join(log[-60:]))
    return RunningServer(process, url[0], store, sources, log)


def stop_server(process: subprocess.Popen[str]) -> int:
    """SIGTERM and wait; SIGKILL to its own process group where that does not help."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait(10)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_server(tmp_path_factory.mktemp("amalgam"))
    yield running
    if running.stopped:
        return
    assert running.process.poll() is None, "the server died:\n" + "".join(running.log[-60:])
    assert stop_server(running.process) == 0, "".join(running.log[-60:])


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=120) as session:
        yield session


@pytest.fixture
async def async_client(server: RunningServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=120) as session:
        yield session


@pytest.fixture
def admin(server: RunningServer) -> Iterator[httpx.Client]:
    with server.admin() as session:
        yield session


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e/" in item.path.as_posix():
            item.add_marker("e2e")
