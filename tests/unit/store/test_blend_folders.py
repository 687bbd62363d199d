import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from amalgam.errors.registry import StoreUnavailable
from amalgam.store.blend_folders import BlendFolders, default_root
from amalgam.store.disk import locked


def test_a_dead_servers_folder_is_swept_and_a_living_ones_stays(tmp_path: Path) -> None:
    living = BlendFolders.open(tmp_path)
    private = living.root.parent
    dead = private / "amalgam-blends-dead"
    (dead / "blend").mkdir(parents=True)
    (dead / "blend" / "adapter_model.safetensors").write_bytes(b"x")
    foreign = private / "something-else"
    foreign.mkdir()
    victim = tmp_path / "victim"
    victim.mkdir()
    (private / "amalgam-blends-link").symlink_to(victim)
    second = BlendFolders.open(tmp_path)
    assert not dead.exists()
    assert living.root.is_dir()
    assert foreign.is_dir()
    assert victim.is_dir()
    second.close()
    living.close()
    assert not living.root.exists()
    assert not second.root.exists()


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from amalgam.store.blend_folders import BlendFolders;"
        "print(BlendFolders.open(Path(sys.argv[1])).root, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    left = Path(done.stdout.strip())
    assert left.is_dir()
    BlendFolders.open(tmp_path).close()
    assert not left.exists()


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    folders = BlendFolders.open(tmp_path / "made" / "here")
    assert folders.root.stat().st_mode & 0o077 == 0
    assert folders.place("blend-1").parent == folders.root
    assert not folders.place("blend-1").exists()
    folders.remove(folders.place("blend-1"))
    folders.close()


def test_the_budget_leaves_half_of_what_is_free(tmp_path: Path) -> None:
    folders = BlendFolders.open(tmp_path)
    assert folders.budget(1000) == 1000
    assert 0 < folders.budget(1 << 60) < 1 << 60
    folders.close()


def test_a_place_that_cannot_be_had_is_an_error_with_a_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable):
        BlendFolders.open(tmp_path / "file")


def test_without_shared_memory_the_store_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert default_root(tmp_path) == tmp_path / "blends"


def test_nobody_else_can_enter_the_folder_whose_lock_is_held(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    before = os.umask(0)
    try:
        folders = BlendFolders.open(tmp_path)
    finally:
        os.umask(before)
    private = folders.root.parent
    assert private.parent == tmp_path
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    folders.close()


def test_a_lock_of_the_shared_folder_holds_nobody_up(tmp_path: Path) -> None:
    """Anybody can hold the lock of a folder that they can read, as /dev/shm is."""
    with locked(tmp_path):
        BlendFolders.open(tmp_path).close()


@pytest.mark.parametrize("kind", ["another user's folder", "link", "file"])
def test_a_name_that_is_taken_is_done_without(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taken = tmp_path / f"amalgam-{os.getuid()}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "link":
        taken.symlink_to(elsewhere)
    elif kind == "file":
        taken.write_text("")
    else:
        monkeypatch.setattr(os, "getuid", lambda: 4711)
        (tmp_path / "amalgam-4711").mkdir()
    folders = BlendFolders.open(tmp_path)
    assert folders.root.parent.parent == tmp_path
    assert folders.root.parent.name not in (taken.name, "amalgam-4711")
    assert stat.S_IMODE(folders.root.parent.stat().st_mode) == 0o700
    assert list(elsewhere.iterdir()) == []
    assert "another user's" in caplog.text
    folders.close()
