"""The engine's processes where vLLM spawns them: tokens for fetching reach them beside their environment.

The environment that a program is started with can be read in /proc for as long as it lives, whatever it forgets
meanwhile. So tokens are taken out of it while a process is started; they arrive in the message that tells a spawned
process what to do, before anything else of it, and are given up once the model is loaded.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import wraps
from multiprocessing import popen_spawn_posix, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from amalgam.engine.cpu import patches
from amalgam.engine.start_reason import CauseTeller, first_cause
from amalgam.settings.sources import forget_secrets, is_secret


class SecretsBeside:
    """Tokens on their way into a process, whose environment has them from their arrival on.

    Args:
        secrets: by name.
    """

    def __init__(self, secrets: dict[str, str]) -> None:
        self._secrets = secrets

    def __setstate__(self, state: dict[str, Any]) -> None:
        os.environ.update(state["_secrets"])
        self._secrets = {}


@contextmanager
def secrets_beside(environment: MutableMapping[str, str]) -> Iterator[SecretsBeside]:
    """Take tokens for fetching out of ``environment`` while the block starts a process; they are given to it apart."""
    secrets = {name: value for name, value in environment.items() if is_secret(name)}
    forget_secrets(environment)
    try:
        yield SecretsBeside(secrets)
    finally:
        environment.update(secrets)


class SpawnedCore:
    """The core where vLLM spawns it: without the tokens, and telling why a process of it failed."""

    def __init__(self) -> None:
        self._causes, self._teller = multiprocessing.Pipe(duplex=False)

    def adopt_core(self) -> None:
        """Have vLLM start its next core in this way."""
        # What a core before this one said is no cause of what comes.
        self.cause()
        adopt_spawned_core(self._teller)

    def cause(self) -> str | None:
        """Why a process of the engine failed, where one said so since the last call."""
        return first_cause(self._causes)


class SpawnedContext(SpawnContext):
    """What vLLM starts its processes with.

    Args:
        loads: whether they load the model, and need the tokens until then.
        teller: where a process that fails says why; None: nowhere.
    """

    def __init__(self, *, loads: bool, teller: Connection | None = None) -> None:
        super().__init__()
        self._loads = loads
        self._teller = teller

    def Process(self, *args: Any, **kwargs: Any) -> "SpawnedProcess":  # type: ignore[override]  # noqa: N802
        """The standard library's name and arguments."""
        return SpawnedProcess(self._loads, self._teller, *args, **kwargs)


class SpawnedProcess(SpawnProcess):
    """A process that is started without the tokens, and has them only while it loads the model."""

    def __init__(self, loads: bool, teller: Connection | None, *args: Any, **kwargs: Any) -> None:
        # First, because it is the first that the spawned process unpickles: what comes later may want to fetch.
        self._secrets: SecretsBeside | None = None
        super().__init__(*args, **kwargs)
        self._loads = loads
        self._teller = teller

    @staticmethod
    def _Popen(process: "SpawnedProcess") -> Any:  # type: ignore[override]  # noqa: N802
        with secrets_beside(os.environ) as secrets:
            process._secrets = secrets if process._loads else None
            try:
                return popen_spawn_posix.Popen(process)
            finally:
                # What is passed on is kept no longer here.
                process._secrets = None

    def run(self) -> None:
        """Run as ever, but for the tokens and for telling why it fails."""
        if self._teller is not None:
            CauseTeller(self._teller).listen()
        if self._loads:
            forget_when_loaded()
            adopt_spawned_workers(self._teller)
        super().run()


def adopt_spawned_core(teller: Connection | None = None) -> None:
    """Let vLLM start its core, and the process that stands before several cores, without the tokens.

    Args:
        teller: see `SpawnedContext`; the next is alike.
    """
    with secrets_beside(os.environ):
        # It is started with the first lock or process of all, and shows its environment like any other.
        resource_tracker.ensure_running()
    patches.put("vllm.v1.engine.utils:get_mp_context", _where_spawned(SpawnedContext(loads=True, teller=teller)))
    patches.put("vllm.v1.engine.coordinator:get_mp_context", _where_spawned(SpawnedContext(loads=False)))


def adopt_spawned_workers(teller: Connection | None = None) -> None:
    """The same in a core, of its workers."""
    workers = SpawnedContext(loads=True, teller=teller)
    patches.put("vllm.v1.executor.multiproc_executor:get_mp_context", _where_spawned(workers))


def forget_when_loaded() -> None:
    """Give the tokens up, in a core or a worker that is about to begin, as soon as the model is loaded.

    That is before anything is compiled, for which more processes are started.
    """
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.executor.multiproc_executor import WorkerProc

    patches.put("vllm.v1.executor.abstract:Executor.__init__", _forgetting(Executor.__init__))
    patches.put("vllm.v1.executor.multiproc_executor:WorkerProc.__init__", _forgetting(WorkerProc.__init__))


def _forgetting(begin: Callable[..., None]) -> Callable[..., None]:
    @wraps(begin)
    def begun(*args: Any, **named: Any) -> None:
        begin(*args, **named)
        forget_secrets(os.environ)

    return begun


def _where_spawned(ours: SpawnedContext) -> Callable[[], Any]:
    """``ours``, unless the user has vLLM start its processes in another way."""
    from vllm.utils.system_utils import get_mp_context

    def chosen() -> Any:
        found = get_mp_context()
        return ours if found.get_start_method() == "spawn" else found

    return chosen
