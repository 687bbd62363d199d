"""Pins are rows, which go with their versions."""

import pytest

from amalgam.errors import NotFound
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.pins import PinRegistry
from tests.registry_fixtures import FakeClock, draft


@pytest.fixture
def pins(database: Database, clock: FakeClock) -> PinRegistry:
    return PinRegistry(database, clock)


async def pinned(registry: AdapterRegistry) -> frozenset[int]:
    everything = (await registry.load_catalog()).pinned
    assert (await registry.load_change(frozenset())).pinned == everything
    return everything


async def test_a_pin_is_a_change_that_others_see(registry: AdapterRegistry, pins: PinRegistry) -> None:
    version = (await registry.create_version(draft("sql", 1))).version
    before = await registry.revision()
    for _ in range(2):
        await pins.pin(version)
    assert await pinned(registry) == {version.id}
    assert await registry.revision() == before + 1
    for _ in range(2):
        await pins.unpin(version.id)
    assert await pinned(registry) == frozenset()
    assert await registry.revision() == before + 2


@pytest.mark.parametrize("how", ["version", "adapter", "withdrawn"])
async def test_a_pin_goes_with_its_version(how: str, registry: AdapterRegistry, pins: PinRegistry) -> None:
    gone = (await registry.create_version(draft("sql", 1))).version
    kept = (await registry.create_version(draft("json", 2))).version
    for version in (gone, kept):
        await pins.pin(version)
    if how == "version":
        await registry.delete_version("sql", 1)
    elif how == "adapter":
        await registry.delete_adapter("sql")
    else:
        await registry.withdraw_version("sql", 1)
    assert await pinned(registry) == {kept.id}
    with pytest.raises(NotFound):
        await pins.pin(gone)
