"""One application for the session, with keys; tests that turn switches or count things open houses of their own."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.api.house import ADMIN_KEY, API_KEY, House, open_house
from tests.registry_fixtures import database_url

__all__ = ["database_url"]


@pytest.fixture(scope="session")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with open_house(tmp_path_factory.mktemp("house")) as opened:
        yield opened


@pytest.fixture
async def admin(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with house.http(ADMIN_KEY) as session:
        yield session


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with house.http(API_KEY) as session:
        yield session
