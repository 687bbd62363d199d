"""Disks of some MiB that are really full: F10, the store's; F11, the registry's.

A disk is a file system in memory, which takes the right to mount one; without it these tests are skipped.
"""

import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from amalgam.registry.database import sqlite_url
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, assert_error, push, start_app, write_adapter

MIB = 1 << 20
ASK: Any = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take the last byte."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\x00" * 4096)
        except OSError:
            return filler


def used_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@asynccontextmanager
async def on(tmp_path: Path, **changes: Any) -> AsyncIterator[tuple[RunningApp, httpx.AsyncClient]]:
    async with (
        start_app(tmp_path / "running_app", max_upload_bytes=16 * MIB, **changes) as running_app,
        running_app.http(ADMIN_KEY) as http,
    ):
        yield running_app, http


async def infer(running_app: RunningApp) -> int:
    async with running_app.http(API_KEY) as client:
        return (await client.post("/v1/chat/completions", json=ASK)).status_code


@pytest.mark.parametrize("path", ["/admin/v1/adapters", "/admin/v1/adapters:validate"])
async def test_a_store_that_is_full_refuses_the_upload_and_takes_the_next(
    path: str, disk: Path, tmp_path: Path
) -> None:
    """F10."""
    url = sqlite_url(tmp_path / "registry.db")
    async with on(tmp_path, store=disk / "store", database_url=url) as (running_app, http):
        before = used_bytes(disk)
        huge = {"files": ("adapter_model.safetensors", b"\x01" * (6 * MIB))}
        refused = await http.post(path, data={"name": "huge"}, files=huge)
        assert_error(refused, 503, "store_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert used_bytes(disk) <= before + 4096, "nothing is left"
        assert list((disk / "store" / "staging").iterdir()) == []
        assert list((disk / "store" / "spool").iterdir()) == []
        assert await infer(running_app) == 200
        made = await push(http, "small", write_adapter(tmp_path / "small", seed=1))
        assert made.status_code == 201, made.text


async def test_a_store_that_fills_up_while_files_are_moved_in(disk: Path, tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "registry.db")
    async with on(tmp_path, store=disk / "store", database_url=url) as (_, http):
        # Half fits into the spool; the second copy, in the store itself, does not.
        halves = {"files": ("adapter_model.safetensors", b"\x01" * (2 * MIB + 200_000))}
        assert_error(await http.post("/admin/v1/adapters", data={"name": "a"}, files=halves), 503, "store_unavailable")
        assert list((disk / "store" / "staging").iterdir()) == []
        assert (await push(http, "small", write_adapter(tmp_path / "small", seed=1))).status_code == 201


async def test_a_full_temporary_folder_stops_no_upload(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(disk)
    async with on(tmp_path) as (_, http):
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        folder = write_adapter(tmp_path / "large", seed=1, rank=16)
        (folder / "README.md").write_bytes(b"x" * (2 * MIB))
        made = await push(http, "large", folder)
        monkeypatch.undo()
        assert made.status_code in (201, 422), made.text
        assert (await push(http, "small", write_adapter(tmp_path / "small", seed=1))).status_code == 201


async def test_a_registry_that_is_full_refuses_changes_and_serves_on(disk: Path, tmp_path: Path) -> None:
    """F11."""
    async with on(tmp_path, database_url=sqlite_url(disk / "registry.db")) as (running_app, http):
        assert (await push(http, "before", write_adapter(tmp_path / "before", seed=1))).status_code == 201
        filler = fill(disk)
        refused = 0
        for seed in range(2, 8):
            answer = await push(http, f"full{seed}", write_adapter(tmp_path / f"full{seed}", seed=seed))
            if answer.status_code == 201:
                continue  # what the log of writes had room for already
            assert_error(answer, 503, "registry_unavailable")
            assert "disk is full" in answer.json()["error"]["message"]
            refused += 1
        assert refused >= 2
        assert await infer(running_app) == 200
        assert (await http.get("/admin/v1/adapters/before")).status_code == 200
        assert (await http.get("/readyz")).status_code == 200, "no loop has ended"
        assert (await http.get("/metrics")).status_code == 200
        filler.unlink()
        made = await push(http, "after", write_adapter(tmp_path / "after", seed=9))
        assert made.status_code == 201, made.text
        assert (await http.get("/admin/v1/adapters/after")).status_code == 200
