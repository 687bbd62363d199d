"""A store in a bucket, against a server that speaks S3 over HTTP."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore

from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.registry import ObjectStoreUnavailable, ObjectStoreUnfit
from amalgam.store.bucket import Bucket
from amalgam.store.bucket_store import BucketStore
from tests.adapter_factory import write_lora
from tests.support.object_store import ADDRESS, give_credentials, names_in, objects_of, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the server, with nothing in its bucket."""
    give_credentials(monkeypatch)
    for name in names_in(server):
        obstore.delete(objects_of(server), name)
    return server


class Host:
    """A server's own folder, and what it announced."""

    def __init__(
        self,
        s3: str,
        folder: Path,
        max_bytes: int = 1 << 30,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        self.announced: list[str] = []
        self.now = 0.0
        self.bucket = Bucket.open(ADDRESS, s3)
        self.store = BucketStore(
            folder,
            self.bucket,
            announce or self.announced.append,
            max_bytes=max_bytes,
            answer_s=30,
            clock=lambda: self.now,
        )
        self.store.make_folders()
        self._made = folder.parent / f"{folder.name}-made"

    def publish(self, seed: int = 1) -> str:
        folder = write_lora(
            self._made / str(seed), layers=1, hidden=8, heads_kv_dim=4, intermediate=8, rank=2, seed=seed
        )
        with self.store.stage() as staging:
            for file in folder.iterdir():
                staging.receive(file.name, [file.read_bytes()])
            return self.store.publish(staging).digest


@pytest.fixture
def first(s3: str, tmp_path: Path) -> Host:
    return Host(s3, tmp_path / "first")


@pytest.fixture
def second(s3: str, tmp_path: Path) -> Host:
    return Host(s3, tmp_path / "second")


def damage(s3: str, digest: str, content: bytes = b"other bytes") -> None:
    obstore.put(objects_of(s3), f"objects/{digest}/adapter_model.safetensors", content)


def lose(s3: str, digest: str) -> None:
    obstore.delete(objects_of(s3), f"objects/{digest}/adapter_model.safetensors")


def test_what_one_host_publishes_another_has_byte_for_byte(first: Host, second: Host) -> None:
    digest = first.publish()
    assert first.announced == [digest]
    mine, yours = first.store.path(digest), second.store.path(digest)
    assert mine != yours
    assert {file.name: file.read_bytes() for file in mine.iterdir()} == {
        file.name: file.read_bytes() for file in yours.iterdir()
    }
    second.store.verify(digest)


def test_nothing_is_written_that_was_not_announced(s3: str, tmp_path: Path) -> None:
    def refuse(digest: str) -> None:
        raise ObjectStoreUnavailable("it is just being removed")

    with pytest.raises(ObjectStoreUnavailable):
        Host(s3, tmp_path / "first", announce=refuse).publish()
    assert names_in(s3) == set()


async def test_many_who_wait_for_a_copy_fetch_it_once(
    first: Host, second: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = first.publish()
    fetched, fetch = [], second.bucket.fetch

    def counted(wanted: str, folder: Path) -> bool:
        fetched.append(wanted)
        return fetch(wanted, folder)

    monkeypatch.setattr(second.bucket, "fetch", counted)
    with ThreadPoolExecutor(8) as threads:
        paths = set(threads.map(second.store.path, [digest] * 32))
    assert paths == {await second.store.ready(digest)}
    assert fetched == [digest]


def test_wrong_bytes_are_never_a_copy_and_are_not_asked_for_again_at_once(s3: str, first: Host, second: Host) -> None:
    digest = first.publish()
    damage(s3, digest)
    for _ in range(2):
        with pytest.raises(ArtifactDamaged):
            second.store.path(digest)
    assert not second.store.checks.folder(digest).exists()
    assert second.store.checks.found_damaged == 1
    with pytest.raises(ArtifactDamaged):
        first.store.verify(digest)

    # The same bytes, published again, are mended in the bucket, and the other host takes them in time.
    assert first.publish() == digest
    with pytest.raises(ArtifactDamaged):
        second.store.path(digest)
    second.now += 31
    assert second.store.path(digest).is_dir()


def test_what_the_bucket_lost_is_damaged_and_comes_back_by_publishing_it_again(
    s3: str, first: Host, second: Host
) -> None:
    digest = first.publish()
    lose(s3, digest)
    with pytest.raises(ArtifactDamaged):
        second.store.path(digest)
    with pytest.raises(ArtifactDamaged):
        first.store.verify(digest)
    first.publish()
    first.store.verify(digest)


def test_a_copy_that_rots_is_fetched_again(first: Host, second: Host) -> None:
    digest = first.publish()
    weights = second.store.path(digest) / "adapter_model.safetensors"
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactDamaged):
        second.store.checks.require_sound(digest)
    assert not second.store.is_here(digest)
    second.store.checks.require_sound(second.store.path(digest).name)


def test_copies_stay_within_their_bytes_but_those_in_use_and_those_of_a_moment_ago(s3: str, tmp_path: Path) -> None:
    roomy = Host(s3, tmp_path / "roomy")
    digests = [roomy.publish(seed) for seed in range(4)]
    size = sum(file.stat().st_size for file in roomy.store.path(digests[0]).iterdir())
    host = Host(s3, tmp_path / "small", max_bytes=2 * size + size // 2)
    host.store.in_use = lambda: frozenset(digests)
    for digest in digests:
        host.store.path(digest)
    host.store.in_use = lambda: {digests[1]}
    for age, digest in zip((400, 300, 200, 0), digests, strict=True):
        folder = host.store.checks.folder(digest)
        os.utime(folder, (folder.stat().st_mtime - age,) * 2)
    fifth = Host(s3, tmp_path / "other").publish(5)
    host.store.path(fifth)
    assert host.store.digests() == {digests[1], digests[3], fifth}
    assert host.store.path(digests[0]).is_dir(), "what went is fetched again"


def test_what_nobody_names_goes_from_the_bucket(s3: str, first: Host) -> None:
    digest = first.publish()
    other = first.publish(2)
    assert first.store.kept_digests() == {digest, other}
    first.store.remove_kept(digest)
    first.store.remove_kept(digest)
    assert first.store.kept_digests() == {other}


def test_of_many_writers_of_one_digest_all_find_it_whole(s3: str, tmp_path: Path) -> None:
    hosts = [Host(s3, tmp_path / str(number)) for number in range(6)]
    begin = threading.Barrier(len(hosts))

    def publish(host: Host) -> str:
        begin.wait()
        return host.publish()

    with ThreadPoolExecutor(len(hosts)) as threads:
        [digest] = set(threads.map(publish, hosts))
    hosts[0].store.verify(digest)


def test_a_store_that_does_not_answer_is_unavailable_without_its_address(tmp_path: Path, s3: str) -> None:
    bucket = Bucket.open(ADDRESS, "http://127.0.0.1:9")
    with pytest.raises(ObjectStoreUnavailable) as refusal:
        bucket.size("0" * 64)
    assert "127.0.0.1" not in str(refusal.value)
    with pytest.raises(ObjectStoreUnavailable):
        Host("http://127.0.0.1:9", tmp_path / "away").publish()


def test_a_store_that_takes_an_object_twice_is_unfit(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    Bucket.open(ADDRESS, s3).require_exclusive()
    assert names_in(s3) == set()
    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda store, path, file, **_: put(store, path, file))
    with pytest.raises(ObjectStoreUnfit):
        Bucket(MemoryStore()).require_exclusive()
