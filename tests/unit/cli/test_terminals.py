"""The command line as a program: a reader that leaves, a full disk, few letters, no colours, narrow, interrupted."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapter_factory import write_lora

AMALGAM = (sys.executable, "-m", "amalgam")
LIMIT_S = 120
METHODS = ("merge", "methods")


def environment(**changes: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIOENC"))}
    return own | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} | changes


def run(*words: str, **changes: str) -> subprocess.CompletedProcess[bytes]:
    command = [*AMALGAM, *words]
    return subprocess.run(command, env=environment(**changes), capture_output=True, timeout=LIMIT_S, check=False)


def test_a_reader_that_leaves_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*AMALGAM, *METHODS], stdout=writing, stderr=subprocess.PIPE, env=environment(), timeout=LIMIT_S, check=False
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_an_output_that_is_full_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*AMALGAM, *METHODS], stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=LIMIT_S, check=False
        )
    assert done.returncode == 2
    assert done.stderr.decode().startswith("file_error: No space left on device.")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_letters_that_the_terminal_lacks_are_left_open(encoding: str, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "a-name-that-is-longer-than-the-column-which-cuts-it", rank=2, hidden=24)
    plan = run("merge", "plan", str(folder), PYTHONIOENCODING=encoding)
    assert plan.returncode == 0, plan.stderr
    assert b"norm" in plan.stdout.decode(encoding).encode("utf-8")
    missing = run("merge", "plan", str(tmp_path / "größe"), PYTHONIOENCODING=encoding)
    assert missing.returncode == 2
    assert b"Traceback" not in missing.stderr
    assert missing.stderr.decode(encoding).count("\n") == 1
    assert b"UTF-8" in missing.stderr
    assert b"unable to parse" not in missing.stderr, "no library's words"


@pytest.mark.parametrize("changes", [{"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TERM": "dumb"}, {}], ids=str)
def test_no_colours_where_none_are_wanted(changes: dict[str, str]) -> None:
    done = run("merge", "plan", "missing", **changes)
    assert b"\x1b[3" not in done.stderr, done.stderr


@pytest.mark.parametrize("columns", ["1", "nonsense"])
def test_a_terminal_may_be_narrow(columns: str) -> None:
    done = run(*METHODS, COLUMNS=columns)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT_S)
        yield server


def test_an_interrupt_ends_without_a_trace(silent: socket.socket) -> None:
    # Who is started in the background ignores interrupts, and its children do, where it does not say otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = subprocess.Popen(
        [*AMALGAM, "adapters", "ls", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--key", "ak_x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    signal.signal(signal.SIGINT, before)
    connection, _ = silent.accept()
    with connection:
        # Its request is here: it is past its imports, and waits for the answer.
        connection.settimeout(LIMIT_S)
        assert connection.recv(1)
        asked.send_signal(signal.SIGINT)
        _, said = asked.communicate(timeout=LIMIT_S)
    assert asked.returncode == 130
    assert b"Traceback" not in said
