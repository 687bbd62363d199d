"""Services on a real registry and a real store, with the fake engine; nothing is published but by the test."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from amalgam.api.inference.inner_request import inner_ask
from amalgam.services.cache_salts import CacheSalts
from amalgam.services.fair_queue import FairQueue
from amalgam.services.merge_probes import MergeProbes
from amalgam.services.merges import MergeService
from amalgam.services.publish import Publisher
from amalgam.services.skill_probes import SkillProbes
from amalgam.services.spare_capacity import SpareCapacity
from tests.api.fake_engine import FakeEngine
from tests.support.running_app import RunningApp, Stored, start_app, write_adapter


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


@dataclass(frozen=True)
class Publishing:
    """An application that publishes nothing itself, and a publisher beside it, as another server would have."""

    app: RunningApp
    stored: Stored
    publisher: Publisher


@pytest.fixture
async def publishing(running_app: RunningApp) -> AsyncIterator[Publishing]:
    stored, engine = await running_app.stored(), running_app.engine
    queue = FairQueue(math.inf, 1, 60.0)
    ask = inner_ask(running_app.app, engine, CacheSalts(b"0" * 32))
    probes = SkillProbes(ask, SpareCapacity(lambda: 0, 0, 10.0), "tiny", 2)
    asked = MergeProbes(probes, stored.versions, stored.files, engine, queue, 300.0)
    catalog = running_app.services.catalog
    publisher = Publisher(stored.versions, stored.jobs, stored.files, catalog, engine, queue, probes=asked)
    yield Publishing(running_app, stored, publisher)
    await publisher.close()
