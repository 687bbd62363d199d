"""A profile holds from one revision to the next, its history stays, and every catalog hears of the change."""

import pytest

from amalgam.domain.adapter import BaseModelSpec
from amalgam.domain.serving_profile import MAX_CHANGES_KEPT, SamplingDefaults, ServingProfile
from amalgam.errors.adapters import AdapterNotFound, VersionNotFound
from amalgam.errors.profiles import ProfileNotFound
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.database import Database
from amalgam.registry.profiles import ProfileRegistry
from amalgam.services.catalog import Catalog
from tests.registry_fixtures import FakeClock, draft

BRIEF = ServingProfile(system_prompt="Be brief. ü", sampling=SamplingDefaults(temperature=0.25), stop=("a", "b"))
LONG = ServingProfile(chat_template="{{ messages }}")


@pytest.fixture
def profiles(database: Database, clock: FakeClock) -> ProfileRegistry:
    return ProfileRegistry(database, clock)


@pytest.fixture(autouse=True)
async def _versions(registry: AdapterRegistry) -> None:
    for number in (1, 2):
        await registry.create_version(draft("sql", number))


async def test_every_change_is_a_revision_and_the_newest_holds(profiles: ProfileRegistry, clock: FakeClock) -> None:
    assert await profiles.history("sql", 1) == ()
    await profiles.put("sql", 1, BRIEF, action="found", origin="folder", active=False)
    clock.advance(1)
    await profiles.switch("sql", 1, active=True)
    assert (await profiles.switch("sql", 1, active=True)).revision == 2
    await profiles.put("sql", 1, LONG, active=True)
    await profiles.delete("sql", 1)
    history = await profiles.history("sql", 1)
    told = [(s.revision, s.action, s.origin, s.active, s.profile) for s in history]
    assert told == [
        (4, "delete", "api", False, None),
        (3, "set", "api", True, LONG),
        (2, "on", "folder", True, BRIEF),
        (1, "found", "folder", False, BRIEF),
    ]
    assert history[0].created_at == clock()
    assert await profiles.history("sql", 2) == ()
    await profiles.put("sql", 1, BRIEF, active=True)
    assert (await profiles.history("sql", 1))[0].revision == 5


async def test_what_is_not_there_is_told(profiles: ProfileRegistry) -> None:
    for change in (profiles.delete("sql", 1), profiles.switch("sql", 1, active=True)):
        with pytest.raises(ProfileNotFound):
            await change
    await profiles.put("sql", 1, BRIEF, active=True)
    await profiles.delete("sql", 1)
    with pytest.raises(ProfileNotFound):
        await profiles.delete("sql", 1)
    with pytest.raises(VersionNotFound):
        await profiles.put("sql", 3, BRIEF, active=True)
    with pytest.raises(AdapterNotFound):
        await profiles.history("nothing", 1)


async def test_the_history_has_an_end(profiles: ProfileRegistry) -> None:
    for _ in range(MAX_CHANGES_KEPT + 5):
        await profiles.put("sql", 1, BRIEF, active=True)
    history = await profiles.history("sql", 1)
    assert [state.revision for state in history] == list(range(MAX_CHANGES_KEPT + 5, 5, -1))


async def test_another_servers_catalog_sees_a_change_and_only_what_is_on_counts(
    profiles: ProfileRegistry, registry: AdapterRegistry
) -> None:
    catalog = Catalog(BaseModelSpec("base", "f" * 64, {}, 16), registry, profiles)
    await catalog.refresh()
    assert catalog.profile("sql@1") is None
    await profiles.put("sql", 1, BRIEF, active=False)
    await catalog.refresh()
    assert catalog.profile("sql@1") is None
    await profiles.switch("sql", 1, active=True)
    await catalog.refresh()
    assert catalog.profile("sql@1") == BRIEF
    assert catalog.profile("sql@2") is catalog.profile("base") is catalog.profile("blend@123456789abc") is None
    await profiles.put("sql", 2, LONG, active=True)
    await catalog.refresh()
    assert (catalog.profile("sql@1"), catalog.profile("sql@2")) == (BRIEF, LONG)
    await profiles.delete("sql", 1)
    await registry.delete_version("sql", 1)
    await catalog.refresh()
    assert catalog.profile("sql@1") is None
    assert [state.version_id for state in catalog.snapshot.profiles.values()] == [2]
    assert sorted(await profiles.newest_of([1, 2])) == [1, 2]
