"""Written as the package ``vllm`` by the tests of who starts its processes: a core, its worker, and no more."""

CORE = """
import json, multiprocessing, os, signal, time

from vllm.v1.executor import abstract, multiproc_executor


def facts():
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "title": multiprocessing.current_process().name,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "word": os.environ.get("SAID_LATE"),
        "unset": os.environ.get("UNSET_LATE"),
        "token": os.environ.get("HF_TOKEN"),
        "started_with_it": b"HF_TOKEN" in open("/proc/self/environ", "rb").read(),
    }


def run_worker(pipe):
    before = os.environ.get("HF_TOKEN")
    worker = multiproc_executor.WorkerProc()
    pipe.send(facts() | {"token_before": before, "token_loading": worker.token})
    time.sleep(60)


class Executor(abstract.Executor):
    def _init_executor(self):
        os.environ["SAID_LATE"] = "by the core"
        os.environ["OMP_NUM_THREADS"] = os.environ["WORKER_THREADS"]
        context = multiproc_executor.get_mp_context()
        context.Process(target=run_worker, args=(self.pipe,), name="worker", daemon=True).start()
        os.environ["OMP_NUM_THREADS"] = "3"
        os.environ["SAID_LATE"] = "by the server"
        self.token = os.environ.get("HF_TOKEN")


def run_core(pipe):
    executor = Executor(pipe)
    pipe.send(facts() | {"token_loading": executor.token})
    time.sleep(60)
"""

EXECUTOR = """
class Executor:
    def __init__(self, pipe):
        self.pipe = pipe
        self._init_executor()
"""

WORKER = """
import os

from vllm.utils.system_utils import get_mp_context


class WorkerProc:
    def __init__(self):
        self.token = os.environ.get("HF_TOKEN")
"""

CONTEXT = """
import multiprocessing


def get_mp_context():
    return multiprocessing.get_context("spawn")
"""

IMPORTED = """
from vllm.utils.system_utils import get_mp_context
"""

SERVER = """
import json, os, sys

from amalgam.engine import spawned
from amalgam.engine.cpu import fork_server


def main():
    fork_server.PRELOADED = ("vllm.v1.engine.core",)
    server = fork_server.ForkServer({"OMP_NUM_THREADS": "3"})
    os.environ["UNSET_LATE"] = "no longer"
    if os.environ["START"] == "forked":
        server.start()
    assert "OMP_NUM_THREADS" not in os.environ
    del os.environ["UNSET_LATE"]
    os.environ["OMP_NUM_THREADS"] = "3"
    os.environ["SAID_LATE"] = "by the server"
    from vllm.v1.engine import core, utils

    if os.environ["START"] == "forked":
        server.adopt_core()
    else:
        spawned.SpawnedCore().adopt_core()
    context = utils.get_mp_context()
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=core.run_core, args=(writer,), name="core")
    process.start()
    seen = [reader.recv(), reader.recv()]
    told = {"pid": os.getpid(), "token": os.environ.get("HF_TOKEN")}
    print(json.dumps(told | {facts["title"]: facts for facts in seen}), flush=True)
    if sys.stdin.readline().strip() == "exit code":
        process.kill()
        process.join(30)
        server.end_children()
        print(process.exitcode, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
"""

FILES = {
    "vllm/__init__.py": "",
    "vllm/v1/__init__.py": "",
    "vllm/v1/engine/__init__.py": "",
    "vllm/v1/engine/core.py": CORE,
    "vllm/v1/engine/utils.py": IMPORTED,
    "vllm/v1/engine/coordinator.py": IMPORTED,
    "vllm/v1/executor/__init__.py": "",
    "vllm/v1/executor/abstract.py": EXECUTOR,
    "vllm/v1/executor/multiproc_executor.py": WORKER,
    "vllm/utils/__init__.py": "",
    "vllm/utils/system_utils.py": CONTEXT,
    "server.py": SERVER,
}
