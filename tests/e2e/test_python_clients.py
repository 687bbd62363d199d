"""Python clients that have an environment of their own, on the real server: the suites of tests/clients/python."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients import installed
from tests.e2e.conftest import API_KEY, RunningServer

ASKED_BY = "AMALGAM_TEST_PYTHON_CLIENTS"
LIMIT_S = 540
FOLDER = installed.CLIENTS / "python"
SUITES = sorted(path.name for path in FOLDER.glob("suite_*.py"))

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(ASKED_BY not in os.environ, reason="`make test-clients` runs these"),
    pytest.mark.timeout(1500),  # the first one installs the environment
]


@pytest.fixture(scope="module")
def interpreter() -> Path:
    return installed.python()


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_of_a_python_client_passes(server: RunningServer, interpreter: Path, suite: str) -> None:
    # Nothing of this environment's packages, and nothing that a client would send elsewhere.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"AMALGAM_TEST_URL": server.url, "AMALGAM_TEST_KEY": API_KEY, "LANGSMITH_TRACING": "false"}
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    run = subprocess.run(
        [interpreter, "-m", "pytest", "-c", "pytest.ini", "--rootdir", ".", suite],
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    sys.stdout.write(run.stdout[-8000:])  # the suite's own counts, with `-rP`
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) >= 6, run.stdout
