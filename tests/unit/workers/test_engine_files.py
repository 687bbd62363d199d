"""What an engine in a process of its own reads from a bucket, into a folder that no other one has."""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from amalgam.engine.protocol import EngineInfo, Resident
from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.registry import ObjectStoreUnavailable
from amalgam.settings import Settings
from amalgam.store.artifact_checks import content_digest
from amalgam.store.bucket import Bucket
from amalgam.store.bucket_store import BucketStore
from amalgam.store.own_folder import own_folder
from amalgam.workers.engine_files import EngineFiles
from tests.support.object_store import ADDRESS, give_credentials, names_in, objects_of, s3_server
from tests.support.running_app import write_adapter


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def settings(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    give_credentials(monkeypatch)
    return Settings(store=tmp_path / "copies", bucket=ADDRESS, object_endpoint=server, load_timeout_s=5.0)


def put(server: str, folder: Path, seed: int) -> str:
    """An adapter in the bucket; its digest."""
    made = write_adapter(folder / f"made-{seed}", seed=seed)
    digest = content_digest(made)[0]
    Bucket.open(ADDRESS, server).keep(digest, made)
    return digest


async def test_it_is_fetched_once_whoever_waits_and_lies_in_the_engines_own_folder(
    server: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, fetched = put(server, tmp_path, 1), []
    fetch = Bucket.fetch

    def counted(bucket: Bucket, wanted: str, folder: Path) -> bool:
        fetched.append(wanted)
        return fetch(bucket, wanted, folder)

    monkeypatch.setattr(Bucket, "fetch", counted)
    async with EngineFiles.open(settings) as first, EngineFiles.open(settings) as second:
        folders = await asyncio.gather(*(first.folder(digest) for _ in range(8)))
        assert set(folders) == {settings.storage.store / "engines" / "0" / "objects" / digest[:2] / digest}
        assert content_digest(folders[0])[0] == digest
        assert fetched == [digest]
        assert "1" in (await second.folder(digest)).parts, "the other engine has a copy of its own"
    before = names_in(server)
    async with EngineFiles.open(settings) as again:
        assert await again.folder(digest) == folders[0], "the next engine finds what the first one left"
        assert fetched == [digest, digest]
    assert names_in(server) == before, "it writes nothing"


async def test_wrong_bytes_are_never_lent(server: str, settings: Settings, tmp_path: Path) -> None:
    digest = put(server, tmp_path, 2)
    obstore.put(objects_of(server), f"objects/{digest}/adapter_model.safetensors", b"wrong")
    async with EngineFiles.open(settings) as files:
        with pytest.raises(ArtifactDamaged):
            await files.folder(digest)
        assert not files.store.digests()


async def test_what_is_in_the_engines_memory_stays(server: str, settings: Settings, tmp_path: Path) -> None:
    first, second = put(server, tmp_path, 3), put(server, tmp_path, 4)
    residents = (Resident("a@1", 1, held=0, pinned=False, load_s=0.1, digest=first),)
    async with EngineFiles.open(settings) as files:
        files.follow(lambda: EngineInfo("ready", "tiny", 2, 4, 16, 0, residents, {}))
        assert isinstance(files.store, BucketStore)
        await files.folder(first)
        await files.folder(second)
        assert files.store.in_use() == {first}


async def test_a_bucket_that_cannot_be_read_keeps_the_engine_from_starting(settings: Settings, tmp_path: Path) -> None:
    nobody = Settings(store=tmp_path / "c", bucket=ADDRESS, object_endpoint="http://127.0.0.1:9")
    with pytest.raises(ObjectStoreUnavailable):
        async with EngineFiles.open(nobody):
            pytest.fail("it opened")


async def test_without_a_bucket_it_is_the_stores_folder(tmp_path: Path) -> None:
    async with EngineFiles.open(Settings(store=tmp_path / "store")) as files:
        assert files.store.root == tmp_path / "store"
        with pytest.raises(ArtifactDamaged):
            await files.folder("0" * 64)


def _hold(parent: Path, ready: Any) -> None:
    with own_folder(parent):
        ready.set()
        time.sleep(60)


def test_a_folder_is_free_again_when_its_process_was_killed(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    holder = spawn.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(60)
    with own_folder(tmp_path) as mine:
        assert mine == tmp_path / "1"
    holder.kill()
    holder.join()
    with own_folder(tmp_path) as mine:
        assert mine == tmp_path / "0"
