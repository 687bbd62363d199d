"""Two servers on one PostgreSQL and one store folder; a test may hold up the second one's line to the database."""

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.api.fake_engine import FakeEngine
from tests.support.forwarder import Forwarder, forwarder
from tests.support.postgres import Cluster
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, push, start_app, write_adapter

_DATABASES = itertools.count()


async def fresh_database(cluster: Cluster) -> str:
    """The name of a new, empty database of ``cluster``."""
    name = f"replicas_{next(_DATABASES)}"
    connection = await psycopg.AsyncConnection.connect(cluster.url, autocommit=True)
    async with connection:
        await connection.execute(f"CREATE DATABASE {name}")
    return name


@dataclass
class Replica:
    """One of the servers, and clients of it in this process."""

    app: RunningApp
    admin: httpx.AsyncClient
    client: httpx.AsyncClient

    @property
    def engine(self) -> FakeEngine:
        return self.app.engine

    @property
    def residents(self) -> set[str]:
        return {resident.engine_name for resident in self.engine.residency.residents()}

    @property
    def pinned(self) -> set[str]:
        return {resident.engine_name for resident in self.engine.residency.residents() if resident.pinned}

    async def ask(self, model: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        return await self.client.post("/v1/chat/completions", json=body)


@asynccontextmanager
async def replica(folder: Path, store: Path, url: str, **changes: Any) -> AsyncIterator[Replica]:
    """A server of its own folder on a shared store and database."""
    async with (
        start_app(folder, database_url=url, store=store, **changes) as app,
        app.http(ADMIN_KEY) as admin,
        app.http(API_KEY) as client,
    ):
        yield Replica(app, admin, client)


@dataclass
class Pair:
    """Both of them."""

    first: Replica
    second: Replica
    line: Forwarder
    """Between the second one and the database."""
    folder: Path
    url: str

    async def register(self, name: str, seed: int = 1) -> None:
        """A version of ``name`` at the first one."""
        there = await push(self.first.admin, name, write_adapter(self.folder / f"{name}-{seed}", seed=seed))
        assert there.status_code == 201, there.text


@asynccontextmanager
async def pair(cluster: Cluster, folder: Path, **changes: Any) -> AsyncIterator[Pair]:
    """Start both."""
    database = await fresh_database(cluster)
    url = f"postgresql://amalgam@127.0.0.1:{cluster.port}/{database}"
    async with AsyncExitStack() as stack:
        line = await stack.enter_async_context(forwarder(cluster.port))
        there = f"postgresql://amalgam@127.0.0.1:{line.port}/{database}"
        store = folder / "shared"
        first = await stack.enter_async_context(replica(folder / "first", store, url, **changes))
        second = await stack.enter_async_context(replica(folder / "second", store, there, **changes))
        yield Pair(first, second, line, folder, url)
        line.let_flow()
