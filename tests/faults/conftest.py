"""Victims to kill, and the check that every fault test ends with."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from amalgam.domain.clock import utc_now
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.jobs import JobRegistry
from amalgam.registry.tables import versions
from amalgam.store.adapter_store import AdapterStore
from tests.faults import victims as victims_module
from tests.registry_fixtures import clock, database, database_url, registry

__all__ = ["clock", "database", "database_url", "registry"]

HOUR = 3600.0


@dataclass(frozen=True)
class Ending:
    """How a victim ended."""

    status: int
    value: Any = None
    error: str | None = None
    message: str = ""

    @property
    def was_killed(self) -> bool:
        return self.status == -signal.SIGKILL


class Victims:
    """Starts victims, kills them, and says how they ended."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._count = itertools.count()
        self._results: dict[int, Path] = {}

    def _ask(self, command: dict[str, Any]) -> int:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return int(json.loads(self._process.stdout.readline()))

    def start(self, action: str, **plan: Any) -> int:
        result = self._folder / f"result-{next(self._count)}"
        pid = self._ask({"start": {"action": action, "result": str(result), **plan}})
        self._results[pid] = result
        return pid

    def kill(self, pid: int) -> None:
        """Only a victim of ours that has not been waited for, so the pid is still its own."""
        assert pid in self._results
        os.kill(pid, signal.SIGKILL)

    def wait(self, pid: int) -> Ending:
        status = self._ask({"wait": pid})
        result = self._results.pop(pid)
        return Ending(status, **(json.loads(result.read_text()) if status == 0 else {}))

    def run(self, action: str, **plan: Any) -> Ending:
        return self.wait(self.start(action, **plan))


@pytest.fixture(scope="session")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    process = subprocess.Popen(
        [sys.executable, victims_module.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        yield Victims(process, tmp_path_factory.mktemp("victims"))
        assert process.stdin
        process.stdin.close()


class World:
    """One store and one registry, as the next process after a crash finds them."""

    def __init__(self, url: str, root: Path) -> None:
        self.url, self.root = url, root
        self.plan = {"url": url, "store": str(root)}
        self.store = AdapterStore.open(root)
        self.registry: AdapterRegistry
        self.jobs: JobRegistry
        self.database: Database

    def weights_of(self, digest: str) -> bytes:
        return (self.store.path(digest) / victims_module.WEIGHTS).read_bytes()

    async def assert_whole(self) -> None:
        """Rows and files agree, nothing is left over: the end of every fault test."""
        rows = await self.registry.load_catalog()
        for version in rows.versions:
            self.store.verify(version.digest)
        for adapter in rows.adapters:
            assert adapter.versions
            assert adapter.default_version in {None, *(version.number for version in adapter.versions)}
        self.store.sweep(await self.registry.digests_in_use(), now=time.time() + HOUR, grace_s=60)
        assert self.store.digests() == await self.registry.digests_in_use()
        assert list((self.root / "staging").iterdir()) == []
        for version in rows.versions:
            self.store.verify(version.digest)
        assert (await self.jobs.list(states=["running"])).items == ()
        async with self.database.read() as connection:
            pairs = (await connection.execute(sa.select(versions.c.name, versions.c.number))).all()
            assert len(pairs) == len(set(pairs))
            if not self.database.is_shared:
                assert (await connection.exec_driver_sql("PRAGMA integrity_check")).scalar_one() == "ok"


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    world = World(database_url, tmp_path / "store")
    async with Database.open(database_url, busy_timeout_s=60, answer_timeout_s=30) as world.database:
        world.registry = AdapterRegistry(world.database, utc_now)
        world.jobs = JobRegistry(world.database, utc_now, lambda: "job-1")
        yield world
