"""Stored files are compared with their digest once, and again when they change; damage stays out of use."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from amalgam.errors.adapters import ArtifactDamaged
from amalgam.errors.registry import StoreUnavailable
from amalgam.store import artifact_checks
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.page_cache import checked_read_ahead
from tests.adapter_factory import write_lora

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore.open(tmp_path / "store")


def put(store: AdapterStore, folder: Path) -> str:
    write_lora(folder, layers=1, rank=2)
    with store.stage() as staging:
        for path in folder.iterdir():
            staging.receive(path.name, iter([path.read_bytes()]))
        return store.publish(staging).digest


def flip(path: Path) -> None:
    """One bit, in the middle, in place."""
    os.chmod(path, 0o644)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        [byte] = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def other_config(path: Path) -> None:
    config = path.with_name("adapter_config.json")
    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": 99'))


@pytest.mark.parametrize("harm", [flip, truncate, empty, Path.unlink, other_config])
def test_harm_is_found_on_the_way_to_the_engine_counted_and_remembered(
    store: AdapterStore, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    digest = put(store, tmp_path / "a")
    folder, read = store.path(digest), checked_read_ahead(store.checks)
    read(folder)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    harm(folder / WEIGHTS)
    for _ in range(2):
        with pytest.raises(ArtifactDamaged):
            read(folder)
    with pytest.raises(ArtifactDamaged):
        store.path(digest)
    assert store.checks.found_damaged == 1
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    with pytest.raises(ArtifactDamaged):
        read(folder)
    store.verify(digest)
    read(folder)
    assert store.path(digest) == folder
    assert store.checks.found_damaged == 1


def test_a_file_is_compared_once_while_it_stays_as_it_is(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(store, tmp_path / "a")
    asked: list[Path] = []
    compare = artifact_checks.content_digest

    def compared(folder: Path) -> tuple[str, int]:
        asked.append(folder)
        return compare(folder)

    monkeypatch.setattr(artifact_checks, "content_digest", compared)
    read = checked_read_ahead(store.checks)
    for _ in range(3):
        read(store.path(digest))
    assert len(asked) == 1
    os.utime(store.path(digest) / WEIGHTS)
    read(store.path(digest))
    assert len(asked) == 2


def test_a_folder_that_is_in_no_store_is_read_and_not_compared(store: AdapterStore, tmp_path: Path) -> None:
    """Such as a blend's, whatever it is called."""
    digest = put(store, tmp_path / "a")
    blend = tmp_path / digest
    blend.mkdir()
    (blend / WEIGHTS).write_bytes(b"x")
    checked_read_ahead(store.checks)(blend)
    assert store.checks.found_damaged == 0


def test_the_same_bytes_uploaded_again_repair_it(store: AdapterStore, tmp_path: Path) -> None:
    digest = put(store, tmp_path / "a")
    flip(store.path(digest) / WEIGHTS)
    with pytest.raises(ArtifactDamaged):
        store.checks.require_sound(digest)
    assert put(store, tmp_path / "a") == digest
    store.checks.require_sound(digest)


def test_a_process_without_descriptors_calls_no_file_damaged(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(store, tmp_path / "a")

    def exhausted(folder: Path) -> tuple[str, int]:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(artifact_checks, "content_digest", exhausted)
        with pytest.raises(StoreUnavailable):
            store.checks.require_sound(digest)
    store.checks.require_sound(digest)
    assert store.checks.found_damaged == 0
