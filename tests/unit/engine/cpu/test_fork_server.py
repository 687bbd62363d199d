"""The fork server, over a stand-in for vLLM that starts its processes alike: whose children, with what, until when."""

import os
import signal
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from amalgam.engine.cpu import fork_server
from amalgam.engine.cpu.fork_server import predicted_environment
from tests.unit.engine.cpu.conftest import Serve, assert_only_loading, holders, lives

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forked engines are for Linux")

UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def all_end(*pids: int) -> bool:
    deadline = time.monotonic() + 20
    while any(map(lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(lives, pids))


def test_core_and_worker_are_forked_from_one_server_into_their_askers_environment(serve: Serve) -> None:
    _, seen = serve("3")
    core, worker = seen["core"], seen["worker"]
    assert core["parent"] == worker["parent"] not in (seen["pid"], core["pid"])
    assert (core["word"], worker["word"]) == ("by the server", "by the core")
    assert core["threads"] == worker["threads"] == "3"
    assert core["unset"] is worker["unset"] is None


@pytest.mark.parametrize("worker_threads", ["3", "2"], ids=["worker forked", "worker spawned"])
def test_a_token_for_fetching_is_left_to_who_fetches(serve: Serve, worker_threads: str) -> None:
    _, seen = serve(worker_threads)
    assert_only_loading(seen)
    assert holders(seen["pid"]) == {seen["pid"]}


def test_a_worker_that_wants_other_threads_is_spawned(serve: Serve) -> None:
    _, seen = serve("2")
    assert seen["worker"]["parent"] == seen["core"]["pid"]
    assert (seen["worker"]["threads"], seen["worker"]["word"]) == ("2", "by the core")


def test_a_killed_server_leaves_no_process(serve: Serve) -> None:
    server, seen = serve("3")
    server.kill()
    assert all_end(seen["core"]["pid"])
    # vLLM's worker watches its core by a pipe of its own; this one has none.
    os.kill(seen["worker"]["pid"], signal.SIGKILL)
    assert all_end(seen["core"]["parent"])


def test_with_the_fork_server_die_those_it_has_forked(serve: Serve) -> None:
    _, seen = serve("3")
    os.kill(seen["core"]["parent"], signal.SIGKILL)
    assert all_end(seen["core"]["pid"], seen["worker"]["pid"])


def test_a_killed_core_is_known_by_its_exit_code_and_its_worker_can_be_ended(serve: Serve) -> None:
    server, seen = serve("3")
    assert server.stdin is not None
    assert server.stdout is not None
    print("exit code", file=server.stdin, flush=True)
    assert server.stdout.readline().strip() == str(-signal.SIGKILL)
    assert all_end(seen["worker"]["pid"])
    assert lives(seen["core"]["parent"])


def test_what_vllm_sets_for_one_worker_is_predicted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("torch/lib/libgomp.so.1", "vllm/libs/libtcmalloc_minimal.so.4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(fork_server, "package_folder", lambda package: tmp_path / package)
    monkeypatch.setattr(fork_server, "version", {"vllm-cpu": "0.32.0"}.__getitem__)
    assert predicted_environment(UNBOUND) == {
        "LD_PRELOAD": f"{tmp_path}/vllm/libs/libtcmalloc_minimal.so.4:{tmp_path}/torch/lib/libgomp.so.1"
    }
    (tmp_path / "torch/lib/libgomp.so.1").unlink()
    assert predicted_environment(UNBOUND) is None


@pytest.mark.parametrize("bind", ["auto", "0-1", "0-1|2-3", "0,2", ""])
def test_other_bindings_are_vllms_own_affair(bind: str) -> None:
    assert predicted_environment({"VLLM_CPU_OMP_THREADS_BIND": bind}) is None


def test_libraries_of_the_users_are_left_to_vllm() -> None:
    assert predicted_environment(UNBOUND | {"LD_PRELOAD": "/opt/libiomp5.so"}) is None


@pytest.mark.parametrize("versions", [{"vllm-cpu": "0.33.0"}, {"vllm": "0.32.0"}, {}])
def test_gpu_builds_and_other_versions_start_as_vllm_does(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    def version(package: str) -> str:
        if package not in versions:
            raise PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(fork_server, "version", version)
    assert predicted_environment(UNBOUND) is None
