"""Exports appear whole or not at all, are never overwritten, and dead writers leave nothing behind."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amalgam.domain.export import RECORD_FILE, ExportBase, ExportRecord
from amalgam.errors.adapters import InvalidName, NameTaken
from amalgam.errors.exports import ExportNotFound
from amalgam.errors.registry import StoreUnavailable
from amalgam.store.export_folders import PUBLISH_STEPS, ExportFolders, ExportStaging


def record(digest: str = "e" * 64) -> ExportRecord:
    return ExportRecord(
        export_digest=digest, dtype="base", recipe={}, recipe_digest="r", inputs={}, fingerprint="f",
        base=ExportBase(fingerprint="f", weights_digest="w"), weights_digest="n", tensor_count=1, changed_modules=1,
        weight_bytes=1, shard_count=1, versions={},
    )  # fmt: skip


def staged(folders: ExportFolders, content: ExportRecord | None = None) -> ExportStaging:
    staging = folders.stage()
    (staging.folder / "model.safetensors").write_bytes(b"weights")
    (staging.folder / RECORD_FILE).write_text((content or record()).model_dump_json())
    return staging


def made(folders: ExportFolders, name: str) -> None:
    staging = staged(folders)
    folders.sync(staging)
    folders.publish(staging, name)
    staging.close()


def test_published_it_is_found_and_its_folder_stays(tmp_path: Path) -> None:
    folders = ExportFolders(tmp_path / "root")
    assert folders.list() == {}
    made(folders, "a")
    assert folders.get("a") == record()
    assert folders.list() == {"a": record()}
    assert sorted(path.name for path in folders.root.iterdir()) == ["a"]


@pytest.mark.parametrize("kind", ["folder", "empty", "file", "link", "dangling"])
def test_what_is_there_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    folders = ExportFolders(tmp_path / "root")
    staging = staged(folders)
    target = folders.root / "a"
    make: dict[str, Callable[[], None]] = {
        "folder": lambda: (target / "inner").mkdir(parents=True),
        "empty": target.mkdir,
        "file": target.touch,
        "link": lambda: target.symlink_to(tmp_path),
        "dangling": lambda: target.symlink_to(tmp_path / "nowhere"),
    }
    make[kind]()
    before = os.lstat(target)
    with pytest.raises(NameTaken):
        folders.find("a")
    with pytest.raises(NameTaken):
        folders.publish(staging, "a")
    assert os.lstat(target).st_ino == before.st_ino
    assert folders.list() == {}
    with pytest.raises(ExportNotFound):
        folders.get("a")
    staging.close()
    assert [path.name for path in folders.root.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../a", ".amalgam-export-1", "a\x00", "a b"])
def test_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidName):
        ExportFolders(tmp_path).find(name)


class Deadly:
    def __init__(self, name: str) -> None:
        self._name = name

    def reach(self, name: str) -> None:
        if name == self._name:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("step", PUBLISH_STEPS)
def test_a_killed_writer_leaves_all_or_nothing(tmp_path: Path, step: str) -> None:
    pid = os.fork()
    if pid == 0:
        made(ExportFolders(tmp_path, Deadly(step)), "a")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    folders = ExportFolders(tmp_path)
    is_there = step in ("export.renamed", "export.published")
    assert folders.list() == ({"a": record()} if is_there else {})
    alive = folders.stage()
    hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert hidden == [alive.folder.name]
    # A second writer leaves the first one's folder alone: it is alive.
    second = folders.stage()
    assert alive.folder.is_dir()
    for staging in (alive, second):
        staging.close()
    assert [path.name for path in tmp_path.iterdir()] == (["a"] if is_there else [])


def test_only_the_very_export_is_taken_back(tmp_path: Path) -> None:
    folders = ExportFolders(tmp_path)
    made(folders, "a")
    folders.retract("a", "0" * 64)
    assert folders.find("a") is not None
    folders.retract("a", "e" * 64)
    folders.retract("a", "e" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_leaves_the_name_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = ExportFolders(tmp_path)
    staging = staged(folders)

    def full(descriptor: int) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreUnavailable, match="No space left"):
            folders.sync(staging)
    staging.close()
    assert list(tmp_path.iterdir()) == []
