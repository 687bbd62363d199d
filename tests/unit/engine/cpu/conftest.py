"""A server over a stand-in for vLLM, whose processes say what they were started with and what they have."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from amalgam.engine.cpu import fork_server
from tests.unit.engine.cpu.fake_vllm import FILES

TOKEN = "hf_of_nobody"


Started = tuple[subprocess.Popen[str], dict[str, Any]]


class Serve(Protocol):
    """Starts a server: its process, and what it says of itself."""

    def __call__(self, worker_threads: str, way: str = "forked") -> Started: ...


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server whose worker wants so many threads, and read what it and its processes say of themselves.

    Its processes are forked, unless it is to let them be spawned.
    """
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    started: list[Started] = []

    def start(worker_threads: str, way: str = "forked") -> Started:
        kept = {name: value for name, value in os.environ.items() if not fork_server.AT_EXEC.match(name)}
        paths = os.pathsep.join([str(tmp_path), *sys.path])
        server = subprocess.Popen(
            [sys.executable, str(tmp_path / "server.py")],
            env=kept | {"PYTHONPATH": paths, "WORKER_THREADS": worker_threads, "HF_TOKEN": TOKEN, "START": way},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        started.append((server, json.loads(server.stdout.readline())))
        return started[-1]

    yield start
    for server, seen in started:
        server.kill()
        for pid in filter(lives, (seen["core"]["pid"], seen["worker"]["pid"])):
            os.kill(pid, signal.SIGKILL)
        server.communicate(timeout=30)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_only_loading(seen: dict[str, Any]) -> None:
    """Core and worker have the token while they load the model, were not started with it, and keep it no longer."""
    assert seen["token"] == TOKEN
    for process in (seen["core"], seen["worker"]):
        assert process["token_loading"] == TOKEN
        assert process["token"] is None
        assert not process["started_with_it"]


def holders(server: int) -> set[int]:
    """Of a process and all below it, those that were started with the token."""
    return {pid for pid in _below(server) if TOKEN.encode() in Path(f"/proc/{pid}/environ").read_bytes()}


def _below(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _below(int(child))
