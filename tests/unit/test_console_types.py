"""The console's scripts are what their JSDoc says, by TypeScript's compiler; only where that is at hand."""

import shutil
import subprocess
from pathlib import Path

import pytest

_PROJECT = Path(__file__).resolve().parent.parent / "browser" / "tsconfig.json"
_TIMEOUT_S = 300


def test_types_of_the_consoles_scripts_are_as_they_are_written() -> None:
    compiler = shutil.which("tsc")
    if compiler is None:
        pytest.skip("no tsc on this machine: npm install --global typescript")
    done = subprocess.run([compiler, "-p", str(_PROJECT)], capture_output=True, text=True, timeout=_TIMEOUT_S)
    # Errors in vendored files are their authors'; lines that begin with a blank go on with the error above.
    lines = [line for line in done.stdout.splitlines() if ": error TS" in line]
    assert [line for line in lines if "/vendor/" not in line.partition("(")[0]] == []
    assert lines or done.returncode == 0, done.stdout + done.stderr
