"""The JavaScript clients on the real server: the files of tests/clients/js, each run by node."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.clients import installed
from tests.e2e.conftest import API_KEY, RunningServer

ALIAS = "of-js-clients"
LIMIT_S = 240
MISSING = installed.node_is_missing()
FILES = sorted(path.name for path in (installed.CLIENTS / "js").glob("*.test.mjs"))

pytestmark = [pytest.mark.clients, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.fixture(scope="module")
def packages() -> Path:
    return installed.javascript()


@pytest.fixture
def alias(admin: httpx.Client) -> Iterator[str]:
    made = admin.put(f"/admin/v1/aliases/{ALIAS}", json={"targets": [{"model": "sql@1"}]})
    assert made.is_success, made.text
    yield ALIAS
    assert admin.delete(f"/admin/v1/aliases/{ALIAS}").is_success


@pytest.mark.parametrize("name", FILES)
def test_a_javascript_client_works(server: RunningServer, packages: Path, alias: str, name: str) -> None:
    served = {"AMALGAM_TEST_URL": server.url, "AMALGAM_TEST_KEY": API_KEY, "AMALGAM_TEST_ALIAS": alias}
    run = subprocess.run(
        ["node", "--test", "--test-reporter=tap", name],
        cwd=packages,
        env=os.environ | served,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    sys.stdout.write(run.stdout[-600:])  # the suite's own counts, with `-rP`
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    passed = re.search(r"^# pass (\d+)$", run.stdout, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) >= 7, run.stdout
