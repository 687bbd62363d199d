"""Admission of a request: what it names is resolved once, counted and held until it ends, however it ends."""

import asyncio
import math
import sys
from collections.abc import Set
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amalgam.domain.adapter import Adapter, AdapterVersion, BaseModelSpec
from amalgam.domain.alias import Alias, AliasTarget
from amalgam.domain.version import CatalogChange, CatalogRows
from amalgam.errors.engine import EngineLoadFailed, EngineNotReady, SlotsBusy
from amalgam.errors.requests import ModelNotFound
from amalgam.services.admission import Admission, RequestBounds
from amalgam.services.catalog import Catalog
from amalgam.services.fair_queue import FairQueue
from amalgam.services.inference import Inference
from amalgam.services.versions_in_use import VersionsInUse
from amalgam.store.artifact_checks import ArtifactChecks
from amalgam.telemetry.context import RequestContext, enter
from tests.api.fake_engine import FakeEngine
from tests.support.waiting import until

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
        self.checks = ArtifactChecks(Path("/nowhere"))

    def is_here(self, digest: str) -> bool:
        return True

    async def for_engine(self, digest: str) -> Path:
        self.asked.append(digest)
        return Path("/nowhere") / digest


VERSIONS = [version(name, index + 1) for index, name in enumerate(("a", "b", "c"))]


class Registry:
    """Holds the rows of its latest revision."""

    def __init__(self) -> None:
        adapters = tuple(Adapter(name=v.name, default_version=1, created_at=NOW, versions=(v,)) for v in VERSIONS)
        self.rows = CatalogRows(1, adapters, tuple(VERSIONS))

    def write(self, *, aliases: tuple[Alias, ...] = (), versions: bool = True) -> None:
        """Make a new revision, with these aliases and with or without the versions."""
        adapters, found = (self.rows.adapters, self.rows.versions) if versions else ((), ())
        self.rows = CatalogRows(self.rows.revision + 1, adapters, found, aliases)

    async def revision(self) -> int:
        return self.rows.revision

    async def load_catalog(self) -> CatalogRows:
        return self.rows

    async def load_change(self, known: Set[int]) -> CatalogChange:
        ids = frozenset(one.id for one in self.rows.versions)
        new = tuple(one for one in self.rows.versions if one.id not in known)
        return CatalogChange(self.rows.revision, ids, ids, new, self.rows.aliases)


class Serving:
    """Admission over a catalog of three adapters, the fake engine and a store that counts."""

    def __init__(self, capacity: int, load_timeout_s: float, queue: FairQueue) -> None:
        self.engine = FakeEngine(capacity=capacity, load_timeout_s=load_timeout_s)
        self.store = Store()
        self.registry = Registry()
        self.catalog = Catalog(BaseModelSpec("base", "", {}, 16), self.registry)  # type: ignore[arg-type]
        no_blends: Any = SimpleNamespace(concerns=lambda model: False)
        self.inference = Inference(
            self.catalog,
            self.engine,
            self.store,  # type: ignore[arg-type]
            lambda: 0.5,
            VersionsInUse(),
            no_blends,
            queue,
            Admission(RequestBounds(sys.maxsize, sys.maxsize, sys.maxsize)),
        )


async def serving(capacity: int = 4, load_timeout_s: float = 0.05, queue: FairQueue | None = None) -> Serving:
    made = Serving(capacity, load_timeout_s, queue or FairQueue(math.inf, 1, 10.0))
    await made.catalog.refresh()
    return made


async def drained(served: Serving, version_id: int) -> bool:
    try:
        await asyncio.wait_for(served.inference.drained(version_id), 0.02)
    except TimeoutError:
        return False
    return True


async def test_a_version_is_counted_and_held_while_its_request_runs() -> None:
    served = await serving()
    async with served.inference.admit("a") as target, served.inference.admit("a@1"):
        assert target.engine_name == "a@1"
        assert served.inference.running == 2
        assert served.engine.residency.held == 2
        assert not await drained(served, 1)
        assert await drained(served, 2)
    assert served.inference.running == 0
    assert served.engine.residency.held == 0
    assert await drained(served, 1)
    assert served.engine.loaded == ["a@1"]


async def test_an_alias_is_drawn_at_admission_and_counted_as_its_request() -> None:
    served = await serving()
    targets = tuple(AliasTarget(model=model, weight=1) for model in ("a", "b@1"))
    named = Alias(name="named", revision=1, targets=targets, created_at=NOW, updated_at=NOW)
    served.registry.write(aliases=(named,))
    await served.catalog.refresh()

    async def admitted(user: str | None) -> tuple[str, RequestContext]:
        enter(context := RequestContext("r"))
        async with served.inference.admit("named", user=user) as target:
            served.registry.write()
            await served.catalog.refresh()
            assert context.adapter == target.engine_name
            assert served.engine.residency.held == 1
        served.registry.write(aliases=(named,))
        await served.catalog.refresh()
        return target.engine_name, context

    # The chance is one half: the second of two equal targets.
    drawn_name, context = await asyncio.create_task(admitted(None))
    assert (drawn_name, context.adapter, context.alias, context.target) == ("b@1", "b@1", "named", "b@1")
    drawn = {user: (await asyncio.create_task(admitted(user)))[0] for user in map(str, range(12))}
    assert set(drawn.values()) == {"a@1", "b@1"}
    assert {user: (await asyncio.create_task(admitted(user)))[0] for user in drawn} == drawn


async def test_the_base_model_holds_no_adapter() -> None:
    served = await serving()
    async with served.inference.admit(None) as target:
        assert (target.engine_name, target.version) == ("base", None)
        assert served.inference.running == 0
    assert served.engine.loaded == []


async def test_drained_waits_for_the_last_of_several_and_wakes() -> None:
    served = await serving()
    release = [asyncio.Event(), asyncio.Event()]

    async def request(index: int) -> None:
        async with served.inference.admit("a"):
            await release[index].wait()

    tasks = [asyncio.create_task(request(index)) for index in range(2)]
    await until(lambda: served.inference.running == 2)
    waiting = asyncio.create_task(served.inference.drained(1))
    release[0].set()
    await tasks[0]
    assert not waiting.done()
    release[1].set()
    await asyncio.wait_for(waiting, 0.5)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("error", [RuntimeError("x"), asyncio.CancelledError()])
async def test_a_request_that_fails_or_is_cancelled_is_counted_out(error: BaseException) -> None:
    served = await serving()
    with pytest.raises(type(error)):
        async with served.inference.admit("a"):
            raise error
    assert served.inference.running == 0
    assert served.engine.residency.held == 0
    assert await drained(served, 1)


async def test_a_request_that_is_cancelled_while_it_waits_for_a_place_is_counted_out() -> None:
    served = await serving(capacity=1, load_timeout_s=10)
    async with served.inference.admit("a"):
        task = asyncio.create_task(served.inference.admit("b").__aenter__())
        await until(lambda: served.inference.running == 2)
        assert not await drained(served, 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert served.inference.running == 1
        assert await drained(served, 2)


async def test_refusals_of_the_engine_leave_nothing_counted() -> None:
    served = await serving(capacity=1)
    served.engine.refuse_load.add("a@1")
    with pytest.raises(EngineLoadFailed):
        async with served.inference.admit("a"):
            pytest.fail("it was not loaded")
    async with served.inference.admit("b"):
        with pytest.raises(SlotsBusy):
            async with served.inference.admit("c"):
                pytest.fail("there is one place")
    served.engine.current = "restarting"
    for model in ("a", "base"):
        with pytest.raises(EngineNotReady):
            async with served.inference.admit(model):
                pytest.fail("it is not ready")
    with pytest.raises(ModelNotFound):
        async with served.inference.admit("nope"):
            pytest.fail("there is none")
    assert served.inference.running == 0
    assert served.engine.residency.held == 0


async def test_what_a_name_meant_at_admission_it_means_to_the_end() -> None:
    served = await serving()
    async with served.inference.admit("a") as target:
        served.registry.write(versions=False)
        await served.catalog.refresh()
        assert target.version == VERSIONS[0]
        assert served.engine.residency.residents()[0].held == 1
        with pytest.raises(ModelNotFound):
            await served.inference.admit("a").__aenter__()


async def test_the_disk_is_asked_once_a_version_and_again_after_it_was_drained() -> None:
    served = await serving()
    for _ in range(3):
        async with served.inference.admit("a"):
            pass
    assert served.store.asked == [VERSIONS[0].digest]
    await served.inference.drained(1)
    async with served.inference.admit("a"):
        pass
    assert served.store.asked == [VERSIONS[0].digest] * 2


async def test_a_request_waits_for_its_turn_before_it_takes_a_place_and_counts_from_the_first() -> None:
    queue = FairQueue(slots=1, quantum=4, wait_s=10)
    served = await serving(queue=queue)
    async with AsyncExitStack() as first:
        await first.enter_async_context(served.inference.admit("a"))
        waits = asyncio.create_task(served.inference.admit("b").__aenter__())
        await until(lambda: queue.waiting)
        assert served.engine.loaded == ["a@1"]
        assert not await drained(served, 2)
        async with served.inference.admit("b", generates=False), served.inference.admit("base"):
            assert not waits.done()
    assert (await waits).engine_name == "b@1"


async def test_a_refused_load_gives_its_turn_back() -> None:
    served = await serving(queue=FairQueue(slots=1, quantum=4, wait_s=1))
    served.engine.refuse_load.add("a@1")
    with pytest.raises(EngineLoadFailed):
        async with served.inference.admit("a"):
            pytest.fail("it was not loaded")
    async with served.inference.admit("b") as target:
        assert target.engine_name == "b@1"
