"""F30: the clock of one process, or of its host, is wrong or is set. No lease is stolen, and nothing is deleted early.

Leases are counted by the database's clock and ages of files by the disk's, so a wrong clock is injected where a process
could read its own: in `time` and in `amalgam.domain.clock`.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import amalgam
from amalgam.domain import clock as clock_module
from amalgam.domain.evaluation import EvaluationDraft, EvaluationItem, EvaluationTarget
from amalgam.domain.job import JobRequest
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.evaluations import EvaluationRegistry
from amalgam.registry.idempotency import IdempotencyRegistry
from amalgam.registry.jobs import JobRegistry
from amalgam.services.retention import GRACE_S, Retention
from amalgam.store.adapter_store import AdapterStore
from amalgam.store.file_clock import FileClock
from tests.faults.victims import store_adapter

HOUR_S = 3600.0
SKEWS_S = [31.0, -31.0, 5 * HOUR_S, -5 * HOUR_S]
SOURCE = Path(amalgam.__file__).parent


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Database]:
    """The same database as another server sees it."""
    async with Database.open(database_url, busy_timeout_s=60, answer_timeout_s=30) as opened:
        yield opened


def set_clock(monkeypatch: pytest.MonkeyPatch, skew_s: float) -> None:
    """From here on whatever this process reads as the time of day is wrong."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew_s)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + skew_s) * 1e9))
    monkeypatch.setattr(clock_module, "utc_now", lambda: datetime.fromtimestamp(real() + skew_s, UTC))


@pytest.mark.parametrize("skew_s", SKEWS_S)
async def test_a_wrong_clock_steals_no_lease(
    skew_s: float, database: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, keys = JobRegistry(database, database.clock, lambda: "job-1"), IdempotencyRegistry(database, database.clock)
    rows = EvaluationRegistry(database, database.clock, lambda: "eval-1")
    await jobs.submit(JobRequest("merge", "mix", {}, "a" * 64))
    job = await jobs.claim("worker", lease_s=30, max_attempts=3)
    assert job is not None
    await keys.begin("key", "holder", lease_s=10, keep_s=86_400)
    item = EvaluationItem(prompt="x", reference="y")
    target = EvaluationTarget(model="tiny", meaning="tiny", pinned="tiny")
    await rows.create(_draft(item, target))
    assert await rows.claim("server", lease_s=30) is not None

    set_clock(monkeypatch, skew_s)
    theirs = JobRegistry(other, other.clock, lambda: "unused")
    assert await theirs.claim("thief", lease_s=30, max_attempts=3) is None
    assert not await theirs.is_overdue("worker", grace_s=2)
    assert (await IdempotencyRegistry(other, other.clock).begin("key", "thief", lease_s=10, keep_s=86_400)).is_running
    assert await IdempotencyRegistry(other, other.clock).remove_older(86_400) == 0
    assert await EvaluationRegistry(other, other.clock, lambda: "unused").claim("thief", lease_s=30) is None
    # Nor does the holder lose what it holds, or hold it for longer than it said.
    renewed = await jobs.heartbeat(job.id, job.fencing_token, lease_s=30)
    await rows.save("eval-1", "server", [], lease_s=30)
    assert renewed.lease_expires_at is not None
    assert abs((renewed.lease_expires_at - other.clock()).total_seconds() - 30) < 5


def _draft(item: EvaluationItem, target: EvaluationTarget) -> EvaluationDraft:
    fields: dict[str, Any] = {
        "kind": "evaluation",
        "label": "",
        "targets": (target,),
        "items": (item,),
        "metrics": ("exact_match",),
    }
    return EvaluationDraft(**fields, max_tokens=8)


async def test_the_clock_of_a_database_goes_on_and_is_shared(database: Database, other: Database) -> None:
    first = database.clock()
    await asyncio.sleep(0.05)
    async with other.read():
        pass
    assert timedelta(milliseconds=40) < database.clock() - first < timedelta(seconds=5)
    assert abs((database.clock() - other.clock()).total_seconds()) < 1
    assert database.clock().tzinfo is UTC


class Disk:
    """A file clock whose disk and steady clock do as they are told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.skew_s = self.passed_s = 0.0
        monkeypatch.setattr(FileClock, "stamp", lambda clock: time.time() + self.passed_s + self.skew_s)
        self.clock = FileClock(folder, lambda: self.passed_s)


@pytest.mark.parametrize("skew_s", SKEWS_S)
async def test_a_disk_clock_that_is_set_ages_no_file(
    skew_s: float, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore.open(tmp_path / "store")
    disk = Disk(store.root, monkeypatch)
    retention = Retention(AdapterRegistry(database, database.clock), store, disk.clock)
    left = store_adapter(store, 1)
    disk.skew_s = skew_s
    assert (await retention.sweep()).objects == (), "its row may be on its way"
    disk.passed_s = GRACE_S - 60
    assert (await retention.sweep()).objects == ()
    disk.passed_s = GRACE_S + 60 + max(-skew_s, 0.0)
    assert (await retention.sweep()).objects == (left.digest,)


async def test_the_disk_says_what_time_it_is(tmp_path: Path) -> None:
    clock = FileClock(tmp_path)
    (tmp_path / "file").write_text("x")
    assert abs(clock().timestamp() - (tmp_path / "file").stat().st_mtime) < 1


def test_nothing_that_is_promised_is_counted_by_the_clock_of_a_host() -> None:
    """Where the time of day is read at all: for people, in metrics, and as the age of this process' model list."""
    allowed = {
        ("domain/clock.py", "datetime.now("),
        ("telemetry/metrics.py", "time.time"),
        ("api/operations.py", "time.time"),
        ("app.py", "utc_now("),
        ("cli/usage.py", "time.time"),
    }
    reads: Callable[[str], list[str]] = re.compile(
        r"\butc_now\(|\btime\.time(?:_ns)?\b|\bdatetime\.(?:now|utcnow)\("
    ).findall
    found = {
        (path.relative_to(SOURCE).as_posix(), word)
        for path in SOURCE.rglob("*.py")
        if "demo" not in path.relative_to(SOURCE).parts
        for line in path.read_text().splitlines()
        if not line.startswith("def ")
        for word in reads(line)
    }
    assert found == allowed
