import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from amalgam.domain.blend_plan import BlendPlan
from amalgam.domain.expression import parse_expression
from amalgam.engine.protocol import FIRST_BLEND_ID, LoadableVersion
from amalgam.errors.blends import BlendFailed, BlendMemoryBusy, BlendUnavailable
from amalgam.services.blend_tier import BlendTier, Build
from amalgam.store.blend_folders import BlendFolders
from amalgam.telemetry import metric_table as table
from amalgam.telemetry.metrics import Metrics
from tests.api.fake_engine import FakeEngine
from tests.support.waiting import until

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
PLAN = BlendPlan(digest=A, recipe=parse_expression("x@1 + y@1"), inputs={}, max_rank=8, reserve_bytes=100)


class Harness:
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
        self.inputs: frozenset[int] = frozenset()

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

        return Build(run, release, lambda: PLAN, self.inputs)

    def hold(self, digest: str, client: str = "") -> AbstractAsyncContextManager[LoadableVersion]:
        return self.tier.hold(digest, 100, self.begin, client)

    async def use(self, digest: str, client: str = "") -> LoadableVersion:
        async with self.hold(digest, client) as version, self.engine.hold(version):
            return version

    def on_disk(self) -> set[str]:
        return {path.name for path in self.folders.root.iterdir()}

    async def assert_all_may_go(self) -> None:
        """Nobody holds a blend: two others take the place of all that are there."""
        others = {(await self.use(digit * 64)).folder.name for digit in "12"}
        assert self.on_disk() == others


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


async def test_many_who_ask_at_once_have_it_built_once(harness: Harness) -> None:
    harness.gate.clear()
    tasks = [asyncio.create_task(harness.use(A)) for _ in range(20)]
    await until(lambda: harness.built)
    # All of them wait for the one build, which keeps the memory.
    assert not any(task.done() for task in tasks)
    harness.gate.set()
    assert len({await task for task in tasks}) == 1
    assert len(harness.built) == 1
    assert (await harness.use(A)).engine_name == "blend@aaaaaaaaaaaa"
    assert len(harness.built) == 1
    assert harness.metrics.values(table.BLENDS_BUILT).get() == 1
    assert harness.metrics.values(table.BLEND_BYTES).get() == 100


async def test_the_least_recently_used_goes_first_from_engine_then_disk(harness: Harness) -> None:
    first, second = await harness.use(A), await harness.use(B)
    await harness.use(A)
    third = await harness.use(C)
    assert harness.engine.freed == [second.engine_name]
    assert harness.on_disk() == {first.folder.name, third.folder.name}
    assert harness.metrics.values(table.BLEND_EVICTIONS).get() == 1
    assert harness.tier.used_bytes == 200


async def test_a_blend_in_use_never_goes(harness: Harness) -> None:
    async with harness.hold(A) as held, harness.hold(B):
        with pytest.raises(BlendMemoryBusy):
            await harness.use(C)
        assert held.folder.is_dir()
        assert harness.tier.used_bytes == 200
        # What was never built lets go of its inputs too.
        assert (harness.begun, harness.released) == (3, 3)
    assert (await harness.use(C)).folder.is_dir()
    assert (harness.begun, harness.released) == (4, 4)


async def test_who_waits_for_room_gets_it_when_a_request_ends(tmp_path: Path) -> None:
    harness = Harness(tmp_path, budget=100, wait_s=5)
    async with harness.hold(A):
        task = asyncio.create_task(harness.use(B))
        await asyncio.sleep(0.02)
        assert not task.done()
    assert (await asyncio.wait_for(task, 1)).engine_name == "blend@bbbbbbbbbbbb"


async def test_a_blend_that_is_being_built_never_goes(tmp_path: Path) -> None:
    harness = Harness(tmp_path, budget=100)
    harness.gate.clear()
    first = asyncio.create_task(harness.use(A))
    await until(lambda: harness.built)
    with pytest.raises(BlendMemoryBusy):
        await harness.use(B)
    harness.gate.set()
    await first


async def test_a_client_that_leaves_does_not_end_the_build(harness: Harness) -> None:
    harness.gate.clear()
    first, second = asyncio.create_task(harness.use(A)), asyncio.create_task(harness.use(A))
    await until(lambda: harness.built)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    harness.gate.set()
    assert (await second).folder.is_dir()
    assert len(harness.built) == 1
    await harness.assert_all_may_go()


async def test_built_again_it_has_another_id_and_folder_and_the_same_name(harness: Harness) -> None:
    first = await harness.use(A)
    await harness.use(B)
    await harness.use(C)
    again = await harness.use(A)
    assert again.engine_name == first.engine_name
    assert again.folder != first.folder
    assert again.lora_id != first.lora_id
    ids = [place.lora_id for place in harness.built]
    assert ids == sorted(set(ids))
    assert min(ids) == FIRST_BLEND_ID
    assert max(ids) < 1 << 31


async def test_who_asks_while_it_leaves_gets_it_built_again(harness: Harness) -> None:
    await harness.use(A)
    await harness.use(B)
    unloading, unload = asyncio.Event(), harness.engine.unload

    async def slow(lora_id: int) -> bool:
        unloading.set()
        await asyncio.sleep(0.02)
        return await unload(lora_id)

    harness.engine.unload = slow  # type: ignore[method-assign]
    other = asyncio.create_task(harness.use(C))
    await unloading.wait()
    assert (await harness.use(A)).folder.is_dir()
    await other
    assert [place.engine_name[-1] for place in harness.built] == ["a", "b", "c", "a"]
    assert harness.tier.used_bytes <= 250


@pytest.mark.parametrize(
    ("failure", "seen"), [(BlendUnavailable("x"), BlendUnavailable), (RuntimeError("x"), BlendFailed)]
)
async def test_a_build_that_fails_leaves_nothing_and_may_be_tried_again(
    harness: Harness, failure: Exception, seen: type[Exception]
) -> None:
    harness.failure = failure
    harness.gate.clear()
    tasks = [asyncio.create_task(harness.use(A)) for _ in range(3)]
    await until(lambda: harness.built)
    harness.gate.set()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, seen)
    assert harness.on_disk() == set()
    assert harness.tier.used_bytes == 0
    assert (harness.begun, harness.released) == (1, 1)
    assert harness.metrics.values(table.BLEND_FAILURES).get() == 1
    harness.failure = None
    assert (await harness.use(A)).folder.is_dir()


async def test_an_engine_that_dies_does_not_keep_a_blend_from_going(harness: Harness) -> None:
    async def dead(lora_id: int) -> bool:
        raise RuntimeError("of the engine")

    await harness.use(A)
    await harness.use(B)
    harness.engine.unload = dead  # type: ignore[method-assign]
    await harness.use(C)
    assert len(harness.on_disk()) == 2


async def test_two_blends_whose_names_begin_alike_have_two_names(harness: Harness) -> None:
    twin = "a" * 12 + "f" * 52
    assert (await harness.use(A)).engine_name == "blend@aaaaaaaaaaaa"
    assert harness.tier.name_of(twin) == (await harness.use(twin)).engine_name == f"blend@{twin}"


async def test_closing_ends_what_is_being_built(harness: Harness) -> None:
    harness.gate.clear()
    task = asyncio.create_task(harness.use(A))
    await until(lambda: harness.built)
    await harness.tier.close()
    with pytest.raises(BlendFailed):
        await task
    assert harness.on_disk() == set()


async def test_a_key_that_builds_and_builds_evicts_its_own(tmp_path: Path) -> None:
    harness = Harness(tmp_path, budget=450)
    kept = await harness.use(A, "light")
    for digit in "0123456789":
        await harness.use(digit * 64, "heavy")
    assert (await harness.use(A, "light")) == kept
    assert harness.begun == 11
    # Among its own the oldest goes first.
    await harness.use("9" * 64, "heavy")
    assert harness.begun == 11


async def test_one_key_alone_has_all_of_the_memory(tmp_path: Path) -> None:
    harness = Harness(tmp_path, budget=400)
    async with harness.hold(A, "one"), harness.hold(B, "one"), harness.hold(C, "one"), harness.hold("d" * 64, "one"):
        assert harness.tier.used_bytes == 400


async def test_what_one_key_holds_leaves_half_of_the_memory_to_others(tmp_path: Path) -> None:
    harness = Harness(tmp_path, budget=400)
    async with harness.hold(A, "light"), harness.hold(B, "heavy"), harness.hold(C, "heavy"):
        with pytest.raises(BlendMemoryBusy):
            await harness.use("d" * 64, "heavy")
        await harness.use("e" * 64, "light")


async def test_a_blend_is_its_last_users(tmp_path: Path) -> None:
    harness = Harness(tmp_path, budget=350)
    await harness.use(A, "heavy")
    await harness.use(A, "light")
    for digit in "01234":
        await harness.use(digit * 64, "heavy")
    await harness.use(A, "light")
    assert harness.begun == 6


async def test_two_front_ends_of_one_engine_never_give_one_id_to_two_blends(tmp_path: Path) -> None:
    first, second = Harness(tmp_path / "first"), Harness(tmp_path / "second")
    second.tier = BlendTier(second.folders, first.engine, 250, 0.1)
    ids = [(await side.use(digest)).lora_id for digest in (A, B) for side in (first, second)]
    assert len(set(ids)) == 4


async def test_a_blend_of_a_deleted_version_goes_with_its_last_user(harness: Harness) -> None:
    harness.inputs = frozenset({7})
    async with harness.hold(A) as held:
        harness.tier.retire({7})
        await asyncio.sleep(0.02)
        assert held.folder.is_dir()
    await until(lambda: not harness.on_disk() and not harness.tier.used_bytes)
    harness.inputs = frozenset({8})
    kept = await harness.use(B)
    harness.tier.retire({7, 9})
    await asyncio.sleep(0.02)
    assert harness.on_disk() == {kept.folder.name}
