import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from amalgam.engine.protocol import LoadableVersion
from amalgam.errors.blends import BlendFailed, BlendMemoryBusy, BlendUnavailable
from amalgam.services.blend_tier import FIRST_LORA_ID, BlendTier, Build
from amalgam.store.blend_folders import BlendFolders
from amalgam.telemetry import metric_table as table
from amalgam.telemetry.metrics import Metrics
from tests.api.fake_engine import FakeEngine

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


class Rig:
    """A tier whose builds write one file of 100 bytes, when they are let."""

    def __init__(self, folder: Path, budget: int = 250, wait_s: float = 0.1) -> None:
        self.engine = FakeEngine()
        self.metrics = Metrics()
        self.folders = BlendFolders.open(folder)
        self.tier = BlendTier(self.folders, self.engine, budget, wait_s, metrics=self.metrics)
        self.built: list[LoadableVersion] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.begun = self.released = 0

    @property
    def held(self) -> int:
        return sum(entry.held for entry in self.tier._entries.values())

    def begin(self) -> Build:
        self.begun += 1

        async def run(place: LoadableVersion) -> int:
            self.built.append(place)
            place.folder.mkdir()
            (place.folder / "weights").write_bytes(b"x" * 100)
            await self.gate.wait()
            if self.failure is not None:
                raise self.failure
            return 100

        async def release() -> None:
            self.released += 1

        return Build(run, release)

    def hold(self, digest: str) -> AbstractAsyncContextManager[LoadableVersion]:
        return self.tier.hold(digest, 100, self.begin)

    async def use(self, digest: str) -> LoadableVersion:
        async with self.hold(digest) as version, self.engine.hold(version):
            return version

    def on_disk(self) -> set[str]:
        return {path.name for path in self.folders.root.iterdir()}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_many_who_ask_at_once_have_it_built_once(rig: Rig) -> None:
    rig.gate.clear()
    tasks = [asyncio.create_task(rig.use(A)) for _ in range(20)]
    await asyncio.sleep(0.01)
    assert rig.held == 20
    rig.gate.set()
    assert len({await task for task in tasks}) == 1
    assert len(rig.built) == 1
    assert (await rig.use(A)).engine_name == "blend@aaaaaaaaaaaa"
    assert len(rig.built) == 1
    assert rig.metrics.values(table.BLENDS_BUILT).get() == 1
    assert rig.metrics.values(table.BLEND_BYTES).get() == 100


async def test_the_least_recently_used_goes_first_from_engine_then_disk(rig: Rig) -> None:
    first, second = await rig.use(A), await rig.use(B)
    await rig.use(A)
    third = await rig.use(C)
    assert rig.engine.freed == [second.engine_name]
    assert rig.on_disk() == {first.folder.name, third.folder.name}
    assert rig.metrics.values(table.BLEND_EVICTIONS).get() == 1
    assert rig.tier.used_bytes == 200


async def test_a_blend_in_use_never_goes(rig: Rig) -> None:
    async with rig.hold(A) as held, rig.hold(B):
        with pytest.raises(BlendMemoryBusy):
            await rig.use(C)
        assert held.folder.is_dir()
        assert rig.tier.used_bytes == 200
        # What was never built lets go of its inputs too.
        assert (rig.begun, rig.released) == (3, 3)
    assert (await rig.use(C)).folder.is_dir()
    assert (rig.begun, rig.released) == (4, 4)


async def test_who_waits_for_room_gets_it_when_a_request_ends(tmp_path: Path) -> None:
    rig = Rig(tmp_path, budget=100, wait_s=5)
    async with rig.hold(A):
        task = asyncio.create_task(rig.use(B))
        await asyncio.sleep(0.02)
        assert not task.done()
    assert (await asyncio.wait_for(task, 1)).engine_name == "blend@bbbbbbbbbbbb"


async def test_a_blend_that_is_being_built_never_goes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, budget=100)
    rig.gate.clear()
    first = asyncio.create_task(rig.use(A))
    await asyncio.sleep(0.01)
    with pytest.raises(BlendMemoryBusy):
        await rig.use(B)
    rig.gate.set()
    await first


async def test_a_client_that_leaves_does_not_end_the_build(rig: Rig) -> None:
    rig.gate.clear()
    first, second = asyncio.create_task(rig.use(A)), asyncio.create_task(rig.use(A))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    rig.gate.set()
    assert (await second).folder.is_dir()
    assert len(rig.built) == 1
    assert rig.held == 0


async def test_built_again_it_has_another_id_and_folder_and_the_same_name(rig: Rig) -> None:
    first = await rig.use(A)
    await rig.use(B)
    await rig.use(C)
    again = await rig.use(A)
    assert again.engine_name == first.engine_name
    assert again.folder != first.folder
    assert again.lora_id != first.lora_id
    ids = [place.lora_id for place in rig.built]
    assert ids == sorted(set(ids))
    assert min(ids) == FIRST_LORA_ID
    assert max(ids) < 1 << 31


async def test_who_asks_while_it_leaves_gets_it_built_again(rig: Rig) -> None:
    await rig.use(A)
    await rig.use(B)
    unloading, unload = asyncio.Event(), rig.engine.unload

    async def slow(lora_id: int) -> bool:
        unloading.set()
        await asyncio.sleep(0.02)
        return await unload(lora_id)

    rig.engine.unload = slow  # type: ignore[method-assign]
    other = asyncio.create_task(rig.use(C))
    await unloading.wait()
    assert (await rig.use(A)).folder.is_dir()
    await other
    assert [place.engine_name[-1] for place in rig.built] == ["a", "b", "c", "a"]
    assert rig.tier.used_bytes <= 250


@pytest.mark.parametrize(
    ("failure", "seen"), [(BlendUnavailable("x"), BlendUnavailable), (RuntimeError("x"), BlendFailed)]
)
async def test_a_build_that_fails_leaves_nothing_and_may_be_tried_again(
    rig: Rig, failure: Exception, seen: type[Exception]
) -> None:
    rig.failure = failure
    rig.gate.clear()
    tasks = [asyncio.create_task(rig.use(A)) for _ in range(3)]
    await asyncio.sleep(0.01)
    rig.gate.set()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, seen)
    assert rig.on_disk() == set()
    assert (rig.tier.used_bytes, rig.held) == (0, 0)
    assert (rig.begun, rig.released) == (1, 1)
    assert rig.metrics.values(table.BLEND_FAILURES).get() == 1
    rig.failure = None
    assert (await rig.use(A)).folder.is_dir()


async def test_an_engine_that_dies_does_not_keep_a_blend_from_going(rig: Rig) -> None:
    async def dead(lora_id: int) -> bool:
        raise RuntimeError("of the engine")

    await rig.use(A)
    await rig.use(B)
    rig.engine.unload = dead  # type: ignore[method-assign]
    await rig.use(C)
    assert len(rig.on_disk()) == 2


async def test_two_blends_whose_names_begin_alike_have_two_names(rig: Rig) -> None:
    twin = "a" * 12 + "f" * 52
    assert (await rig.use(A)).engine_name == "blend@aaaaaaaaaaaa"
    assert rig.tier.name_of(twin) == (await rig.use(twin)).engine_name == f"blend@{twin}"


async def test_closing_ends_what_is_being_built(rig: Rig) -> None:
    rig.gate.clear()
    task = asyncio.create_task(rig.use(A))
    await asyncio.sleep(0.01)
    await rig.tier.close()
    with pytest.raises(BlendFailed):
        await task
    assert rig.on_disk() == set()
