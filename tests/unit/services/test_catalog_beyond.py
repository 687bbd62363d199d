"""A catalog of a registry that holds more than is kept: the same meanings, one look a name, and no change missed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial

import pytest

from amalgam.domain.adapter import BaseModelSpec
from amalgam.domain.alias import AliasTarget
from amalgam.domain.catalog_rows import NameAnswers
from amalgam.domain.scopes import EVERYTHING, Scopes
from amalgam.domain.serving_profile import ServingProfile
from amalgam.errors import AmalgamError
from amalgam.errors.registry import RegistryUnavailable
from amalgam.errors.requests import ModelNotFound
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.aliases import AliasRegistry
from amalgam.registry.database import Database
from amalgam.registry.names import NameRegistry
from amalgam.registry.pins import PinRegistry
from amalgam.registry.profiles import ProfileRegistry
from amalgam.registry.routers import RouterRegistry
from amalgam.services.catalog import Catalog
from tests.registry_fixtures import FakeClock, aliases, clock, database, database_url, draft, registry

pytestmark = pytest.mark.slow

__all__ = ["aliases", "clock", "database", "database_url", "registry"]

BASE = BaseModelSpec("base", "f" * 64, {}, 16)


def made(database: Database, clock: FakeClock, most: int, names: NameRegistry | None = None) -> Catalog:
    profiles, routers, names = (
        ProfileRegistry(database, clock),
        RouterRegistry(database),
        names or NameRegistry(database),
    )
    return Catalog(BASE, AdapterRegistry(database, clock), profiles, routers, names, most)


@pytest.fixture
async def filled(registry: AdapterRegistry, aliases: AliasRegistry) -> None:
    for number, name in enumerate(("sql", "sql", "json", "acme.a", "acme.b", "gone")):
        await registry.create_version(draft(name, number))
    await registry.set_default("sql", 1)
    await registry.delete_adapter("gone")
    await registry.create_version(draft("plain", 40), set_default=False)
    await aliases.put("prod", (AliasTarget(model="sql", weight=1),))
    await aliases.put("canary", (AliasTarget(model="sql@2", weight=1), AliasTarget(model="json", weight=1)))


MODELS = (
    None, "", "base", "sql", " sql ", "sql@1", "sql@2", "sql@3", "sql@01", "base:sql", "base:sql@2", "SQL", "json",
    "acme.a", "acme.b@1", "acme.c", "gone", "gone@1", "plain", "plain@1", "plain@2", "prod", "base:prod", "canary",
    "sqll", "jsn", "bse", "cnary", "acm.a", "zzzz", "nul\0", "é", "org/sql", "x" * 100_000, "@", "@1",
)  # fmt: skip
SCOPES = (EVERYTHING, Scopes(models=("acme.*", "prod")), Scopes(models=("sql@2", "base")), Scopes(models=("canary",)))


def outcome(look: Callable[[], object]) -> object:
    try:
        return look()
    except AmalgamError as error:
        return type(error), error.code, error.status


async def asked(catalog: Catalog, look: Callable[[], object]) -> object:
    try:
        return await catalog.found(look)
    except AmalgamError as error:
        return type(error), error.code, error.status


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("most", [0, 1, 3])
async def test_every_name_means_what_it_means_to_who_has_all(database: Database, clock: FakeClock, most: int) -> None:
    whole, beyond = made(database, clock, 100), made(database, clock, most)
    await whole.refresh()
    await beyond.refresh()
    assert whole.snapshot.is_whole
    assert not beyond.snapshot.is_whole
    assert beyond.snapshot.served == whole.snapshot.served == len(whole.snapshot.versions)
    for scopes in SCOPES:
        for model in MODELS:
            expected = outcome(partial(whole.resolve, model, scopes))
            assert await asked(beyond, partial(beyond.resolve, model, scopes)) == expected, (model, scopes)
            assert beyond.alias(model, scopes) == whole.alias(model, scopes)
    assert len(set(beyond.refs)) <= most


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("unknown", ["sqll", "jsn", "bse", "cnary", "acm.a", "sql@7", "plain@2", "zzzz"])
@pytest.mark.parametrize("scopes", SCOPES)
async def test_near_names_are_the_same(database: Database, clock: FakeClock, unknown: str, scopes: Scopes) -> None:
    whole, beyond = made(database, clock, 100), made(database, clock, 2)
    await whole.refresh()
    await beyond.refresh()
    with pytest.raises(ModelNotFound) as expected:
        whole.resolve(unknown, scopes)
    with pytest.raises(ModelNotFound) as found:
        await beyond.found(partial(beyond.resolve, unknown, scopes))
    if scopes.asked(unknown):
        assert found.value.near == expected.value.near
    else:
        # What is out of scope is not looked for: whether it is there shows in nothing.
        assert set(found.value.near) <= {"base", "prod", "canary"}


@pytest.mark.usefixtures("filled")
async def test_a_hot_name_asks_nobody_and_a_cold_one_once(database: Database, clock: FakeClock) -> None:
    looks = Looks(database)
    catalog = made(database, clock, 5, looks)
    await catalog.refresh()
    for _ in range(3):
        await catalog.found(partial(catalog.resolve, "sql"))
    assert looks.asked == ["sql"]
    assert catalog.resolve("sql").engine_name == "sql@1"
    assert catalog.resolve("sql@1").engine_name == "sql@1"
    for _ in range(2):
        with pytest.raises(ModelNotFound):
            await catalog.found(partial(catalog.resolve, "unknown"))
    assert looks.asked == ["sql", "unknown", "unknown"]


class Looks(NameRegistry):
    """Names that the registry was asked about."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.asked: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None

    async def look_up(self, names: Collection[str], recipes: Collection[str] = ()) -> NameAnswers:
        self.asked += names
        found = await super().look_up(names, recipes)
        done = self.meanwhile()
        if asyncio.iscoroutine(done):
            await done
        return found


@pytest.mark.usefixtures("filled")
async def test_a_change_elsewhere_is_seen_by_the_next_look_and_before_it_where_it_is_new(
    database: Database, clock: FakeClock, registry: AdapterRegistry, aliases: AliasRegistry
) -> None:
    catalog = made(database, clock, 5)
    await catalog.refresh()
    told: list[frozenset[int]] = []
    catalog.on_change(lambda before, after: told.append(after.gone))

    async def means(model: str) -> str:
        return (await catalog.found(partial(catalog.resolve, model))).engine_name

    assert await means("sql") == "sql@1"
    await registry.set_default("sql", 2)
    assert await means("sql") == "sql@1", "what is in memory holds until the change is heard of"
    await catalog.refresh()
    assert await means("sql") == "sql@2"
    await registry.create_version(draft("sqlx", 70))
    assert await means("sqlx") == "sqlx@1", "what was answered with 201 elsewhere is there"
    await aliases.put("fresh", (AliasTarget(model="sqlx", weight=1),))
    assert await means("fresh") == "sqlx@1"
    gone = await registry.get_version("json", 1)
    assert await means("json") == "json@1"
    await aliases.delete("canary")
    await registry.delete_adapter("json")
    await catalog.require_live([await registry.get_version("sql", 1)])
    with pytest.raises(ModelNotFound, match="json"):
        await catalog.require_live([gone])
    with pytest.raises(ModelNotFound):
        await means("json")
    assert [one for one in told if one] == [{gone.id}]


@pytest.mark.usefixtures("filled")
async def test_an_answer_that_a_change_overtook_is_not_kept(
    database: Database, clock: FakeClock, registry: AdapterRegistry
) -> None:
    """The row was read before the change, and arrives after it was heard of."""
    looks = Looks(database)
    catalog = made(database, clock, 5, looks)
    await catalog.refresh()

    async def change() -> None:
        looks.meanwhile = lambda: None
        await registry.set_default("sql", 2)
        await catalog.refresh()

    looks.meanwhile = change
    assert (await catalog.found(partial(catalog.resolve, "sql"))).engine_name == "sql@2"
    assert looks.asked == ["sql", "sql"]
    assert catalog.resolve("sql").engine_name == "sql@2"


@pytest.mark.usefixtures("filled")
async def test_a_profile_is_that_of_now(database: Database, clock: FakeClock) -> None:
    profiles, catalog = ProfileRegistry(database, clock), made(database, clock, 5)
    await catalog.refresh()
    assert await catalog.found(partial(catalog.profile, "sql@1")) is None
    await profiles.put("sql", 1, ServingProfile(system_prompt="Be brief."), active=True)
    await catalog.refresh()
    found = await catalog.found(partial(catalog.profile, "sql@1"))
    assert found is not None
    assert found.system_prompt == "Be brief."
    await profiles.switch("sql", 1, active=False)
    await catalog.refresh()
    assert await catalog.found(partial(catalog.profile, "sql@1")) is None
    for other in ("base", "blend-0123456789", "sql@9"):
        assert await catalog.found(partial(catalog.profile, other)) is None


@pytest.mark.usefixtures("filled")
async def test_what_a_recipe_made_is_found_and_forgotten_with_it(
    database: Database, clock: FakeClock, registry: AdapterRegistry
) -> None:
    catalog, recipe = made(database, clock, 5), "r" * 64
    await catalog.refresh()
    assert list(await catalog.found(partial(catalog.merged, recipe))) == []
    await registry.create_version(draft("mix", 80, recipe_digest=recipe))
    await catalog.refresh()
    assert [str(one.ref) for one in await catalog.found(partial(catalog.merged, recipe))] == ["mix@1"]
    await registry.delete_adapter("mix")
    await catalog.refresh()
    assert list(await catalog.found(partial(catalog.merged, recipe))) == []


@pytest.mark.usefixtures("filled")
async def test_while_the_registry_is_away_hot_names_are_served_and_cold_ones_are_not_denied(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = made(database, clock, 5)
    await catalog.refresh()
    await catalog.found(partial(catalog.resolve, "sql"))

    async def away(*given: object) -> None:
        raise RegistryUnavailable("gone")

    monkeypatch.setattr(NameRegistry, "look_up", away)
    monkeypatch.setattr(NameRegistry, "state", away)
    assert (await catalog.found(partial(catalog.resolve, "sql"))).engine_name == "sql@1"
    for cold in ("json", "unknown"):
        with pytest.raises(RegistryUnavailable):
            await catalog.found(partial(catalog.resolve, cold))
    await catalog.require_live([catalog.resolve("sql").version])  # type: ignore[list-item]


@pytest.mark.usefixtures("filled")
async def test_a_registry_that_grows_beyond_and_shrinks_again(
    database: Database, clock: FakeClock, registry: AdapterRegistry
) -> None:
    catalog = made(database, clock, 8)
    await catalog.refresh()
    assert catalog.snapshot.is_whole
    told: list[frozenset[int]] = []
    catalog.on_change(lambda before, after: told.append(after.gone))
    for number in range(3):
        await registry.create_version(draft(f"more-{number}", 90 + number))
    await catalog.refresh()
    assert not catalog.snapshot.is_whole
    assert catalog.snapshot.served == 9
    assert told == [frozenset()], "what is no longer kept is not gone"
    assert (await catalog.found(partial(catalog.resolve, "sql"))).engine_name == "sql@1"
    first = await registry.delete_adapter("more-0")
    await catalog.refresh()
    assert not catalog.snapshot.is_whole, "not to and fro at the bound"
    rest = [await registry.delete_adapter(name) for name in ("more-1", "more-2", "acme.a", "acme.b")]
    await catalog.refresh()
    assert catalog.snapshot.is_whole
    assert catalog.resolve("sql@2").engine_name == "sql@2"
    assert told[1:] == [{first[0].id}, {version.id for gone in rest for version in gone}]


@pytest.mark.usefixtures("filled")
async def test_pins_are_known_whatever_is_kept(database: Database, clock: FakeClock, registry: AdapterRegistry) -> None:
    catalog, pinned = made(database, clock, 0), await registry.get_version("json", 1)
    await PinRegistry(database, clock).pin(pinned)
    await catalog.refresh()
    assert catalog.snapshot.pinned == {pinned.id}
    assert catalog.snapshot.by_id == {pinned.id: pinned}


@asynccontextmanager
async def following(catalog: Catalog) -> AsyncIterator[None]:
    task = asyncio.create_task(catalog.follow_loop(lambda: None, period_s=0.01))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.usefixtures("filled")
async def test_under_changes_and_requests_at_once_nothing_outdated_stays(
    database: Database, clock: FakeClock, registry: AdapterRegistry
) -> None:
    catalog = made(database, clock, 4)
    await catalog.refresh()

    async def ask() -> None:
        while True:
            for name in ("sql", "sql@1", "json", "acme.a", "nope"):
                try:
                    await catalog.found(partial(catalog.resolve, name))
                except ModelNotFound:
                    assert name == "nope"

    async with following(catalog):
        asking = [asyncio.create_task(ask()) for _ in range(4)]
        for number in range(20):
            await registry.set_default("sql", 1 + number % 2)
            await asyncio.sleep(0.005)
        for task in asking:
            task.cancel()
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended
    await catalog.refresh()
    assert (await catalog.found(partial(catalog.resolve, "sql"))).engine_name == "sql@2"
