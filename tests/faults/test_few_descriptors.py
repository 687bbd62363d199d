"""F48: few descriptors and many connections: the server goes on answering, and its files and registry are whole."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from amalgam.cli.connection_limits import (
    FOR_PROBES,
    MOST_CONNECTIONS,
    MOST_DESCRIPTORS,
    connections_within,
    raise_descriptor_limit,
)
from tests.support.running_app import ADMIN_KEY, write_adapter

DESCRIPTORS = 128
CROWD = 600


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("crowded_victim.py")), str(tmp_path), str(DESCRIPTORS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process.stdout.readline().strip()
        assert process.poll() is None, "the server died"
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.mark.parametrize("half", [b"", b"GET /livez HTTP/1.1\r\nX-A: "])
def test_a_crowd_larger_than_the_descriptors_silences_nobody(url: str, half: bytes, tmp_path: Path) -> None:
    port = int(url.rsplit(":", 1)[1])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * CROWD)), hard))
    crowd = []
    for _ in range(CROWD):
        crowd.append(socket.create_connection(("127.0.0.1", port), timeout=10))
        if half:
            crowd[-1].sendall(half)
    try:
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=10) as http:
            for path in ("/livez", "/readyz", "/v1/models"):
                assert http.get(path).status_code == 200
            # What needs descriptors of its own has them.
            folder = write_adapter(tmp_path / "made")
            files = [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
            assert http.post("/admin/v1/adapters", data={"name": "made"}, files=files).status_code == 201
    finally:
        for peer in crowd:
            peer.close()


@pytest.mark.parametrize(
    ("descriptors", "connections"),
    [(64, 32), (1024, 752), (65_536, MOST_CONNECTIONS), (20, 1), (1, 1)],
)
def test_connections_leave_descriptors_for_everything_else(descriptors: int, connections: int) -> None:
    assert connections_within(descriptors) == connections
    assert connections + FOR_PROBES < descriptors or descriptors < 2 * FOR_PROBES


def test_the_soft_limit_is_raised_as_far_as_the_hard_one_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        raised = raise_descriptor_limit()
        assert raised == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raised == min(hard if hard != resource.RLIM_INFINITY else MOST_DESCRIPTORS, MOST_DESCRIPTORS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
