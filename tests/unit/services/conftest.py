"""Services on a real registry and a real store, with the fake engine; nothing is published but by the test."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amalgam.services.merges import MergeService
from tests.api.fake_engine import FakeEngine
from tests.support.running_app import RunningApp, start_app, write_adapter


@pytest.fixture
async def running_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningApp]:
    async def never(service: MergeService) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(MergeService, "publish_loop", never)
    async with start_app(tmp_path, FakeEngine()) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", seed=7)
