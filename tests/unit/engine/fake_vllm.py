"""Written as the package ``vllm`` by `test_fork_server`: a core that starts a worker as vLLM's does, and no more."""

CORE = """
import json, multiprocessing, os, signal, time

from vllm.v1.executor import multiproc_executor


def facts():
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "title": multiprocessing.current_process().name,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "word": os.environ.get("SAID_LATE"),
        "unset": os.environ.get("UNSET_LATE"),
    }


def run_worker(pipe):
    pipe.send(facts())
    time.sleep(60)


def run_core(pipe):
    os.environ["SAID_LATE"] = "by the core"
    os.environ["OMP_NUM_THREADS"] = os.environ["WORKER_THREADS"]
    context = multiproc_executor.get_mp_context()
    worker = context.Process(target=run_worker, args=(pipe,), name="worker", daemon=True)
    worker.start()
    os.environ["OMP_NUM_THREADS"] = "3"
    os.environ["SAID_LATE"] = "by the server"
    pipe.send(facts())
    time.sleep(60)
"""

CONTEXT = """
import multiprocessing


def get_mp_context():
    return multiprocessing.get_context("spawn")
"""

SERVER = """
import json, os, sys

from amalgam.engine import fork_server


def main():
    fork_server.PRELOADED = ("vllm.v1.engine.core",)
    server = fork_server.ForkServer({"OMP_NUM_THREADS": "3"})
    os.environ["UNSET_LATE"] = "no longer"
    server.start()
    assert "OMP_NUM_THREADS" not in os.environ
    del os.environ["UNSET_LATE"]
    os.environ["OMP_NUM_THREADS"] = "3"
    os.environ["SAID_LATE"] = "by the server"
    from vllm.v1.engine import core, utils

    server.adopt_core()
    context = utils.get_mp_context()
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=core.run_core, args=(writer,), name="core")
    process.start()
    seen = [reader.recv(), reader.recv()]
    print(json.dumps({"pid": os.getpid()} | {facts["title"]: facts for facts in seen}), flush=True)
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
    "vllm/v1/engine/utils.py": CONTEXT,
    "vllm/v1/executor/__init__.py": "",
    "vllm/v1/executor/multiproc_executor.py": CONTEXT,
    "server.py": SERVER,
}
