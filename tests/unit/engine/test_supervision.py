"""The supervisor of the embedded engine, over cores that are lost at chosen moments; vLLM itself is not started."""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amalgam.engine import vllm_engine
from amalgam.engine.preload_link import PreloadRefused
from amalgam.engine.protocol import LoadableVersion
from amalgam.engine.vllm_engine import VllmEngine
from amalgam.errors.engine import EngineLoadFailed

VERSIONS = [LoadableVersion(f"a@{number}", number, Path("/nowhere")) for number in (1, 2)]
ARGS = Namespace(served_model_name=["tiny"], max_loras=2, max_cpu_loras=4, max_lora_rank=8)


class CoreDead(Exception):
    """What vLLM says of a core that is known to be dead."""


class Core:
    """One life of the engine's core: answers until it is lost, and leaves open what it was asked before."""

    def __init__(self, on_load: Callable[["Core", int], Awaitable[None]]) -> None:
        self.errored = False
        self.buried = False
        self.loaded: list[int] = []
        self._on_load = on_load

    async def list_loras(self) -> list[int]:
        return self.loaded

    async def add_lora(self, lora_id: int) -> None:
        if self.errored:
            raise CoreDead
        await self._on_load(self, lora_id)
        self.loaded.append(lora_id)


async def takes(core: Core, lora_id: int) -> None:
    """An ordinary load."""


async def dies_over_it(core: Core, lora_id: int) -> None:
    """Killed in the middle: nobody answers any more, and vLLM notices soon after."""
    core.errored = True
    await asyncio.Event().wait()


async def dies_after_the_first(core: Core, lora_id: int) -> None:
    """Killed between two loads, so that the next one is refused at once."""
    if lora_id != VERSIONS[0].lora_id:
        core.errored = True
        raise CoreDead


async def hangs_over_it(core: Core, lora_id: int) -> None:
    """Stopped in the middle: nobody answers any more, pings neither."""

    async def silence() -> list[int]:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    core.list_loras = silence  # type: ignore[method-assign]
    await asyncio.Event().wait()


class Rehearsed(VllmEngine):
    """The engine with everything but its core; ``lives`` says how each core takes a load."""

    def __init__(self, *lives: Callable[[Core, int], Awaitable[None]], **more: Any) -> None:
        models = SimpleNamespace(lora_requests={})
        super().__init__(ARGS, SimpleNamespace(openai_serving_models=models), 5.0, hang_limit_s=0.3, **more)
        self.cores: list[Core] = []
        self._lives = lives

    async def _boot(self) -> None:
        self._client = Core(self._lives[len(self.cores)])
        self._lost = asyncio.Event()
        self.cores.append(self._client)

    async def _bury(self) -> None:
        self._client.buried = True


@asynccontextmanager
async def running(engine: Rehearsed) -> AsyncIterator[Rehearsed]:
    await engine.start()
    try:
        await engine.wait_ready(5)
        yield engine
    finally:
        assert engine._supervisor is not None
        engine._supervisor.cancel()
        await asyncio.gather(engine._supervisor, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "_lora_request", lambda version: version.lora_id)
    monkeypatch.setattr(vllm_engine, "_HEALTH_PERIOD_S", 0.02)
    monkeypatch.setattr(vllm_engine, "_PING_PERIOD_S", 0.05)


def pinned(engine: VllmEngine) -> list[str]:
    return [one.engine_name for one in engine.info().residents if one.pinned]


@pytest.mark.parametrize("second_life", [dies_over_it, dies_after_the_first, hangs_over_it])
async def test_a_core_that_is_lost_over_pinned_versions_is_restarted_again(second_life: Any) -> None:
    async with running(Rehearsed(takes, second_life, takes)) as engine:
        for version in VERSIONS:
            await engine.load(version)
            assert await engine.pin(version.lora_id, pinned=True)
        engine.cores[0].errored = True
        assert engine.state == "dead"
        async with asyncio.timeout(5):
            while engine.info().restarts < 2 or engine.state != "ready":
                await asyncio.sleep(0.01)
        await engine.wait_ready(1)
        assert engine.info().restarts == 2
        assert [core.buried for core in engine.cores] == [True, True, False]
        # Nothing that was pinned is forgotten over the core that was lost with it.
        assert engine.cores[2].loaded == [version.lora_id for version in VERSIONS]
        assert pinned(engine) == [version.engine_name for version in VERSIONS]


async def test_a_core_that_refuses_a_pinned_version_serves_without_it() -> None:
    async def refuses_the_first(core: Core, lora_id: int) -> None:
        if lora_id == VERSIONS[0].lora_id:
            raise ValueError("no such file")

    async with running(Rehearsed(takes, refuses_the_first, takes)) as engine:
        for version in VERSIONS:
            await engine.load(version)
            await engine.pin(version.lora_id, pinned=True)
        engine.cores[0].errored = True
        async with asyncio.timeout(5):
            while engine.info().restarts < 1 or engine.state != "ready":
                await asyncio.sleep(0.01)
        assert pinned(engine) == [VERSIONS[1].engine_name]
        assert engine.info().restarts == 1


async def test_a_folder_is_prepared_before_the_core_is_asked() -> None:
    """What cannot be read is refused here; the core never hears of it."""
    seen: list[tuple[Path, list[int]]] = []

    def prepare(folder: Path) -> None:
        seen.append((folder, list(engine.cores[0].loaded)))
        if len(seen) == 2:
            raise OSError("input/output error")

    async with running(Rehearsed(takes, prepare=prepare)) as engine:
        await engine.load(VERSIONS[0])
        with pytest.raises(EngineLoadFailed):
            await engine.load(VERSIONS[1])
        assert seen == [(VERSIONS[0].folder, []), (VERSIONS[1].folder, [1])]
        assert engine.cores[0].loaded == [1]


class Worker:
    """Reads adapters beside the core's steps, or says that it does not, or cannot."""

    def __init__(self, answer: bool | Exception) -> None:
        self._answer = answer

    async def ask(self, version: LoadableVersion) -> bool:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("answer", "loaded", "error"),
    [
        (True, [], nullcontext()),
        (False, [1], nullcontext()),
        (PreloadRefused("ValueError: expected target modules"), [], pytest.raises(EngineLoadFailed)),
    ],
    ids=["read", "not there", "refused"],
)
async def test_the_core_is_asked_where_the_worker_does_not_read_beside_it(
    answer: bool | Exception, loaded: list[int], error: Any
) -> None:
    async with running(Rehearsed(takes)) as engine:
        engine._preloads = Worker(answer)  # type: ignore[assignment]
        with error:
            await engine.load(VERSIONS[0])
        assert engine.cores[0].loaded == loaded
        is_resident = not isinstance(answer, Exception)
        assert [one.lora_id for one in engine.info().residents] == [1] * is_resident
        assert list(engine._app_state.openai_serving_models.lora_requests) == ["a@1"] * is_resident
