"""Databases, clocks and drafts for tests of the registry; imported by the conftests that need them.

Every test that takes ``database_url`` runs on SQLite, and on PostgreSQL too where ``AMALGAM_TEST_POSTGRES_URL`` names
one, such as ``postgresql://user@localhost:5432/postgres``. Each process that runs tests makes a database of its own on
that server, because notices and connections are a database's, and each test a schema in it.
"""

import functools
import itertools
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from amalgam.domain.version import VersionDraft
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.aliases import AliasRegistry
from amalgam.registry.database import Database, sqlite_url
from amalgam.registry.jobs import JobRegistry

POSTGRES_VARIABLE = "AMALGAM_TEST_POSTGRES_URL"


KINDS = ["sqlite", "postgresql"] if os.environ.get(POSTGRES_VARIABLE) else ["sqlite"]


@functools.cache
def own_database() -> sa.URL:
    """This process' database, made by the first test that needs it; it goes with the server."""
    url = sa.make_url(os.environ[POSTGRES_VARIABLE]).set(drivername="postgresql+psycopg")
    name = f"tests_{uuid.uuid4().hex}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.set(database=name)


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "registry.db")
        return
    url = own_database()
    schema = f"test_{uuid.uuid4().hex}"
    # A test that fails may leave a lock behind; the schema then stays, and the next test begins all the same.
    patience = {"options": "-c lock_timeout=10s"}
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", connect_args=patience)
    with engine.connect() as connection:
        connection.execute(sa.schema.CreateSchema(schema))
        yield url.update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(hide_password=False)
        connection.execute(sa.schema.DropSchema(schema, cascade=True))
    engine.dispose()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database.open(database_url, busy_timeout_s=60, answer_timeout_s=30) as opened:
        yield opened


class FakeClock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def registry(database: Database, clock: FakeClock) -> AdapterRegistry:
    return AdapterRegistry(database, clock)


@pytest.fixture
def aliases(database: Database, clock: FakeClock) -> AliasRegistry:
    return AliasRegistry(database, clock, "base")


@pytest.fixture
def jobs(database: Database, clock: FakeClock) -> JobRegistry:
    ids = itertools.count(1)
    return JobRegistry(database, clock, lambda: f"job-{next(ids):04}")


def digest_of(number: int) -> str:
    return f"{number:064x}"


def draft(name: str = "sql", number: int = 1, **changes: object) -> VersionDraft:
    """A draft whose bytes are those of ``number``."""
    fields: dict[str, object] = {
        "name": name,
        "digest": digest_of(number),
        "rank": 8,
        "size_bytes": 5 << 32,
        "module_count": 14,
        "base_fingerprint": "f" * 64,
        "source": "upload",
    }
    return VersionDraft(**(fields | changes))  # type: ignore[arg-type]
