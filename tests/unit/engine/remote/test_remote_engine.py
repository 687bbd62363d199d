"""The engine of a front and a replica, without Ray: the handle calls the replicas directly."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amalgam.engine.protocol import EngineState, LoadableVersion
from amalgam.engine.remote import replica as replica_module
from amalgam.engine.remote.affinity import read_key
from amalgam.engine.remote.remote_engine import RemoteEngine
from amalgam.engine.remote.replica import EngineReplica, ReplicaOrder
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady
from amalgam.services import engine_line
from amalgam.services.engine_line import EngineLine
from amalgam.settings import Settings
from amalgam.telemetry.metrics import Metrics
from tests.api.fake_engine import FakeEngine
from tests.cluster.fake_replica import REFUSED

FACTORY = "tests.cluster.fake_replica:open_fake"


class Gone(Exception):
    """As Ray says that a replica died."""


class Replica(EngineReplica):
    """Whose end nobody awaits."""

    def __del__(self) -> None:  # type: ignore[override]
        return


async def made(monkeypatch: pytest.MonkeyPatch, name: str) -> EngineReplica:
    """A replica as Ray Serve makes it."""
    monkeypatch.setattr(replica_module, "_own_name", lambda: name)
    one: Any = Replica.__new__(Replica)
    await one.__init__(ReplicaOrder(factory=FACTORY, model="", served_names=("tiny",)).model_dump_json())
    return one  # type: ignore[no-any-return]


class Handle:
    """Replicas, of which those without a name are dead; requests go to the one of their attempt."""

    def __init__(self, replicas: list[EngineReplica | None]) -> None:
        self.replicas = replicas
        self.keys: list[str] = []

    def options(self, *, multiplexed_model_id: str, stream: bool = False) -> "Options":
        self.keys.append(multiplexed_model_id)
        return Options(self, read_key(multiplexed_model_id)[0])

    def broadcast(self, method: str, *arguments: bytes) -> "Broadcast":
        return Broadcast(self, method, arguments)


class Options:
    def __init__(self, handle: Handle, attempt: int) -> None:
        self._target = handle.replicas[attempt % len(handle.replicas)]

    def __getattr__(self, method: str) -> Any:
        async def call(order: bytes) -> Any:
            if self._target is None:
                raise Gone
            return await getattr(self._target, method)(order)

        return type("Method", (), {"remote": staticmethod(call)})


class Broadcast:
    def __init__(self, handle: Handle, method: str, arguments: tuple[bytes, ...]) -> None:
        self._handle, self._method, self._arguments = handle, method, arguments

    async def results_async(self, timeout_s: float | None = None, return_exceptions: bool = False) -> list[Any]:
        targets = self._handle.replicas
        return [Gone() if one is None else await getattr(one, self._method)(*self._arguments) for one in targets]


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


@pytest.fixture
async def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    return Handle([await made(monkeypatch, "r0"), await made(monkeypatch, "r1")])


@asynccontextmanager
async def running(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RemoteEngine]:
    monkeypatch.setattr("amalgam.engine.remote.remote_engine._LOOK_S", 0.01)
    [first, *_] = [one for one in handle.replicas if one is not None]
    engine = RemoteEngine(handle, first._parts.facts, (Gone,))
    await engine.start()
    await engine.wait_ready(10)
    yield engine
    await engine.stop(0.1)


def inner(one: EngineReplica | None) -> FakeEngine:
    assert one is not None
    assert isinstance(one._parts.engine, FakeEngine)
    return one._parts.engine


def version(name: str, number: int) -> LoadableVersion:
    return LoadableVersion(name, number, Path("/store") / name, name)


async def test_all_replicas_are_one_engine(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(handle, monkeypatch) as engine:
        info = engine.info()
        assert (info.state, info.replicas, info.slots, info.capacity, info.sequences) == ("ready", 2, 4, 32, 32)
        await engine.load(version("a@1", 1))
        await until(lambda: [one.engine_name for one in engine.info().residents] == ["a@1"])
        assert (inner(handle.replicas[0]).loaded, inner(handle.replicas[1]).loaded) == (["a@1"], [])
        assert await engine.pin(1, pinned=True)
        assert await engine.unload(1)
        assert not await engine.unload(1)
        assert inner(handle.replicas[0]).freed == ["a@1"]


@pytest.mark.parametrize("state", ["dead", "restarting"])
async def test_it_is_ready_while_one_replica_is(
    handle: Handle, state: EngineState, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(handle, monkeypatch) as engine:
        inner(handle.replicas[0]).current = state
        await until(lambda: engine.info().replicas == 1)
        assert engine.state == "ready"
        await engine.load(version("a@1", 1))
        assert inner(handle.replicas[1]).loaded == ["a@1"], "the other one was asked"
        handle.replicas[1] = None
        await until(lambda: engine.state == "restarting")
        with pytest.raises(EngineNotReady):
            await engine.load(version("a@1", 1))
        inner(handle.replicas[0]).current = "ready"
        await until(lambda: engine.state == "ready")


async def test_an_adapter_that_is_refused_is_refused_in_the_same_words(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(handle, monkeypatch) as engine:
        with pytest.raises(EngineLoadFailed, match=r"could not load refused@1"):
            await engine.probe(version(REFUSED, 9))
        assert handle.keys == ["0|refused@1"], "no other replica is asked"


async def test_blends_of_two_fronts_with_one_name_and_number_are_two_in_a_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = await made(monkeypatch, "r0")
    engine, handle = inner(one), Handle([one])
    async with running(handle, monkeypatch) as first, running(handle, monkeypatch) as second:
        ours = LoadableVersion("blend@1", first.new_blend_id(), Path("/shm/first/1"))
        theirs = LoadableVersion("blend@1", second.new_blend_id(), Path("/shm/second/1"))
        assert ours.lora_id == theirs.lora_id
        async with first.hold(ours), second.hold(theirs):
            await first.load(ours)
            await second.load(theirs)
            assert engine.loaded == ["blend@1", "blend@1"]
            assert engine.freed == ["blend@1"], "of two with one name one at a time"
        assert not await first.unload(ours.lora_id)
        assert await second.unload(theirs.lora_id)
        assert not engine.residency.residents()


def line(slots: int) -> EngineLine:
    keys: Any = SimpleNamespace(on_change=lambda tell: None, asking=frozenset)
    return EngineLine(Settings(), 128, slots, keys, Metrics())


async def test_places_are_counted_again_when_a_replica_goes(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_line, "LOOK_S", 0.01)
    fitted = line(1)
    async with running(handle, monkeypatch) as engine:
        fitting = asyncio.create_task(fitted.fit_to_engine(engine, 10))
        await until(lambda: fitted.queue._slots == 4)
        handle.replicas[1] = None
        await until(lambda: fitted.queue._slots == 2)
        fitting.cancel()


async def test_one_engine_in_this_process_is_fitted_once_and_keeps_its_slots() -> None:
    fitted = line(3)
    async with asyncio.timeout(5):
        await fitted.fit_to_engine(FakeEngine(sequences=8), 10)
    assert fitted.queue._slots == 3
