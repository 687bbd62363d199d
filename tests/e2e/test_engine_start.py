"""How the session's engine was started: its core and its worker come from one fork server, bound as vLLM binds them."""

import os
import re
from pathlib import Path

from loadtests.servers import descendants
from tests.e2e.conftest import RunningServer
from tests.e2e.test_zz_engine_death import core_pid


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")


def test_core_and_worker_are_forked_from_one_server(server: RunningServer) -> None:
    core = core_pid(server)
    forks = parent(core)
    assert "multiprocessing.forkserver" in title(forks)
    assert parent(forks) == server.process.pid
    assert len(os.listdir(f"/proc/{forks}/task")) == 1, "threads are not forked with the rest"
    children = descendants(forks) - {forks}
    [worker] = [pid for pid in children if "Worker" in title(pid)]
    assert children == {core, worker}
    assert not [line for line in server.log if "is spawned" in line]

    cores = os.sched_getaffinity(0)
    assert os.sched_getaffinity(core) == cores
    bound = [os.sched_getaffinity(int(thread)) for thread in os.listdir(f"/proc/{worker}/task")]
    assert os.sched_getaffinity(worker) == {min(cores)}
    assert set().union(*bound) == cores
    assert re.search(r"/libgomp\S*\.so", Path(f"/proc/{worker}/maps").read_text())
