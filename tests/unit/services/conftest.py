"""Services on a real registry and a real store, with the fake engine; nothing is published but by the test."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amalgam.services.merges import MergeService
from tests.api.fake_engine import FakeEngine
from tests.api.house import House, open_house, write_adapter


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    async def never(service: MergeService) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(MergeService, "publish_loop", never)
    async with open_house(tmp_path, FakeEngine()) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", seed=7)
