"""The supervisor of the embedded engine, over cores that are lost at chosen moments; vLLM's client alone is fake."""

import asyncio
import math
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amalgam.engine import vllm_engine
from amalgam.engine.cpu.preload import EXTENSION
from amalgam.engine.vllm_engine import VllmEngine
from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.engine import BaseNotFinite, EngineLoadFailed, EngineNotReady, EngineStartFailed, NonFiniteOutput
from amalgam.telemetry.metrics import Metrics
from amalgam.telemetry.server_state import ServerState
from tests.unit.engine.fake_core import (
    VERSIONS,
    Core,
    Cores,
    OnLoad,
    cores,
    dies_after_the_first,
    dies_over_it,
    hangs_over_it,
    takes,
)

__all__ = ["cores"]

STARTS = 7
"""The first one, and six that fail in a row."""


@asynccontextmanager
async def running(extension: str = "", **more: Any) -> AsyncIterator[VllmEngine]:
    args = Namespace(
        served_model_name=["tiny"], max_loras=2, max_cpu_loras=4, max_lora_rank=8, worker_extension_cls=extension
    )
    engine = VllmEngine(args, SimpleNamespace(), 5.0, hang_limit_s=0.3, **more)
    await engine.start()
    try:
        await engine.wait_ready(5)
        yield engine
    finally:
        await engine.stop(0)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


async def restarted(engine: VllmEngine, times: int) -> None:
    await until(lambda: engine.info().restarts >= times and engine.state == "ready")


def pinned(engine: VllmEngine) -> list[str]:
    return [one.engine_name for one in engine.info().residents if one.pinned]


@pytest.mark.parametrize("second_life", [dies_over_it, dies_after_the_first, hangs_over_it])
async def test_a_core_that_is_lost_over_pinned_versions_is_restarted_again(second_life: OnLoad, cores: Cores) -> None:
    cores.lives = [takes, second_life, takes]
    async with running() as engine:
        for version in VERSIONS:
            await engine.load(version)
            assert await engine.pin(version.lora_id, pinned=True)
        cores[0].errored = True
        assert engine.state == "dead"
        await restarted(engine, 2)
        await engine.wait_ready(1)
        assert engine.info().restarts == 2
        assert [core.is_buried for core in cores.made] == [True, True, False]
        # Nothing that was pinned is forgotten over the core that was lost with it.
        assert cores[2].loaded == [version.lora_id for version in VERSIONS]
        assert pinned(engine) == [version.engine_name for version in VERSIONS]


async def test_a_core_that_refuses_a_pinned_version_serves_without_it(cores: Cores) -> None:
    async def refuses_the_first(core: Core, lora_id: int) -> None:
        if lora_id == VERSIONS[0].lora_id:
            raise ValueError("no such file")

    cores.lives = [takes, refuses_the_first, takes]
    async with running() as engine:
        for version in VERSIONS:
            await engine.load(version)
            await engine.pin(version.lora_id, pinned=True)
        cores[0].errored = True
        await restarted(engine, 1)
        assert pinned(engine) == [VERSIONS[1].engine_name]
        assert engine.info().restarts == 1


async def test_who_waits_for_a_load_when_the_core_is_lost_is_told_to_try_again(cores: Cores) -> None:
    cores.lives = [dies_over_it, takes]
    async with running() as engine:
        with pytest.raises(EngineNotReady, match="restarting"):
            await asyncio.wait_for(engine.load(VERSIONS[0]), 5)
        await restarted(engine, 1)
        await engine.load(VERSIONS[0])
        assert cores[1].loaded == [1]


async def test_a_folder_is_prepared_before_the_core_is_asked(cores: Cores) -> None:
    """What cannot be read is refused here; the core never hears of it."""
    seen: list[tuple[Path, list[int]]] = []

    def prepare(folder: Path) -> None:
        seen.append((folder, list(cores[0].loaded)))
        if len(seen) == 2:
            raise OSError("input/output error")

    async with running(prepare=prepare) as engine:
        await engine.load(VERSIONS[0])
        with pytest.raises(EngineLoadFailed):
            await engine.load(VERSIONS[1])
        assert seen == [(VERSIONS[0].folder, []), (VERSIONS[1].folder, [1])]
        assert cores[0].loaded == [1]


@pytest.mark.parametrize(
    ("answer", "loaded", "error"),
    [
        ({}, [], nullcontext()),
        (None, [1], nullcontext()),
        ({"error": "ValueError: expected target modules"}, [], pytest.raises(EngineLoadFailed)),
    ],
    ids=["read", "not there", "refused"],
)
async def test_the_core_is_asked_where_the_worker_does_not_read_beside_it(
    answer: dict[str, str] | None, loaded: list[int], error: Any, cores: Cores
) -> None:
    cores.preload_answer = answer
    async with running(EXTENSION) as engine:
        with error:
            await engine.load(VERSIONS[0])
        assert cores[0].loaded == loaded
        is_resident = "error" not in (answer or {})
        assert [one.lora_id for one in engine.info().residents] == [1] * is_resident


async def test_a_first_start_that_fails_is_told_and_not_tried_again(cores: Cores) -> None:
    told: list[BaseException] = []
    cores.failing = {1}
    with pytest.raises(EngineStartFailed, match="did not start: no such model"):
        async with running(on_failed=told.append):
            pytest.fail("it never started")
    assert [str(error) for error in told] == [EngineStartFailed("no such model").message]
    assert len(cores.starts) == 1


async def test_a_first_start_whose_base_model_gives_nan_is_told(cores: Cores) -> None:
    told: list[BaseException] = []
    cores.first_logprob = math.nan
    with pytest.raises(BaseNotFinite, match="tiny"):
        async with running(on_failed=told.append):
            pytest.fail("it never started")
    assert [type(error) for error in told] == [BaseNotFinite]
    assert cores[0].is_ended


async def test_a_core_whose_endpoints_cannot_be_built_is_not_left_behind(cores: Cores) -> None:
    cores.no_endpoints = {2}
    async with running() as engine:
        cores[0].errored = True
        await restarted(engine, 1)
        assert [core.is_ended for core in cores.made] == [True, True, False]


async def test_restarts_that_fail_are_tried_again_for_a_while(cores: Cores) -> None:
    told: list[BaseException] = []
    cores.failing = range(2, STARTS)
    async with running(on_failed=told.append) as engine:
        cores[0].errored = True
        await until(lambda: len(cores.made) == 2 and engine.state == "ready")
        await engine.load(VERSIONS[0])
        assert engine.info().restarts == 1
    assert told == []
    # Each pause but the one after the first failure is twice as long as the one before it.
    pauses = [later - earlier for earlier, later in zip(cores.starts[1:], cores.starts[2:], strict=False)]
    assert all(pause >= 0.01 * 2**index for index, pause in enumerate(pauses)), pauses


async def test_restarts_that_fail_all_the_time_leave_it_down(cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    # However long the pauses would grow, this is their bound.
    monkeypatch.setattr(vllm_engine, "RESTART_PAUSE_S", 60.0)
    monkeypatch.setattr(vllm_engine, "LONGEST_PAUSE_S", 0.01)
    cores.failing = range(2, 1000)
    async with running() as engine:
        cores[0].errored = True
        await until(lambda: engine.state == "down")
        assert len(cores.starts) == STARTS
        with pytest.raises(EngineNotReady, match="down"):
            await engine.load(VERSIONS[0])


async def test_a_core_that_is_lost_before_it_is_ready_each_time_leaves_it_down(cores: Cores) -> None:
    cores.lives = [takes, dies_over_it]
    async with running() as engine:
        await engine.load(VERSIONS[0])
        await engine.pin(VERSIONS[0].lora_id, pinned=True)
        cores[0].errored = True
        await until(lambda: engine.state == "down")
        assert len(cores.starts) == STARTS


async def test_an_adapter_that_gave_nan_is_kept_out_of_the_next_core(cores: Cores) -> None:
    metrics = Metrics()
    async with running(metrics=metrics) as engine:
        for version in VERSIONS:
            await engine.load(version)
        cores[0].gave_nan("a@1", None)
        assert engine.state == "dead"
        await restarted(engine, 1)
        with pytest.raises(NonFiniteOutput, match="a@1"):
            await engine.load(VERSIONS[0])
        await engine.load(VERSIONS[1])
        async with engine.hold(None):
            pass
        assert cores[1].loaded == [VERSIONS[1].lora_id]
    page = metrics.scrape(ServerState()).text().decode()
    assert 'amalgam_non_finite_answers_total{adapter="a@1"} 1' in page
    assert 'amalgam_non_finite_answers_total{adapter="tiny"} 1' in page


async def test_a_damaged_file_keeps_its_own_error(cores: Cores) -> None:
    def prepare(folder: Path) -> None:
        raise ArtifactDamaged("a" * 64)

    async with running(prepare=prepare) as engine:
        with pytest.raises(ArtifactDamaged):
            await engine.load(VERSIONS[0])
        assert cores[0].loaded == []
