"""One real server for the whole session: `amalgam serve` in a process of its own, on the demo model, with keys.

It computes in bfloat16 where the processor has units for it, and in float32 elsewhere. Where exactness is the subject,
tests ask for the exact server, which computes in float32 everywhere: the same one, or a second one.
"""

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

from amalgam.engine.cpu.processor import multiplies_bfloat16
from amalgam.settings import Settings

ADMIN_KEY = "ak_test_admin-secret"
API_KEY = "ak_test_client-secret"
START_LIMIT_S = 300
ROUNDING = {"float32": 1e-3, "bfloat16": 0.25}
"""Nats by which a token's log-probability may differ between two batches that hold the same request, because products
of another shape are summed in another order. Logits of 16 to 32 are an eighth apart in bfloat16: both the token's own
one and those that weigh most in the sum may come out as a neighbour."""
QUEUED = 300
"""vLLM's own limit on the requests it knows; no test has so many at a time, so that only forgotten ones meet it."""
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
    dtype: str = "float32"
    """The type that its engine computes in."""

    @property
    def rounding(self) -> float:
        """See `ROUNDING`."""
        return ROUNDING[self.dtype]

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
        # Tests judge what a plan says, not how soon, on processors that others may use too.
        "AMALGAM_PLAN_BUDGET_S": "120",
        # Who neither sends nor reads is cut off sooner than by default, so that a test need not wait for it.
        "AMALGAM_STALL_TIMEOUT_S": "5",
        # Of nobody; no process of the engine is to be found with it.
        "HF_TOKEN": "hf_of_nobody_in_particular",
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
        with process.stderr as lines:
            for line in lines:
                log.append(line)
                found = re.search(r"Ready.*?(https?://\S+)", line)
                if found:
                    url.append(found[1])
                    ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    if not ready.wait(START_LIMIT_S) or not url:
        stop_server(process)
        pytest.fail("the server did not start:\n" + "".join(log[-60:]))
    # The checkpoint of the demo model is bfloat16.
    in_bfloat16 = "float32" not in arguments and multiplies_bfloat16(Settings().engine.cpu_units)
    return RunningServer(process, url[0], store, sources, log, dtype="bfloat16" if in_bfloat16 else "float32")


def stop_server(process: subprocess.Popen[str]) -> int:
    """SIGTERM and wait; SIGKILL to its own process group where that does not help."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait(10)


@pytest.fixture(scope="session")
def standard_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """As `amalgam serve` starts it on this machine."""
    yield from running_server(tmp_path_factory.mktemp("amalgam"), "--", "--max-num-queued-reqs", str(QUEUED))


@pytest.fixture(scope="session")
def exact_server(standard_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One that computes in float32, so that answers in any two batches are the same but for some last bits."""
    if standard_server.dtype == "float32":
        yield standard_server
    else:
        yield from running_server(tmp_path_factory.mktemp("exact"), "--", "--dtype", "float32")


def running_server(folder: Path, *arguments: str, **environment: str) -> Iterator[RunningServer]:
    """Started, and judged by how it ends where no test has stopped it."""
    running = start_server(folder, *arguments, **environment)
    yield running
    if running.stopped:
        return
    assert running.process.poll() is None, "the server died:\n" + "".join(running.log[-60:])
    assert stop_server(running.process) == 0, "".join(running.log[-60:])


@pytest.fixture
def server(standard_server: RunningServer) -> RunningServer:
    """What `client`, `async_client` and `admin` talk to; a module about exactness puts the exact server here."""
    return standard_server


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai_client(server) as session:
        yield session


@pytest.fixture
def exact_client(exact_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai_client(exact_server) as session:
        yield session


def openai_client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=120)


@pytest.fixture
async def async_client(server: RunningServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=120) as session:
        yield session


@pytest.fixture
def admin(server: RunningServer) -> Iterator[httpx.Client]:
    with server.admin() as session:
        yield session


@pytest.fixture
def exact_admin(exact_server: RunningServer) -> Iterator[httpx.Client]:
    with exact_server.admin() as session:
        yield session


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e/" in item.path.as_posix():
            item.add_marker("e2e")
