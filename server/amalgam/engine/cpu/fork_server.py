"""A process that imports vLLM once, beside the server's own import, and that the core and its worker are forked from.

The standard library's fork server, given what vLLM's own way, spawn, gives by starting a new program: the environment
of whoever asks. One thing of it can only be given to a program at its start, the libraries loaded before all others,
and is therefore predicted (`predicted_environment`). Who asks for other ones, or for other threads of OpenMP, is
spawned.
"""

import ctypes
import gc
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import forkserver, popen_forkserver, popen_spawn_posix, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Final

from amalgam.engine.cpu import patches
from amalgam.engine.cpu.plugin import is_tested
from amalgam.engine.spawned import SecretsBeside, adopt_spawned_workers, forget_when_loaded, secrets_beside
from amalgam.engine.start_reason import CauseTeller, first_cause
from amalgam.settings.sources import forget_secrets

logger = logging.getLogger(__name__)

PRELOADED: Final = (
    "setproctitle",
    "amalgam.__main__",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.model_executor.models.llama",
    "vllm.v1.structured_output.backend_xgrammar",
)
"""The core and the worker import these at first. The worker's own modules are not among them: vLLM puts its kernels for
CPU in place before it imports them, and fails over numba's, which our LoRA imports."""

AT_EXEC: Final = re.compile("LD_|OMP_|GOMP_|KMP_|MKL_|OPENBLAS_")
"""Variables of these names are read when a program or its libraries are loaded; a process that runs cannot take them
over."""
_READ_AT_IMPORT: Final = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}
"""vLLM sets them so on CPU whatever they were."""
_PR_SET_PDEATHSIG: Final = 1


def predicted_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """What vLLM will set for its worker before it starts one; None where that is not to be predicted.

    Predicted are threads not bound to cores, on Linux, with a CPU build of the tested vLLM and torch's own OpenMP.
    """
    unbound = environment.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind"
    if not (unbound and sys.platform == "linux" and _is_tested_cpu_build()) or "LD_PRELOAD" in environment:
        return None
    torch, vllm = package_folder("torch"), package_folder("vllm")
    gomp = [*torch.parent.glob("torch.libs/libgomp*.so*"), *torch.glob("lib/libgomp*.so*")][:1]
    tcmalloc = [*vllm.glob("libs/libtcmalloc_minimal*.so*"), *vllm.glob("libs/libtcmalloc.so*")][:1]
    return {"LD_PRELOAD": ":".join(map(str, tcmalloc + gomp))} if gomp else None


class ForkServer:
    """The fork server of this process, which is the standard library's only one.

    Args:
        predicted: what it is started with beside this process's environment.
    """

    def __init__(self, predicted: Mapping[str, str]) -> None:
        self._predicted = dict(predicted)
        self._causes, self._teller = multiprocessing.Pipe(duplex=False)

    def start(self) -> None:
        """Start it, and let it import; does nothing while it runs.

        The environment of this process is another one meanwhile.
        """
        before = dict(os.environ)
        forkserver.set_forkserver_preload(list(PRELOADED))
        try:
            # What these two are started with is to be read in /proc for as long as they live, and in what is forked.
            forget_secrets(os.environ)
            # It would be started with the fork server, and has no need of that environment.
            resource_tracker.ensure_running()
            os.environ.update(_READ_AT_IMPORT | self._predicted)
            forkserver.ensure_running()
        finally:
            _become(before)

    def adopt_core(self) -> None:
        """Let vLLM start its core from here, and the core its worker."""
        # What a core before this one said is no cause of what comes.
        self.cause()
        context = EngineContext(_at_exec(os.environ | self._predicted), self._teller, is_core=True)
        patches.put("vllm.v1.engine.utils:get_mp_context", lambda: context)

    def cause(self) -> str | None:
        """Why a process of the engine failed, where one said so since the last call."""
        return first_cause(self._causes)

    def end_children(self) -> None:
        """Kill what was forked and is still there: a worker that hangs hears nothing of its core's end.

        VLLM kills what is below a core, and a forked worker stands beside it.
        """
        pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        for child in _children(pid) if pid is not None else ():
            # It may have been faster.
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


class EngineContext(ForkServerContext):
    """What vLLM starts one kind of its processes with.

    Args:
        at_exec: what the fork server was started with, of what can only be given to a program at its start.
        teller: where a process that fails says why.
        is_core: for the core, which starts a worker; else for the worker.
    """

    def __init__(self, at_exec: Mapping[str, str], teller: Connection, *, is_core: bool) -> None:
        super().__init__()
        self._at_exec = dict(at_exec)
        self._teller = teller
        self._is_core = is_core

    def Process(self, *args: Any, **kwargs: Any) -> "EngineProcess":  # type: ignore[override]  # noqa: N802
        """The standard library's name and arguments."""
        return EngineProcess(self._at_exec, self._teller, self._is_core, *args, **kwargs)


class EngineProcess(ForkServerProcess):
    """A core or a worker: forked where the fork server has what it would be spawned with, else spawned."""

    def __init__(self, at_exec: dict[str, str], teller: Connection, is_core: bool, *args: Any, **kwargs: Any) -> None:
        # First, because it is the first that the forked process unpickles: all else comes into its environment.
        self._inheritance: _Inheritance | SecretsBeside | None = None
        super().__init__(*args, **kwargs)
        self._at_exec = at_exec
        self._teller = teller
        self._is_core = is_core
        self._is_spawned = False

    @staticmethod
    def _Popen(process: "EngineProcess") -> Any:  # type: ignore[override]  # noqa: N802
        differs = {name for name, _ in _at_exec(os.environ).items() ^ process._at_exec.items()}
        process._is_spawned = bool(differs)
        try:
            if differs:
                logger.warning("engine_process_spawned process=%s differs=%s", process.name, ",".join(sorted(differs)))
                with secrets_beside(os.environ) as process._inheritance:
                    return popen_spawn_posix.Popen(process)
            at_exec = process._at_exec if process._is_core else None
            process._inheritance = _Inheritance(dict(os.environ), process._teller, at_exec)
            return popen_forkserver.Popen(process)
        finally:
            # What is passed on is kept no longer here.
            process._inheritance = None

    def run(self) -> None:
        """Run as ever; a core ends with its server also where that was killed, and its worker then ends with it."""
        CauseTeller(self._teller).listen()
        forget_when_loaded()
        if self._is_core:
            threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
        if self._is_core and self._is_spawned:
            adopt_spawned_workers(self._teller)
        super().run()


class _Inheritance:
    """What a forked process takes over from the one that asked for it, on arrival.

    Args:
        environment: all of it.
        teller: see `EngineContext`.
        at_exec: see `EngineContext`; for a core, which starts a worker.
    """

    def __init__(self, environment: dict[str, str], teller: Connection, at_exec: dict[str, str] | None) -> None:
        self._environment = environment
        self._teller = teller
        self._at_exec = at_exec

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The modules stay as long as the process: not looking at them keeps their memory shared, and collections short.
        gc.freeze()
        # With the fork server go the exit codes of its children, so a child that survived it would be nobody's.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _become(self._environment)
        if self._at_exec is not None:
            adopt_worker(self._at_exec, self._teller)


def _become(environment: Mapping[str, str]) -> None:
    """Change what differs, and no more: where all is set anew, setproctitle finds no place for vLLM's titles."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment.items() - os.environ.items())


def adopt_worker(at_exec: dict[str, str], teller: Connection) -> None:
    """Have the worker of a forked core come from the same fork server."""
    context = EngineContext(at_exec, teller, is_core=False)
    patches.put("vllm.v1.executor.multiproc_executor:get_mp_context", lambda: context)
    # The library starts another fork server below a forked process, although that has the first one's address.
    forkserver._forkserver.ensure_running = resource_tracker.ensure_running  # type: ignore[method-assign]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _at_exec(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if AT_EXEC.match(name)}


def _is_tested_cpu_build() -> bool:
    """Whether it is, by the rules of vLLM's platforms, and without importing it."""
    for package in ("vllm-cpu", "vllm"):
        with suppress(PackageNotFoundError):
            found = version(package)
            return is_tested(found) and (package == "vllm-cpu" or "cpu" in found)
    return False


def _children(parent: int) -> list[int]:
    """Ids of a process's children; empty where it is gone, as the fork server's go with it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.parent.name))
    return found


def package_folder(package: str) -> Path:
    """The folder of an installed package, which is not imported for it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
