"""Content-addressed files: the same bytes are one folder, damage is seen, and nothing needed is ever swept."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from amalgam.errors.adapters import ArtifactDamaged, InvalidAdapter, UploadTooLarge
from amalgam.errors.registry import StoreUnavailable
from amalgam.store.adapter_store import AdapterStore, StoredAdapter
from amalgam.store.file_rules import MAX_TEXT_BYTES
from amalgam.store.staging import Staging

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore.open(tmp_path / "store")


def put(store: AdapterStore, weights: bytes = b"weights", config: bytes = b"{}", **more: bytes) -> StoredAdapter:
    with store.stage() as staging:
        staging.receive(CONFIG, [config])
        staging.receive(WEIGHTS, [weights])
        for name, content in more.items():
            staging.receive({"lineage": "lineage.json", "card": "README.md"}[name], [content])
        return store.publish(staging)


def staged(store: AdapterStore) -> list[Path]:
    return list((store.root / "staging").iterdir())


class TestPublish:
    def test_what_was_received_is_what_is_stored(self, store: AdapterStore) -> None:
        with store.stage() as staging:
            assert staging.receive(CONFIG, iter([b"{", b"}"])) == 2
            assert staging.receive(WEIGHTS, (b"ab" * 700_000 for _ in range(3))) == 4_200_000
            stored = store.publish(staging)
        folder = store.path(stored.digest)
        assert (folder / WEIGHTS).read_bytes() == b"ab" * 2_100_000
        assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]
        assert stored.created
        assert stored.size_bytes == 4_200_002
        assert folder.parent.name == stored.digest[:2]
        assert staged(store) == []

    def test_the_same_bytes_are_one_object(self, store: AdapterStore) -> None:
        first, second = put(store), put(store)
        assert second == StoredAdapter(first.digest, first.size_bytes, created=False)
        assert store.digests() == {first.digest}
        assert staged(store) == []

    def test_digest_depends_on_both_files_and_on_nothing_else(self, store: AdapterStore) -> None:
        digest = put(store).digest
        assert put(store, lineage=b"{}", card=b"# card").digest == digest
        assert put(store, weights=b"Weights").digest != digest
        assert put(store, config=b"{ }").digest != digest
        # Bytes that move from one file to the other are another adapter.
        assert put(store, weights=b"bc", config=b"a").digest != put(store, weights=b"c", config=b"ab").digest

    def test_digest_is_stable_over_releases(self, store: AdapterStore) -> None:
        """Rows name digests for ever, so their definition cannot change."""
        described = (
            '{"files":{'
            f'"adapter_config.json":{{"bytes":2,"sha256":"{sha256(b"{}").hexdigest()}"}},'
            f'"adapter_model.safetensors":{{"bytes":7,"sha256":"{sha256(b"weights").hexdigest()}"}}'
            '},"format":1}'
        )
        assert put(store).digest == sha256(described.encode()).hexdigest()

    def test_sidecars_are_kept(self, store: AdapterStore) -> None:
        folder = store.path(put(store, lineage=b'{"a":1}', card=b"# card").digest)
        assert (folder / "lineage.json").read_bytes() == b'{"a":1}'
        assert (folder / "README.md").read_bytes() == b"# card"

    def test_files_written_straight_into_the_folder_count(self, store: AdapterStore) -> None:
        with store.stage() as staging:
            (staging.folder / CONFIG).write_bytes(b"{}")
            (staging.folder / WEIGHTS).write_bytes(b"weights")
            assert store.publish(staging).digest == put(store).digest

    @pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
    def test_both_files_are_needed(self, name: str, store: AdapterStore) -> None:
        with store.stage() as staging:
            staging.receive(name, [b"x"])
            with pytest.raises(InvalidAdapter) as caught:
                store.publish(staging)
        assert caught.value.code == "missing_file"
        assert store.digests() == frozenset()

    def test_nothing_else_may_lie_in_the_folder(self, store: AdapterStore, tmp_path: Path) -> None:
        (tmp_path / "outside").write_text("secret")
        with store.stage() as staging:
            (staging.folder / CONFIG).write_bytes(b"{}")
            (staging.folder / WEIGHTS).write_bytes(b"weights")
            (staging.folder / "README.md").symlink_to(tmp_path / "outside")
            (staging.folder / "more.txt").write_bytes(b"")
            with pytest.raises(InvalidAdapter) as caught:
                store.publish(staging)
        assert {finding.message.split("'")[1] for finding in caught.value.findings} == {"README.md", "more.txt"}

    def test_stored_files_are_read_only(self, store: AdapterStore) -> None:
        folder = store.path(put(store).digest)
        assert all(not path.stat().st_mode & 0o222 for path in folder.iterdir())

    def test_bytes_that_changed_between_receiving_and_verifying_are_not_published(self, store: AdapterStore) -> None:
        with store.stage() as staging:
            staging.receive(CONFIG, [b"{}"])
            staging.receive(WEIGHTS, [b"weights"])
            (staging.folder / WEIGHTS).write_bytes(b"weighty")
            with pytest.raises(StoreUnavailable, match="other bytes"):
                store.publish(staging)
        assert store.digests() == frozenset()

    def test_everything_is_durable_before_the_rename_and_the_rename_before_the_answer(
        self, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No kill can show a missing fsync, only a power cut could; so the calls themselves are checked."""
        calls: list[str] = []
        real_fsync, real_rename = os.fsync, Path.rename

        def fsync(descriptor: int) -> None:
            calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
            real_fsync(descriptor)

        def rename(path: Path, target: Path) -> Path:
            calls.append("rename")
            return real_rename(path, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "rename", rename)
        with store.stage() as staging:
            staging.receive(WEIGHTS, [b"weights"])
            staging.receive(CONFIG, [b"{}"])
            name = staging.folder.name
            digest = store.publish(staging).digest
        assert calls == [
            *(f"fsync {entry}" for entry in (CONFIG, WEIGHTS, name)),
            "rename",
            f"fsync {digest[:2]}",
            "fsync objects",
        ]


class TestDamage:
    def test_sound_files_verify(self, store: AdapterStore) -> None:
        store.verify(put(store, card=b"x").digest)

    @pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
    @pytest.mark.parametrize("damage", ["flip", "truncate", "append", "remove"])
    def test_damage_is_seen_and_mended_by_uploading_again(self, name: str, damage: str, store: AdapterStore) -> None:
        digest = put(store).digest
        path = store.path(digest) / name
        content = path.read_bytes()
        path.unlink()
        if damage != "remove":
            changed = {
                "flip": bytes([content[0] ^ 1]) + content[1:],
                "truncate": content[:-1],
                "append": content + b"\0",
            }
            path.write_bytes(changed[damage])
        with pytest.raises(ArtifactDamaged) as caught:
            store.verify(digest)
        assert caught.value.status == 500
        assert str(store.root) not in caught.value.message
        assert put(store) == StoredAdapter(digest, 9, created=True)
        store.verify(digest)
        assert staged(store) == []

    def test_a_sidecar_may_change(self, store: AdapterStore) -> None:
        digest = put(store, card=b"x").digest
        (store.path(digest) / "README.md").unlink()
        store.verify(digest)

    def test_what_is_not_there(self, store: AdapterStore) -> None:
        with pytest.raises(ArtifactDamaged):
            store.path("0" * 64)
        with pytest.raises(ArtifactDamaged):
            store.verify("0" * 64)

    @pytest.mark.parametrize("digest", ["", "../" + "0" * 61, "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n"])
    def test_what_is_no_digest(self, digest: str, store: AdapterStore) -> None:
        with pytest.raises(ValueError, match="not a digest"):
            store.path(digest)


class TestReceive:
    def test_the_limit_is_on_all_files_together(self, store: AdapterStore) -> None:
        with store.stage(max_bytes=10) as staging:
            staging.receive(CONFIG, [b"12345"])
            with pytest.raises(UploadTooLarge) as caught:
                staging.receive(WEIGHTS, [b"123", b"456"])
        assert caught.value.status == 413
        with store.stage(max_bytes=10) as staging:
            staging.receive(CONFIG, [b"12345"])
            assert staging.receive(WEIGHTS, [b"123", b"45"]) == 5

    def test_an_endless_upload_ends_at_the_limit(self, store: AdapterStore) -> None:
        def endless() -> Iterator[bytes]:
            while True:
                yield b"x" * 1000

        with store.stage(max_bytes=100_000) as staging, pytest.raises(UploadTooLarge):
            staging.receive(WEIGHTS, endless())
        assert staged(store) == []

    @pytest.mark.parametrize(
        "name", ["tokenizer.json", "optimizer.pt", "adapter_model.bin", "x.py", "evil.pkl", ".gitattributes"]
    )
    def test_files_of_no_use_are_left_out_unread(self, name: str, store: AdapterStore) -> None:
        def chunks() -> Iterator[bytes]:
            yield b"text"
            pytest.fail("read on")

        with store.stage() as staging:
            assert staging.receive(name, chunks()) == 0
            assert staging.findings == ()
            assert staging.left_out == (() if name.startswith(".") else (name,))
            assert os.listdir(staging.folder) == []

    def test_pickles_are_known_by_their_bytes_however_small_the_chunks(self, store: AdapterStore) -> None:
        with store.stage() as staging:
            staging.receive("README.md", [b"P", b"", b"K", b"\x03", b"\x04more"])
            assert [f.code for f in staging.findings] == ["unsafe_format"]

    @pytest.mark.parametrize(
        "name", ["../x", "a/adapter_config.json", "/etc/passwd", "..", "", "a\0b", "a\\b", "x" * 256, "a\nb"]
    )
    def test_names_that_are_no_bare_file_names(self, name: str, store: AdapterStore) -> None:
        with store.stage() as staging:
            staging.receive(name, [b"text"])
            assert [f.code for f in staging.findings] == ["path_denied"]
            assert os.listdir(staging.folder) == []

    def test_a_file_sent_twice(self, store: AdapterStore) -> None:
        with store.stage() as staging:
            staging.receive(CONFIG, [b"{}"])
            staging.receive(CONFIG, [b"[]"])
            assert [f.code for f in staging.findings] == ["duplicate_file"]
            assert (staging.folder / CONFIG).read_bytes() == b"{}"

    def test_a_config_of_megabytes(self, store: AdapterStore) -> None:
        with store.stage() as staging:
            staging.receive(CONFIG, [b"x" * MAX_TEXT_BYTES, b"x"])
            assert [f.code for f in staging.findings] == ["file_too_large"]
            assert os.listdir(staging.folder) == []

    def test_an_empty_file_is_a_file(self, store: AdapterStore) -> None:
        with store.stage() as staging:
            assert staging.receive("README.md", []) == 0
            assert os.listdir(staging.folder) == ["README.md"]

    def test_nothing_is_left_of_a_staging_that_failed(self, store: AdapterStore) -> None:
        def broken() -> Iterator[bytes]:
            yield b"some"
            raise RuntimeError("the client left")

        with pytest.raises(RuntimeError), store.stage() as staging:
            staging.receive(WEIGHTS, broken())
        assert staged(store) == []


class Gate:
    """A failpoint at which the publisher waits until the test lets it go on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached, self.open = threading.Event(), threading.Event()

    def reach(self, name: str) -> None:
        if name == self.name:
            self.reached.set()
            assert self.open.wait(10)


class TestAtOnce:
    def test_the_same_bytes_from_many_threads(self, store: AdapterStore) -> None:
        with ThreadPoolExecutor(16) as pool:
            stored = list(pool.map(lambda _: put(store, weights=b"w" * 100_000), range(48)))
        assert len({s.digest for s in stored}) == 1
        assert sum(s.created for s in stored) == 1
        store.verify(stored[0].digest)
        assert staged(store) == []

    @pytest.mark.parametrize(
        ("step", "published"), [("store.receiving", False), ("store.synced", True), ("store.verified", True)]
    )
    def test_an_abandoned_upload_is_published_whole_or_not_at_all(
        self, step: str, published: bool, tmp_path: Path
    ) -> None:
        """The request is cancelled while its thread is at work: the folder must not be emptied under it."""
        gate = Gate(step)
        store = AdapterStore.open(tmp_path, failpoints=gate)

        def work(staging: Staging) -> StoredAdapter:
            staging.receive(CONFIG, [b"{}"])
            staging.receive(WEIGHTS, [b"weights"])
            return store.publish(staging)

        with ThreadPoolExecutor(1) as pool:
            with store.stage() as staging:
                future = pool.submit(work, staging)
                assert gate.reached.wait(10)
            gate.open.set()
            error = future.exception(10)
        assert error is None if published else isinstance(error, StoreUnavailable)
        assert len(store.digests()) == published
        for digest in store.digests():
            store.verify(digest)
        assert staged(store) == []


class TestSweep:
    def test_only_what_no_row_names_goes(self, store: AdapterStore) -> None:
        known, orphan = put(store, b"known").digest, put(store, b"orphan").digest
        report = store.sweep({known}, now=time.time() + HOUR, grace_s=60)
        assert report.objects == (orphan,)
        assert store.digests() == {known}
        store.verify(known)

    def test_new_files_are_given_time_for_their_row(self, store: AdapterStore) -> None:
        digest = put(store).digest
        assert store.sweep((), now=time.time() + 50, grace_s=60).objects == ()
        assert store.sweep((), now=time.time() + 70, grace_s=60).objects == (digest,)

    def test_files_that_were_published_again_count_as_new(self, store: AdapterStore) -> None:
        """Else a sweep could take them between the second upload and its row."""
        digest = put(store).digest
        old = time.time() - HOUR
        os.utime(store.path(digest), (old, old))
        put(store)
        assert store.sweep((), now=time.time() + 1, grace_s=60).objects == ()

    def test_a_clock_that_was_set_back_removes_nothing(self, store: AdapterStore) -> None:
        put(store)
        assert store.sweep((), now=time.time() - HOUR, grace_s=60).objects == ()

    def test_folders_of_dead_writers_go_and_those_of_slow_ones_stay(self, store: AdapterStore) -> None:
        dead = store.root / "staging" / "dead"
        dead.mkdir()
        (dead / WEIGHTS).write_bytes(b"half")
        with store.stage() as slow:
            slow.receive(WEIGHTS, [b"half"])
            assert store.sweep((), now=time.time() + HOUR, grace_s=60).staging == 1
            assert staged(store) == [slow.folder]
            assert (slow.folder / WEIGHTS).read_bytes() == b"half"
        dead.mkdir()
        assert store.sweep((), now=time.time() + 50, grace_s=60).staging == 0

    def test_foreign_things_in_the_store_are_left_alone(self, store: AdapterStore) -> None:
        (store.root / "objects" / "notes").mkdir()
        (store.root / "demo").mkdir()
        store.sweep((), now=time.time() + HOUR, grace_s=0)
        assert (store.root / "objects" / "notes").is_dir()
        assert (store.root / "demo").is_dir()

    def test_remove(self, store: AdapterStore) -> None:
        digest = put(store).digest
        assert not store.remove(digest, now=time.time(), grace_s=60)
        assert store.remove(digest, now=time.time())
        assert store.remove(digest, now=time.time())
        assert store.digests() == frozenset()
        assert staged(store) == []


def test_two_openings_share_one_store(tmp_path: Path) -> None:
    digest = put(AdapterStore.open(tmp_path)).digest
    AdapterStore.open(tmp_path).verify(digest)


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable) as caught:
        AdapterStore.open(tmp_path / "file")
    assert str(tmp_path) not in caught.value.message
