"""Faults while adapters come in. Every test ends with the same check: rows and files agree, and nothing is left over.

| fault | what happens | test |
|---|---|---|
| F1 | SIGKILL before the first byte | `test_killed_at_every_step[store.staged…]` |
| F2 | SIGKILL while files are written | `[store.receiving…]` (F8 too) |
| F3 | SIGKILL after fsync, before the digest is checked | `[store.synced…]` |
| F4 | SIGKILL after the check, before the rename | `[store.verified…]` |
| F5 | SIGKILL after the rename, before the folder's fsync | `[store.renamed…]` |
| F6 | SIGKILL when the files are durable, before the row | `[store.published…]` |
| F7 | SIGKILL inside the transaction, and after its commit | `[registry.written…]`, `[registry.committed…]` |
| F8 | SIGKILL in the middle of an upload, at any moment | `test_killed_at_any_moment` |
| F9 | fsync fails | `test_each_fsync_may_fail` |
| F10 | the disk is full during an upload | `test_disk_full_at_every_step`, `test_a_real_limit_on_file_size` |
| F11 | the disk is full in the database | `tests/unit/registry/test_database.py` |
| F12, F13 | a stored artifact is flipped, truncated | `test_damage_is_found_and_mended` |
| F14 | the same bytes uploaded twice at once | `test_the_same_bytes_at_once` |
| F15 | one name, different bytes, at once | `test_one_name_different_bytes_at_once`; 32 tasks in the registry's tests |
"""

import asyncio
import errno
import os
import random
import time
from pathlib import Path

import pytest

from amalgam.errors.adapters import AdapterNotFound, ArtifactDamaged
from amalgam.errors.registry import StoreUnavailable
from amalgam.store.adapter_store import PUBLISH_STEPS, AdapterStore
from tests.faults.conftest import Victims, World
from tests.faults.victims import WEIGHTS, draft, store_adapter, weights

STEPS = [
    *((step, 1) for step in PUBLISH_STEPS),
    ("store.receiving", 3),
    ("registry.written", 1),
    ("registry.committed", 1),
]


@pytest.mark.parametrize(("step", "nth"), STEPS)
@pytest.mark.parametrize("there_before", [False, True], ids=["first version", "later version"])
async def test_killed_at_every_step(step: str, nth: int, there_before: bool, world: World, victims: Victims) -> None:
    """Before the commit nothing is visible; after it everything is, and a retry finds it."""
    if there_before:
        first = victims.run("upload", name="sql", seeds=[1], **world.plan)
        assert first.error is None, first.message
    before = await world.registry.load_catalog()
    killed = victims.run("upload", name="sql", seeds=[2], die_at=step, nth=nth, **world.plan)
    assert killed.was_killed
    number = 2 if there_before else 1
    if step == "registry.committed":
        version = await world.registry.get_version("sql", number)
        assert world.weights_of(version.digest) == weights(2)
    else:
        assert await world.registry.load_catalog() == before
    retried = victims.run("upload", name="sql", seeds=[2], **world.plan)
    assert retried.error is None, retried.message
    assert retried.value[0][:2] == [number, step != "registry.committed"]
    assert world.weights_of(retried.value[0][2]) == weights(2)
    assert (await world.registry.get_adapter("sql")).default_version == number
    await world.assert_whole()


async def test_killed_before_the_row_then_swept(world: World, victims: Victims) -> None:
    """The files that no row came to name are gone after the grace period, whoever the next process is."""
    assert victims.run("upload", name="sql", seeds=[1], die_at="store.published", **world.plan).was_killed
    assert len(world.store.digests()) == 1
    await world.assert_whole()
    assert world.store.digests() == frozenset()


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_any_moment(seed: int, world: World, victims: Victims, tmp_path: Path) -> None:
    """What was acknowledged is there, complete; what was not is there complete, or not at all."""
    acknowledged = tmp_path / "acknowledged"
    rng = random.Random(seed)
    for attempt in range(4):
        seeds = list(range(attempt * 1000, attempt * 1000 + 500))
        pid = victims.start("upload", name="sql", seeds=seeds, acknowledged=str(acknowledged), **world.plan)
        await asyncio.sleep(0.05 + rng.random() * 0.3)
        victims.kill(pid)
        assert victims.wait(pid).was_killed
    lines = acknowledged.read_text().split("\n")[:-1] if acknowledged.exists() else []
    rows = {version.number: version.digest for version in (await world.registry.load_catalog()).versions}
    for number, digest in (line.split() for line in lines):
        assert rows[int(number)] == digest
    # Every kill may have come between a commit and its acknowledgement, and no more than one of them each.
    assert len(lines) <= len(rows) <= len(lines) + 4
    assert sorted(rows) == list(range(1, len(rows) + 1))
    await world.assert_whole()


async def test_each_fsync_may_fail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever fsync says no, nothing was published and nothing stays: a second fsync may lie about the first."""
    real, countdown = os.fsync, -1

    def fsync(descriptor: int) -> None:
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store_adapter(world.store, 0)
    needed = -1 - countdown
    assert needed >= 5  # two files, their folder, the folder's entry, the entry of that
    world.store.sweep((), now=time.time() + 1, grace_s=0)
    for failing in range(1, needed + 1):
        countdown = failing
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            store_adapter(world.store, 1)
        assert world.store.digests() == frozenset()
        assert list((world.root / "staging").iterdir()) == []
    assert store_adapter(world.store, 1).created
    await world.assert_whole()


class Full:
    """The disk is full from a step on."""

    def __init__(self, step: str) -> None:
        self._step = step

    def reach(self, name: str) -> None:
        if name == self._step:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", PUBLISH_STEPS[1:])
async def test_disk_full_at_every_step(step: str, world: World) -> None:
    store = AdapterStore.open(world.root, failpoints=Full(step))
    with pytest.raises(StoreUnavailable, match="No space left") as caught:
        store_adapter(store, 1)
    assert caught.value.status == 503
    assert caught.value.retry_after_s
    assert str(world.root) not in caught.value.message
    assert list((world.root / "staging").iterdir()) == []
    retried = store_adapter(world.store, 1)
    await world.registry.create_version(draft("sql", retried))
    assert world.weights_of(retried.digest) == weights(1)
    await world.assert_whole()


async def test_a_real_limit_on_file_size(world: World, victims: Victims) -> None:
    """The kernel itself stops the write in the middle of a file."""
    full = victims.run("upload", name="sql", seeds=[1], size=1 << 20, file_limit=600 << 10, **world.plan)
    assert full.error == "StoreUnavailable"
    with pytest.raises(AdapterNotFound):
        await world.registry.get_adapter("sql")
    assert victims.run("upload", name="sql", seeds=[1], size=1 << 20, **world.plan).value[0][:2] == [1, True]
    await world.assert_whole()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
async def test_damage_is_found_and_mended(damage: str, world: World) -> None:
    """One bit, one byte or a whole file: it is seen, and the same upload again mends it under the same version."""
    stored = store_adapter(world.store, 1)
    version = (await world.registry.create_version(draft("sql", stored))).version
    path = world.store.path(stored.digest) / WEIGHTS
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flip":
        content[len(content) // 2] ^= 0x10
    if damage != "remove":
        damaged: dict[str, bytes] = {"flip": bytes(content), "truncate": bytes(content[:-1]), "empty": b""}
        path.write_bytes(damaged[damage])
    with pytest.raises(ArtifactDamaged):
        world.store.verify(version.digest)
    again = store_adapter(world.store, 1)
    made = await world.registry.create_version(draft("sql", again))
    assert (made.version, made.created) == (version, False)
    assert world.weights_of(version.digest) == weights(1)
    await world.assert_whole()


@pytest.mark.parametrize("names", [["sql"] * 6, ["a", "b", "c", "a", "b", "c"]], ids=["one name", "three names"])
async def test_the_same_bytes_at_once(names: list[str], world: World, victims: Victims) -> None:
    """All succeed, one object, one version a name."""
    pids = [victims.start("upload", name=name, seeds=[1], size=1 << 20, **world.plan) for name in names]
    endings = [victims.wait(pid) for pid in pids]
    assert all(ending.error is None for ending in endings), endings
    assert sum(ending.value[0][1] for ending in endings) == len(set(names))
    assert len(world.store.digests()) == 1
    for name in set(names):
        assert [version.number for version in (await world.registry.get_adapter(name)).versions] == [1]
    await world.assert_whole()


async def test_one_name_different_bytes_at_once(world: World, victims: Victims) -> None:
    """With ``if_absent`` one process wins and the others are told; their files are swept."""
    pids = [victims.start("upload", name="sql", seeds=[seed], if_absent=True, **world.plan) for seed in range(6)]
    endings = [victims.wait(pid) for pid in pids]
    assert sorted(ending.error or "" for ending in endings) == ["", *["NameTaken"] * 5]
    [won] = [ending.value[0] for ending in endings if ending.error is None]
    assert won[:2] == [1, True]
    assert (await world.registry.get_version("sql", 1)).digest == won[2]
    await world.assert_whole()
