import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from amalgam.domain.adapter import Adapter, AdapterVersion, BaseModelSpec
from amalgam.domain.alias import Alias, AliasTarget
from amalgam.domain.version import CatalogRows
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady, SlotsBusy
from amalgam.errors.requests import ModelNotFound
from amalgam.services.catalog import Catalog, Snapshot
from amalgam.services.fair_queue import FairQueue
from amalgam.services.inference import Inference
from amalgam.telemetry.context import RequestContext, enter
from tests.api.fake_engine import FakeEngine

NOW = datetime(2030, 1, 31, tzinfo=UTC)


def version(name: str, version_id: int) -> AdapterVersion:
    return AdapterVersion(
        id=version_id, name=name, number=1, digest=f"{version_id:064x}", rank=2, size_bytes=1, module_count=1,
        base_fingerprint="", source="upload", created_at=NOW,
    )  # fmt: skip


class Store:
    """Counts how often the disk is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def path(self, digest: str) -> Path:
        self.asked.append(digest)
        return Path("/nowhere") / digest


VERSIONS = [version(name, index + 1) for index, name in enumerate(("a", "b", "c"))]


class Rig:
    def __init__(self, capacity: int = 4) -> None:
        self.engine = FakeEngine(capacity=capacity, load_timeout_s=0.05)
        self.store = Store()
        self.catalog = Catalog(BaseModelSpec("base", "", {}, 16), None)  # type: ignore[arg-type]
        adapters = tuple(Adapter(name=v.name, default_version=1, created_at=NOW, versions=(v,)) for v in VERSIONS)
        self.catalog._snapshot = Snapshot.of(CatalogRows(1, adapters, tuple(VERSIONS)))
        self.inference = Inference(self.catalog, self.engine, self.store, lambda: 0.5)  # type: ignore[arg-type]


async def drained(rig: Rig, version_id: int) -> bool:
    try:
        await asyncio.wait_for(rig.inference.drained(version_id), 0.02)
    except TimeoutError:
        return False
    return True


async def test_a_version_is_counted_and_held_while_its_request_runs() -> None:
    rig = Rig()
    async with rig.inference.admit("a") as target, rig.inference.admit("a@1"):
        assert target.engine_name == "a@1"
        assert rig.inference.running == 2
        assert rig.engine.residency.held == 2
        assert not await drained(rig, 1)
        assert await drained(rig, 2)
    assert rig.inference.running == 0
    assert rig.engine.residency.held == 0
    assert await drained(rig, 1)
    assert rig.engine.loaded == ["a@1"]


async def test_an_alias_is_drawn_at_admission_and_counted_as_its_request() -> None:
    rig = Rig()
    targets = tuple(AliasTarget(model=model, weight=1) for model in ("a", "b@1"))
    named = Alias(name="named", revision=1, targets=targets, created_at=NOW, updated_at=NOW)
    seen = rig.catalog._snapshot
    rig.catalog._snapshot = replace(seen, aliases={"named": named})

    async def admitted(user: str | None) -> tuple[str, RequestContext]:
        enter(context := RequestContext("r"))
        async with rig.inference.admit("named", user=user) as target:
            rig.catalog._snapshot = seen
            assert context.adapter == target.engine_name
            assert rig.engine.residency.held == 1
        rig.catalog._snapshot = replace(seen, aliases={"named": named})
        return target.engine_name, context

    # The rig's chance is one half: the second of two equal targets.
    assert (await asyncio.create_task(admitted(None))) == ("b@1", RequestContext("r", "b@1", "named"))
    drawn = {user: (await asyncio.create_task(admitted(user)))[0] for user in map(str, range(12))}
    assert set(drawn.values()) == {"a@1", "b@1"}
    assert {user: (await asyncio.create_task(admitted(user)))[0] for user in drawn} == drawn


async def test_the_base_model_holds_no_adapter() -> None:
    rig = Rig()
    async with rig.inference.admit(None) as target:
        assert (target.engine_name, target.version) == ("base", None)
        assert rig.inference.running == 0
    assert rig.engine.loaded == []


async def test_drained_waits_for_the_last_of_several_and_wakes() -> None:
    rig = Rig()
    release = [asyncio.Event(), asyncio.Event()]

    async def request(index: int) -> None:
        async with rig.inference.admit("a"):
            await release[index].wait()

    tasks = [asyncio.create_task(request(index)) for index in range(2)]
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(rig.inference.drained(1))
    release[0].set()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    release[1].set()
    await asyncio.wait_for(waiting, 0.5)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("error", [RuntimeError("x"), asyncio.CancelledError()])
async def test_a_request_that_fails_or_is_cancelled_is_counted_out(error: BaseException) -> None:
    rig = Rig()
    with pytest.raises(type(error)):
        async with rig.inference.admit("a"):
            raise error
    assert rig.inference.running == 0
    assert rig.engine.residency.held == 0
    assert await drained(rig, 1)


async def test_a_request_that_is_cancelled_while_it_waits_for_a_place_is_counted_out() -> None:
    rig = Rig(capacity=1)
    rig.engine.residency._load_timeout_s = 10
    async with rig.inference.admit("a"):
        task = asyncio.create_task(rig.inference.admit("b").__aenter__())
        await asyncio.sleep(0.01)
        assert rig.inference.running == 2
        assert not await drained(rig, 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert rig.inference.running == 1
        assert await drained(rig, 2)


async def test_refusals_of_the_engine_leave_nothing_counted() -> None:
    rig = Rig(capacity=1)
    rig.engine.refuse_load.add("a@1")
    with pytest.raises(EngineLoadFailed):
        async with rig.inference.admit("a"):
            pytest.fail("it was not loaded")
    async with rig.inference.admit("b"):
        with pytest.raises(SlotsBusy):
            async with rig.inference.admit("c"):
                pytest.fail("there is one place")
    rig.engine.current = "restarting"
    for model in ("a", "base"):
        with pytest.raises(EngineNotReady):
            async with rig.inference.admit(model):
                pytest.fail("it is not ready")
    with pytest.raises(ModelNotFound):
        async with rig.inference.admit("nope"):
            pytest.fail("there is none")
    assert rig.inference.running == 0
    assert rig.engine.residency.held == 0


async def test_what_a_name_meant_at_admission_it_means_to_the_end() -> None:
    rig = Rig()
    async with rig.inference.admit("a") as target:
        rig.catalog._snapshot = Snapshot.of(CatalogRows(2, (), ()))
        assert target.version == VERSIONS[0]
        assert rig.engine.residency.residents()[0].held == 1
        with pytest.raises(ModelNotFound):
            await rig.inference.admit("a").__aenter__()


async def test_the_disk_is_asked_once_a_version_and_again_after_it_was_drained() -> None:
    rig = Rig()
    for _ in range(3):
        async with rig.inference.admit("a"):
            pass
    assert rig.store.asked == [VERSIONS[0].digest]
    await rig.inference.drained(1)
    async with rig.inference.admit("a"):
        pass
    assert rig.store.asked == [VERSIONS[0].digest] * 2


async def test_a_request_waits_for_its_turn_before_it_takes_a_place_and_counts_from_the_first() -> None:
    rig = Rig()
    rig.inference._queue = FairQueue(slots=1, quantum=4, wait_s=10)
    async with AsyncExitStack() as first:
        await first.enter_async_context(rig.inference.admit("a"))
        waits = asyncio.create_task(rig.inference.admit("b").__aenter__())
        await asyncio.sleep(0.01)
        assert rig.engine.loaded == ["a@1"]
        assert not await drained(rig, 2)
        async with rig.inference.admit("b", generates=False), rig.inference.admit("base"):
            assert not waits.done()
    assert (await waits).engine_name == "b@1"


async def test_a_refused_load_gives_its_turn_back() -> None:
    rig = Rig()
    rig.inference._queue = FairQueue(slots=1, quantum=4, wait_s=1)
    rig.engine.refuse_load.add("a@1")
    with pytest.raises(EngineLoadFailed):
        async with rig.inference.admit("a"):
            pytest.fail("it was not loaded")
    async with rig.inference.admit("b") as target:
        assert target.engine_name == "b@1"
