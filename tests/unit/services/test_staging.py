"""What is lent to the engine while it loads, and that nothing stays behind."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from amalgam.services import staging
from amalgam.services.staging import Staging, _Pace
from amalgam.store.blend_folders import BlendFolders
from tests.adapter_factory import write_lora


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "store" / "stored", rank=2, seed=1, alpha=6)


@pytest.fixture
def folders(tmp_path: Path) -> BlendFolders:
    return BlendFolders.open(tmp_path / "memory")


async def test_the_staged_folder_is_there_while_it_is_lent(stored: Path, folders: BlendFolders) -> None:
    lender = Staging()
    lender.open(folders)
    async with lender.lend(stored) as folder:
        assert folder.parent == folders.root
        assert (folder / "adapter_model.safetensors").is_file()
    assert list(folders.root.iterdir()) == []


async def test_it_goes_also_where_the_load_fails(stored: Path, folders: BlendFolders) -> None:
    lender = Staging()
    lender.open(folders)
    with pytest.raises(RuntimeError):
        async with lender.lend(stored):
            raise RuntimeError
    assert list(folders.root.iterdir()) == []


async def test_what_is_in_memory_already_and_everything_while_it_is_off_is_lent_as_it_is(
    stored: Path, folders: BlendFolders
) -> None:
    lender = Staging()
    async with lender.lend(stored) as folder:
        assert folder == stored
    lender.open(folders)
    blend = write_lora(folders.root.parent / "amalgam-blends-other" / "blend", rank=2, seed=1)
    async with lender.lend(blend) as folder:
        assert folder == blend


async def test_too_little_memory_and_a_failing_disk_leave_the_stored_files(
    stored: Path, folders: BlendFolders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lender = Staging()
    lender.open(folders)
    with monkeypatch.context() as patch:
        patch.setattr(BlendFolders, "budget", lambda self, wanted: wanted - 1)
        async with lender.lend(stored) as folder:
            assert folder == stored

    def full(folder: Path, place: Path, pause: Callable[[], None]) -> None:
        place.mkdir()
        (place / "begun").touch()
        raise OSError(28, "no space")

    monkeypatch.setattr(staging, "write_staged", full)
    with caplog.at_level(logging.WARNING):
        async with lender.lend(stored) as folder:
            assert folder == stored
    assert "no space" in caplog.text
    assert list(folders.root.iterdir()) == []


def test_work_rests_eight_times_as_long_as_it_took_while_the_engine_is_busy() -> None:
    now, rests, busy = [0.0], [], [True]

    def sleep(seconds: float) -> None:
        rests.append(seconds)
        now[0] += seconds

    pace = _Pace(lambda: busy[0], lambda: now[0], sleep)
    now[0] += 2.0
    pace()
    now[0] += 1.0
    pace()
    busy[0] = False
    now[0] += 5.0
    pace()
    busy[0] = True
    now[0] += 0.5
    pace()
    assert rests == [16.0, 8.0, 4.0]


@pytest.mark.parametrize("small_bytes", [0, 1 << 30])
async def test_what_is_large_asks_whether_the_engine_is_busy_and_what_is_small_is_done_at_once(
    small_bytes: int, stored: Path, folders: BlendFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_SMALL_BYTES", small_bytes)
    lender = Staging()
    lender.open(folders)
    asked: list[int] = []
    async with lender.lend(stored, lambda: bool(asked.append(1))):
        assert bool(asked) is (small_bytes == 0)
