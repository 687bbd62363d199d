"""`deploy/run_tests.sh`: a few tests that fail are run once more, and nothing else is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/run_tests.sh"
STANDS_FOR_PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exec {python} "$@"; fi
echo "$*" >> {log}
for last; do if [ "$last" = --last-failed ]; then exit {again}; fi; done
cache=${{4#cache_dir=}}
mkdir -p "$cache/v/cache"
cp {failed} "$cache/v/cache/lastfailed"
exit 1
"""


def run(
    folder: Path, failed: list[str], again: int = 0, arguments: tuple[str, ...] = ()
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The script with a pytest that fails in those tests; and how pytest was called."""
    log, lost, python = folder / "log", folder / "failed", folder / "python"
    lost.write_text(json.dumps(dict.fromkeys(failed, True)))
    python.write_text(STANDS_FOR_PYTHON.format(python=sys.executable, log=log, failed=lost, again=again))
    python.chmod(0o755)
    done = subprocess.run([SCRIPT, python, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done, log.read_text().splitlines()


@pytest.mark.parametrize("again", [0, 1])
def test_a_few_tests_are_run_once_more_and_fail_where_they_fail_twice(tmp_path: Path, again: int) -> None:
    done, calls = run(tmp_path, ["tests/a.py::b", "tests/c.py::d[e]"], again)
    assert [("--last-failed" in call) for call in calls] == [False, True, False, True]
    assert done.returncode == again
    assert ("Failed once, and passed alone: tests/a.py::b" in done.stdout) == (again == 0)


@pytest.mark.parametrize("failed", [["gw1"], ["tests/a.py"], [f"tests/a.py::t{one}" for one in range(13)]])
def test_what_is_no_test_or_too_much_is_not_run_again(tmp_path: Path, failed: list[str]) -> None:
    done, calls = run(tmp_path, failed)
    assert len(calls) == 2
    assert done.returncode == 1


@pytest.mark.parametrize("again", [0, 1])
def test_slow_ones_are_one_part(tmp_path: Path, again: int) -> None:
    done, calls = run(tmp_path, ["tests/a.py::b"], again, ("--slow", "-W", "default"))
    assert [("--last-failed" in call) for call in calls] == [False, True]
    assert all("-m slow and not gpu" in call and call.endswith("-W default") for call in calls)
    assert done.returncode == again
    assert ("Failed once, and passed alone: tests/a.py::b" in done.stdout) == (again == 0)
