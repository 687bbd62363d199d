"""The registry's file is for its owner alone, whatever the umask, and whatever made it."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from amalgam.registry.database import Database, sqlite_url
from amalgam.store.adapter_store import AdapterStore


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.usefixtures("umask")
async def test_nobody_else_reads_the_registry_or_what_lies_beside_it(tmp_path: Path) -> None:
    async with Database.open(sqlite_url(tmp_path / "registry.sqlite3")) as database, database.write():
        found = modes(tmp_path)
    assert {"registry.sqlite3", "registry.sqlite3-wal", "registry.sqlite3-shm"} == set(found)
    assert set(found.values()) == {0o600}


async def test_a_file_of_an_earlier_release_is_taken_away_from_others(tmp_path: Path) -> None:
    file = tmp_path / "registry.sqlite3"
    for path in (file, tmp_path / "registry.sqlite3-wal"):
        path.write_bytes(b"")
        path.chmod(0o644)
    async with Database.open(sqlite_url(file)):
        assert set(modes(tmp_path).values()) == {0o600}


@pytest.mark.usefixtures("umask")
def test_a_store_that_is_made_is_for_its_owner_alone(tmp_path: Path) -> None:
    root = tmp_path / "some" / "store"
    AdapterStore.open(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert set(modes(root).values()) == {0o700}


def test_what_an_earlier_release_made_in_a_store_is_too(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir(mode=0o755)
    AdapterStore.open(tmp_path)
    assert set(modes(tmp_path).values()) == {0o700}
