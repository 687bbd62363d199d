"""One application for the session, with keys; tests that turn switches or count things start others of their own."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.registry_fixtures import database_url
from tests.support.running_app import ADMIN_KEY, API_KEY, RunningApp, start_app

__all__ = ["database_url"]


@pytest.fixture(scope="session")
async def running_app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningApp]:
    async with start_app(tmp_path_factory.mktemp("running_app")) as opened:
        yield opened


@pytest.fixture
async def admin(running_app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with running_app.http(ADMIN_KEY) as session:
        yield session


@pytest.fixture
async def client(running_app: RunningApp) -> AsyncIterator[httpx.AsyncClient]:
    async with running_app.http(API_KEY) as session:
        yield session
