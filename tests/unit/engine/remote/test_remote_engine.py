"""The engine of a front and a replica, without Ray: the handle calls the replicas directly."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amalgam.domain.blend import blend_name
from amalgam.domain.blend_plan import BlendPlan, PlannedInput
from amalgam.domain.error_report import ErrorReport
from amalgam.domain.expression import parse_expression
from amalgam.domain.messages import BlendOrder, Refusal
from amalgam.engine.protocol import EngineState, LoadableVersion
from amalgam.engine.remote import replica as replica_module
from amalgam.engine.remote.affinity import read_key
from amalgam.engine.remote.remote_engine import RemoteEngine
from amalgam.engine.remote.replica import EngineReplica, ReplicaOrder
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady
from amalgam.errors.reported import ReportedError
from amalgam.merge.methods import complete
from amalgam.services import engine_line
from amalgam.services.engine_line import EngineLine
from amalgam.settings import Settings
from amalgam.store.artifact_checks import content_digest
from amalgam.telemetry.metrics import Metrics
from tests.api.fake_engine import FakeEngine
from tests.cluster.fake_replica import REFUSED, WritingBlender
from tests.support.running_app import write_adapter

DIGESTS: dict[str, str] = {}
"""Of the files of versions in the store."""
FACTORY = "tests.cluster.fake_replica:open_fake"


class Gone(Exception):
    """As Ray says that a replica died."""


class Replica(EngineReplica):
    """Whose end nobody awaits: there is no address at which it could be reached."""

    def __del__(self) -> None:  # type: ignore[override]
        return


async def made(monkeypatch: pytest.MonkeyPatch, name: str) -> EngineReplica:
    """A replica as Ray Serve makes it."""
    monkeypatch.setattr(replica_module, "own_name", lambda: name)
    monkeypatch.setattr(replica_module, "own_host", lambda: "")
    one: Any = Replica.__new__(Replica)
    await one.__init__(ReplicaOrder(factory=FACTORY, model="", served_names=("tiny",)).model_dump_json())
    return one  # type: ignore[no-any-return]


class Handle:
    """Replicas, of which those without a name are dead; requests go to the one of their attempt."""

    def __init__(self, replicas: list[EngineReplica | None]) -> None:
        self.replicas = replicas
        self.keys: list[str] = []
        self.unheard = 0
        """Looks to come in which nobody answers in time."""

    def options(self, *, multiplexed_model_id: str, stream: bool = False) -> "Options":
        self.keys.append(multiplexed_model_id)
        return Options(self, read_key(multiplexed_model_id)[0])

    def broadcast(self, method: str, *arguments: bytes | str) -> "Broadcast":
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
    def __init__(self, handle: Handle, method: str, arguments: tuple[bytes | str, ...]) -> None:
        self._handle, self._method, self._arguments = handle, method, arguments

    async def results_async(self, timeout_s: float | None = None, return_exceptions: bool = False) -> list[Any]:
        targets = self._handle.replicas
        if self._method == "info" and self._handle.unheard:
            self._handle.unheard -= 1
            raise TimeoutError
        return [Gone() if one is None else await getattr(one, self._method)(*self._arguments) for one in targets]


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the replicas, with the files of whatever `version` names."""
    monkeypatch.setenv("AMALGAM_STORE", str(tmp_path))
    for seed, name in enumerate(("a@1", "b@1", REFUSED)):
        made = write_adapter(tmp_path / "made" / str(seed), seed=seed)
        DIGESTS[name] = content_digest(made)[0]
        folder = tmp_path / "objects" / DIGESTS[name][:2] / DIGESTS[name]
        folder.parent.mkdir(parents=True, exist_ok=True)
        made.rename(folder)
    return tmp_path


@pytest.fixture
async def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    return Handle([await made(monkeypatch, "r0"), await made(monkeypatch, "r1")])


@asynccontextmanager
async def running(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RemoteEngine]:
    monkeypatch.setattr("amalgam.engine.remote.remote_engine.LOOK_S", 0.01)
    [first, *_] = [one for one in handle.replicas if one is not None]
    engine = RemoteEngine(handle, first.parts.facts, (Gone,), "front")
    await engine.start()
    await engine.wait_ready(10)
    yield engine
    await engine.stop(0.1)


def inner(one: EngineReplica | None) -> FakeEngine:
    assert one is not None
    assert isinstance(one.parts.engine, FakeEngine)
    return one.parts.engine


def version(name: str, number: int) -> LoadableVersion:
    return LoadableVersion(name, number, Path("/not/here"), DIGESTS[name])


def plan(expression: str, client: str = "one") -> BlendPlan:
    """Of a blend of ``a`` and ``b``."""
    recipe = complete(parse_expression(expression))
    inputs = {name: PlannedInput(lora_id=one, digest=DIGESTS[name], base="x") for one, name in ((1, "a@1"), (2, "b@1"))}
    return BlendPlan(
        digest=recipe.digest(), recipe=recipe, inputs=inputs, max_rank=8, reserve_bytes=4096, client=client
    )


def blend(engine: RemoteEngine, asked: BlendPlan) -> LoadableVersion:
    return LoadableVersion(blend_name(asked.digest), engine.new_blend_id(), Path(), plan=asked)


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


async def test_a_place_in_a_batch_is_one_of_the_adapters_own_engine(
    handle: Handle, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = handle.replicas
    folder = store / "objects" / DIGESTS["a@1"][:2] / DIGESTS["a@1"]
    async with running(handle, monkeypatch) as engine:
        for one, numbers in ((first, {"a@1": 1, "b@1": 2}), (second, {"c@1": 3, "d@1": 4, "e@1": 5})):
            for name, number in numbers.items():
                await inner(one).load(LoadableVersion(name, number, folder))
        await until(lambda: len(engine.info().residents) == 5)
        info = engine.info()
        assert [one.engine_name for one in info.residents] == ["c@1", "a@1", "b@1", "d@1", "e@1"]
        assert [one.engine_name for one in info.in_batch] == ["a@1", "b@1", "d@1", "e@1"]
        assert await inner(first).unload(1)
        await until(lambda: len(engine.info().residents) == 4)
        assert [one.engine_name for one in engine.info().in_batch] == ["b@1", "d@1", "e@1"]


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


async def test_a_front_that_stood_still_and_heard_nobody_is_ready_all_the_same(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(handle, monkeypatch) as engine:
        handle.unheard, seen = 1, set[EngineState]()

        def is_heard_again() -> bool:
            seen.add(engine.state)
            return handle.unheard == 0 and engine.info().replicas == 2

        await until(is_heard_again)
        assert seen == {"ready"}
        handle.unheard = 4
        await until(lambda: engine.state == "restarting")
        await until(lambda: engine.state == "ready")


async def test_an_adapter_that_is_refused_is_refused_in_the_same_words(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(handle, monkeypatch) as engine:
        with pytest.raises(EngineLoadFailed, match=r"could not load refused@1"):
            await engine.probe(version(REFUSED, 9))
        assert handle.keys == ["0|refused@1"], "no other replica is asked"


async def test_one_recipe_is_one_blend_whichever_front_asks_and_another_is_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = await made(monkeypatch, "r0")
    engine, handle = inner(one), Handle([one])
    async with running(handle, monkeypatch) as first, running(handle, monkeypatch) as second:
        ours, theirs = plan("0.5*a@1 + 0.5*b@1"), plan("0.1*a@1 + 0.5*b@1", "other")
        assert first.new_blend_id() == second.new_blend_id(), "each front counts by itself"
        await first.load(blend(first, ours))
        await second.load(blend(second, ours))
        assert engine.loaded == [blend_name(ours.digest)]
        await second.load(blend(second, theirs))
        residents = engine.residency.residents()
        assert [resident.engine_name for resident in residents] == [blend_name(one.digest) for one in (ours, theirs)]
        assert len({resident.lora_id for resident in residents}) == 2, "the engine numbers them"


async def test_blends_of_a_version_leave_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one = await made(monkeypatch, "r0")
    engine = inner(one)
    async with running(Handle([one]), monkeypatch) as front:
        await front.load(blend(front, plan("0.5*a@1 + 0.5*b@1")))
        await front.load(version("b@1", 2))
        assert len(engine.residency.residents()) == 2
        await front.unload(2)
        await until(lambda: not engine.residency.residents())


async def test_what_a_blend_is_refused_for_is_told_in_the_words_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    one = await made(monkeypatch, "r0")
    refusal = Refusal(id=1, error=ErrorReport(code="bases_differ", status=400, message="No.", param="inputs.b@1"))

    async def refuse(blender: WritingBlender, order: BlendOrder, client: str = "") -> Refusal:
        return refusal

    monkeypatch.setattr(WritingBlender, "build", refuse)
    asked = plan("0.5*a@1 + 0.5*b@1").model_copy(update={"columns": {"b@1": 9}})
    async with running(Handle([one]), monkeypatch) as front:
        with pytest.raises(ReportedError, match=r"No\. \(Column 9 of the expression\.\)") as raised:
            await front.load(blend(front, asked))
    assert (raised.value.code, raised.value.status, raised.value.param) == ("bases_differ", 400, "model")


def line(slots: int) -> EngineLine:
    keys: Any = SimpleNamespace(on_change=lambda tell: None, asking=frozenset)
    return EngineLine(Settings(), 128, slots, keys, Metrics())


async def test_places_are_counted_again_when_a_replica_goes(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_line, "LOOK_S", 0.01)
    fitted = line(1)
    async with running(handle, monkeypatch) as engine:
        fitting = asyncio.create_task(fitted.fit_to_engine(engine, 10))
        await until(lambda: fitted.queue.slots == 4)
        handle.replicas[1] = None
        await until(lambda: fitted.queue.slots == 2)
        assert not fitting.done(), "it goes on looking"
        fitting.cancel()


async def test_one_engine_in_this_process_is_fitted_once_and_keeps_its_slots() -> None:
    fitted = line(3)
    async with asyncio.timeout(5):
        await fitted.fit_to_engine(FakeEngine(sequences=8), 10)
    assert fitted.queue.slots == 3
