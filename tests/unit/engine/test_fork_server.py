"""The fork server, over a stand-in for vLLM that starts its processes alike: whose children, with what, until when."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amalgam.engine import fork_server
from amalgam.engine.fork_server import foresee
from tests.unit.engine.fake_vllm import FILES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forked engines are for Linux")

UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], dict[str, Any]]]]:
    """Start a server whose worker wants so many threads, and read what it and its processes say of themselves."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    started: list[tuple[subprocess.Popen[str], dict[str, Any]]] = []

    def start(worker_threads: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        kept = {name: value for name, value in os.environ.items() if not fork_server._AT_EXEC.match(name)}
        paths = os.pathsep.join([str(tmp_path), *sys.path])
        server = subprocess.Popen(
            [sys.executable, str(tmp_path / "server.py")],
            env=kept | {"PYTHONPATH": paths, "WORKER_THREADS": worker_threads},
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


def all_end(*pids: int) -> bool:
    deadline = time.monotonic() + 20
    while any(map(lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(lives, pids))


def test_core_and_worker_are_forked_from_one_server_into_their_askers_environment(serve) -> None:
    _, seen = serve("3")
    core, worker = seen["core"], seen["worker"]
    assert core["parent"] == worker["parent"] not in (seen["pid"], core["pid"])
    assert (core["word"], worker["word"]) == ("by the server", "by the core")
    assert core["threads"] == worker["threads"] == "3"
    assert core["unset"] is worker["unset"] is None


def test_a_worker_that_wants_other_threads_is_spawned(serve) -> None:
    _, seen = serve("2")
    assert seen["worker"]["parent"] == seen["core"]["pid"]
    assert (seen["worker"]["threads"], seen["worker"]["word"]) == ("2", "by the core")


def test_a_killed_server_leaves_no_process(serve) -> None:
    server, seen = serve("3")
    server.kill()
    assert all_end(seen["core"]["pid"])
    # vLLM's worker watches its core by a pipe of its own; this one has none.
    os.kill(seen["worker"]["pid"], signal.SIGKILL)
    assert all_end(seen["core"]["parent"])


def test_with_the_fork_server_die_those_it_has_forked(serve) -> None:
    _, seen = serve("3")
    os.kill(seen["core"]["parent"], signal.SIGKILL)
    assert all_end(seen["core"]["pid"], seen["worker"]["pid"])


def test_a_killed_core_is_known_by_its_exit_code_and_its_worker_can_be_ended(serve) -> None:
    server, seen = serve("3")
    assert server.stdin is not None
    assert server.stdout is not None
    print("exit code", file=server.stdin, flush=True)
    assert server.stdout.readline().strip() == str(-signal.SIGKILL)
    assert all_end(seen["worker"]["pid"])
    assert lives(seen["core"]["parent"])


def test_what_vllm_sets_for_one_worker_is_foreseen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("torch/lib/libgomp.so.1", "vllm/libs/libtcmalloc_minimal.so.4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(fork_server, "_folder", lambda package: tmp_path / package)
    monkeypatch.setattr(fork_server, "version", {"vllm-cpu": "0.32.0"}.__getitem__)
    assert foresee(UNBOUND) == {
        "LD_PRELOAD": f"{tmp_path}/vllm/libs/libtcmalloc_minimal.so.4:{tmp_path}/torch/lib/libgomp.so.1"
    }
    (tmp_path / "torch/lib/libgomp.so.1").unlink()
    assert foresee(UNBOUND) is None


@pytest.mark.parametrize("bind", ["auto", "0-1", "0-1|2-3", "0,2", ""])
def test_other_bindings_are_vllms_own_affair(bind: str) -> None:
    assert foresee({"VLLM_CPU_OMP_THREADS_BIND": bind}) is None


def test_libraries_of_the_users_are_left_to_vllm() -> None:
    assert foresee(UNBOUND | {"LD_PRELOAD": "/opt/libiomp5.so"}) is None


@pytest.mark.parametrize("versions", [{"vllm-cpu": "0.33.0"}, {"vllm": "0.32.0"}, {}])
def test_gpu_builds_and_other_versions_start_as_vllm_does(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    def version(package: str) -> str:
        if package not in versions:
            raise fork_server.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(fork_server, "version", version)
    assert foresee(UNBOUND) is None
