"""How the session's engine was started: its processes come from one fork server, and share the cores as they should."""

import os
import re
from pathlib import Path

import httpx
import openai
import pytest

from loadtests.servers import descendants
from tests.adapter_factory import write_lora
from tests.e2e.conftest import RunningServer
from tests.e2e.engine_core import core_pid
from tests.e2e.test_adapter_lifecycle import push


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
    assert not [line for line in server.log if "engine_process_spawned" in line]

    assert os.sched_getaffinity(core) == os.sched_getaffinity(worker) == os.sched_getaffinity(0)
    assert re.search(r"/libgomp\S*\.so", Path(f"/proc/{worker}/maps").read_text())


def seconds_by_thread(pid: int) -> dict[str, float]:
    """Of the processor, so far."""
    ticks = {
        task.parent.name: task.read_text().rpartition(")")[2].split()[11:13]
        for task in Path(f"/proc/{pid}/task").glob("*/stat")
    }
    return {thread: sum(map(int, pair)) / os.sysconf("SC_CLK_TCK") for thread, pair in ticks.items()}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is no choice")
def test_threads_share_a_step_and_the_core_sleeps_through_it(server: RunningServer, client: openai.OpenAI) -> None:
    core = core_pid(server)
    [worker] = [pid for pid in descendants(parent(core)) if "Worker" in title(pid)]
    before, core_before = seconds_by_thread(worker), sum(seconds_by_thread(core).values())
    for first in (1000, 2000, 3000):
        # Each another one: what a prompt has in common with one before is taken from the cache, not computed.
        client.completions.create(model="smollm2", prompt=list(range(first, first + 800)), max_tokens=1)
    spent = sorted(now - before.get(thread, 0) for thread, now in seconds_by_thread(worker).items())
    assert spent[-2] > 0.25 * spent[-1]
    assert sum(seconds_by_thread(core).values()) - core_before < 0.4 * spent[-1]


def test_an_adapter_is_read_beside_the_steps(server: RunningServer, admin: httpx.Client, tmp_path: Path) -> None:
    assert push(admin, "read-beside", write_lora(tmp_path / "a", rank=4, seed=30)).status_code == 201
    assert not [line for line in server.log if "preload_skipped" in line]
