"""`amalgam engine` and `amalgam serve --engine` as programs: Ray is started, asked with its token, and ended."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.cluster.conftest import ROOT
from tests.support.running_app import write_base

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]
LONGEST_S = 120.0
_PROGRAM = (
    "import amalgam.cli.engine as engine; engine.FACTORY = 'tests.cluster.fake_replica:open_fake'; "
    "from amalgam.__main__ import main; main()"
)
"""The program with replicas of a fake engine."""


@contextmanager
def program(log: Path, *arguments: str, is_fake: bool = True) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs while the block does, with replicas of a fake engine unless told otherwise."""
    paths = os.pathsep.join([str(ROOT / "server"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"PYTHONPATH": paths, "HF_TOKEN": "hf_secret"}
    how = ("-c", _PROGRAM) if is_fake else ("-m", "amalgam")
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, *how, *arguments], stdout=output, stderr=output, env=environment)
        try:
            yield process
        finally:
            # One that a test has stopped hears of nothing before it goes on.
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def until(is_so: Callable[[], bool], log: Path, longest_s: float = LONGEST_S) -> None:
    deadline = time.monotonic() + longest_s
    while not is_so():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def environments() -> dict[int, bytes]:
    """Of all processes that this user may look into."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found[int(folder.name)] = (folder / "environ").read_bytes()
        except OSError:
            continue
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_engines_and_a_front_from_the_command_line(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed; make test-cluster installs it.")
    base, store, log, front_log = tmp_path / "base", tmp_path / "store", tmp_path / "engine.log", tmp_path / "front.log"
    write_base(base)
    port, url = free_port(), f"http://127.0.0.1:{free_port()}"
    engine_arguments = ("engine", str(base), "--port", str(port), "--store", str(store), "--served-model-name", "tiny")
    front_arguments = ("--store", str(store), "--engine", f"ray://127.0.0.1:{port}", "--port", url.rpartition(":")[2])

    with program(log, *engine_arguments):
        until(lambda: "Ready" in log.read_text(), log)
        token = store / "ray_token"
        assert token.stat().st_mode & 0o777 == 0o600
        started = {pid for pid, said in environments().items() if str(token).encode() in said}
        assert not any(b"hf_secret" in said for pid, said in environments().items() if pid in started and is_rays(pid))
        with program(front_log, "serve", str(base), *front_arguments) as front:
            until(lambda: is_ready(url) or front.poll() is not None, front_log)
            body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            assert (answer.status_code, answer.json()["model"]) == (200, "tiny")
            assert "vllm" not in Path(f"/proc/{front.pid}/maps").read_text()

        (tmp_path / "other").mkdir()
        (tmp_path / "other_token").write_text("c" * 64)
        os.environ["AMALGAM_RAY_TOKEN_FILE"] = str(tmp_path / "other_token")
        try:
            with program(front_log, "serve", str(base), *front_arguments) as front:
                until(lambda: front.poll() is not None, front_log)
        finally:
            del os.environ["AMALGAM_RAY_TOKEN_FILE"]
        assert front.returncode == 1
        assert "engines_unreachable" in front_log.read_text()

    left = {pid for pid, said in environments().items() if str(token).encode() in said and pid != os.getpid()}
    assert not left, "Ray ends with the program that started it"


def is_rays(pid: int) -> bool:
    try:
        return b"ray" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
