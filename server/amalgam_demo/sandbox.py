"""Runs a model's Python function in a process that can compute and nothing else; for the offline command line only.

Walls, each enough for what the demo task meets: an isolated interpreter with an empty environment; limits of the
kernel on time, memory, output, open files and processes; an audit hook that refuses files, sockets, processes and
imports from disk; the user ``nobody`` where the caller is root; a wall clock that kills the whole process group.
It is a guard against mistakes of a small model, not a prison for a hostile program.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WALL_S: Final = 10.0
"""One run lives at most so long; the processor's own limit is far below it."""
MAX_SOURCE_CHARS: Final = 20_000
_RUNNER: Final = Path(__file__).with_name("sandbox_runner.py")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call gave: a JSON value, or that it failed."""

    value: object = None
    failed: bool = False


def run_function(source: str, function: str, cases: Sequence[str], *, wall_s: float = WALL_S) -> tuple[Outcome, ...]:
    """Call ``function`` of ``source`` once per case, in one process of its own.

    Args:
        source: Python source; longer than ``MAX_SOURCE_CHARS`` fails without being run.
        function: The function it must define.
        cases: One JSON list of arguments each.
        wall_s: Seconds after which the process is killed.

    Returns:
        One outcome per case; all failed where the process died, was killed or wrote no result.
    """
    failed = (Outcome(failed=True),) * len(cases)
    if len(source) > MAX_SOURCE_CHARS:
        return failed
    request = {"source": source, "function": function, "cases": [json.loads(case) for case in cases]}
    with tempfile.TemporaryFile() as output:
        # A file, not a pipe: the kernel's limit on file size then bounds what the code can write.
        process = subprocess.Popen(  # noqa: S603 -- this interpreter and a script of this package
            [sys.executable, "-I", "-S", str(_RUNNER)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(request).encode(), timeout=wall_s)
        except subprocess.TimeoutExpired:
            return failed
        finally:
            _kill_group(process)
        output.seek(0)
        return _read(output.read(), len(cases)) or failed


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the process and of its group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(output: bytes, count: int) -> tuple[Outcome, ...] | None:
    """The outcomes that the runner wrote; None where it wrote none, or the code wrote something of its own."""
    try:
        rows = json.loads(output)
    except ValueError:
        return None
    if not isinstance(rows, list) or len(rows) != count or not all(isinstance(row, dict) for row in rows):
        return None
    return tuple(Outcome(value=row["value"]) if "value" in row else Outcome(failed=True) for row in rows)
