"""Single names, pages and changes, on a registry that nobody reads whole."""

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from amalgam.domain.alias import AliasTarget
from amalgam.domain.serving_profile import ServingProfile
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.aliases import AliasRegistry
from amalgam.registry.database import Database
from amalgam.registry.names import NameRegistry
from amalgam.registry.pins import PinRegistry
from amalgam.registry.profiles import ProfileRegistry
from amalgam.registry.tables import adapters, versions
from amalgam.services.name_index import NameIndex
from tests.registry_fixtures import FakeClock, digest_of, draft


@pytest.fixture
def names(database: Database) -> NameRegistry:
    return NameRegistry(database)


async def fill(registry: AdapterRegistry, *named: str) -> None:
    for number, name in enumerate(named):
        await registry.create_version(draft(name, number))


async def test_a_name_means_its_default_version_and_a_version_itself(
    names: NameRegistry, registry: AdapterRegistry
) -> None:
    await fill(registry, "sql", "sql", "json", "gone")
    await registry.set_default("sql", 1)
    await registry.delete_adapter("gone")
    await registry.create_version(draft("new", 9), proved=False)
    asked = ["sql", "sql@2", "sql@1", "sql@3", "sql@02", "json", "gone", "gone@1", "new", "new@1", "", "a/b", "x" * 200]
    answers = await names.look_up(asked)
    assert {name: str(served.version.ref) for name, served in answers.found.items()} == {
        "sql": "sql@1",
        "sql@1": "sql@1",
        "sql@2": "sql@2",
        "json": "json@1",
    }
    assert answers.revision == await registry.revision()
    assert answers.found["json"].version == await registry.get_version("json", 1)


async def test_the_profile_comes_with_the_version(
    names: NameRegistry, registry: AdapterRegistry, database: Database, clock: FakeClock
) -> None:
    await fill(registry, "sql", "json")
    profiles = ProfileRegistry(database, clock)
    for prompt in ("one", "two"):
        await profiles.put("sql", 1, ServingProfile(system_prompt=prompt), active=True)
    found = (await names.look_up(["sql", "json"])).found
    assert found["json"].profile is None
    state = found["sql"].profile
    assert state is not None
    assert state.profile is not None
    assert (state.revision, state.profile.system_prompt) == (2, "two")


async def test_versions_of_a_recipe_in_order(names: NameRegistry, registry: AdapterRegistry) -> None:
    recipe = "r" * 64
    for number, name in enumerate(("m1", "m2", "m3")):
        await registry.create_version(draft(name, number, recipe_digest=recipe))
    await registry.delete_adapter("m2")
    merged = (await names.look_up([], [recipe, "s" * 64])).merged
    assert [str(version.ref) for version in merged[recipe]] == ["m1@1", "m3@1"]
    assert list(merged["s" * 64]) == []


LIKE = ("tenant-0042-transalte", "enant-0042-sql", "tenant-0042-sq", "0042", "zzz", "TENANT", "tenant-9999-sql", "a")


async def test_near_names_are_those_of_the_index_in_memory(names: NameRegistry, registry: AdapterRegistry) -> None:
    """The same names are compared, whether all are in memory or none."""
    draws = random.Random(7)
    named = sorted({f"tenant-{draws.randrange(60):04}-{draws.choice(('sql', 'json', 'translate'))}" for _ in range(90)})
    await fill(registry, *named)
    hidden = named[3]
    await registry.create_version(draft("no-default", 1), set_default=False)
    await registry.delete_adapter(hidden)
    index = NameIndex([name for name in named if name != hidden], ())
    near = {name: rows for ask in LIKE for name, rows in (await names.look_up([ask])).near.items()}
    for ask in LIKE:
        assert index.near(ask) == NameIndex(near[ask].names, ()).near(ask), ask
        assert not {hidden, "no-default"} & set(near[ask].names)


async def test_near_versions_are_the_newest(names: NameRegistry, registry: AdapterRegistry) -> None:
    await fill(registry, *["sql"] * 11)
    near = (await names.look_up(["sql@99", "sqll@1"])).near
    assert near["sql@99"].versions == ("sql@9", "sql@10", "sql@11")
    assert (near["sqll@1"].versions, near["sqll@1"].names) == ((), ("sql",))


@pytest.mark.parametrize("odd", ["nul\0", "é", "a\nb", "\ud800", "%_'\"\\", "x" * 100_000])
async def test_no_character_of_an_unknown_name_troubles_a_database(
    odd: str, names: NameRegistry, registry: AdapterRegistry
) -> None:
    await fill(registry, "sql")
    answers = await names.look_up([odd, f"{odd}@1"])
    assert not answers.found


async def test_of_a_crowd_of_unknown_names_some_have_near_ones(names: NameRegistry, registry: AdapterRegistry) -> None:
    await fill(registry, "sql")
    answers = await names.look_up([f"sql{number}" for number in range(64)])
    assert 0 < len(answers.near) < 64


class TestChanges:
    async def test_what_moved_and_nothing_else(
        self, names: NameRegistry, registry: AdapterRegistry, aliases: AliasRegistry, database: Database
    ) -> None:
        await fill(registry, "still", "moved", "moved", "loses", "loses", "dies")
        await registry.create_version(draft("dies", 9, recipe_digest="r" * 64), set_default=False)
        before = (await names.state()).revision
        lost, died = await registry.get_version("loses", 1), await registry.get_adapter("dies")
        await registry.set_default("moved", 1)
        await registry.delete_version("loses", 1)
        await registry.delete_adapter("dies")
        await registry.create_version(draft("new", 20, recipe_digest="s" * 64))
        await aliases.put("prod", (AliasTarget(model="still", weight=1),))
        changes = await names.changes(before)
        assert changes.names == {"moved", "loses", "dies", "new"}
        assert changes.gone == {lost.id, *(version.id for version in died.versions)}
        assert changes.recipes == {"r" * 64, "s" * 64}
        assert [alias.name for alias in changes.aliases] == ["prod"]
        assert changes.revision == await registry.revision()
        assert (await names.changes(changes.revision)).names == frozenset()
        assert (await names.changes(None)).names == frozenset()

    async def test_every_change_of_a_version_names_it(
        self, names: NameRegistry, registry: AdapterRegistry, database: Database, clock: FakeClock
    ) -> None:
        await fill(registry, "sql", "sql")
        profiles = ProfileRegistry(database, clock)
        unproved = (await registry.create_version(draft("late", 5), set_default=False, proved=False)).version
        steps: list[Callable[[], Awaitable[object]]] = [
            partial(profiles.put, "sql", 1, ServingProfile(system_prompt="a"), active=True),
            partial(profiles.switch, "sql", 1, active=False),
            partial(profiles.delete, "sql", 1),
            partial(registry.delete_version, "sql", 1),
            partial(registry.withdraw_version, "sql", 2),
        ]
        for step in steps:
            before = (await names.state()).revision
            await step()
            assert (await names.changes(before)).names == {"sql"}, step
        before = (await names.state()).revision
        await registry.enter_service(unproved, set_default=True)
        assert (await names.changes(before)).names == {"late"}

    async def test_pinned_versions_come_whole(
        self, names: NameRegistry, registry: AdapterRegistry, database: Database, clock: FakeClock
    ) -> None:
        await fill(registry, "sql", "json")
        pinned = await registry.get_version("json", 1)
        await PinRegistry(database, clock).pin(pinned)
        changes = await names.changes(None)
        assert (changes.pinned, tuple(changes.pinned_versions)) == (frozenset({pinned.id}), (pinned,))


async def test_what_is_served_is_counted_through_every_change(names: NameRegistry, registry: AdapterRegistry) -> None:
    """By the number that changes keep against the rows themselves."""
    draws = random.Random(3)
    for step in range(120):
        name = f"n{draws.randrange(6)}"
        live = [a for a in (await registry.list_adapters(limit=50)).items if a.name == name]
        kind = draws.randrange(5)
        if kind < 2 or not live:
            made = await registry.create_version(draft(name, step), proved=kind != 0, set_default=kind != 0)
            if draws.randrange(2):
                await registry.enter_service(made.version, set_default=bool(draws.randrange(2)))
        elif kind == 2:
            await registry.delete_adapter(name)
        elif kind == 3:
            await registry.withdraw_version(name, live[0].versions[-1].number)
        else:
            await registry.set_default(name, live[0].versions[0].number)
        state = await names.state()
        rows = await registry.load_catalog()
        assert (state.served_versions, state.revision) == (len(rows.versions), rows.revision)


async def paged(names: NameRegistry, limit: int, patterns: Sequence[str] | None = None) -> list[str]:
    found: list[str] = []
    while True:
        page = await names.page(found[-1] if found else None, limit, patterns)
        found += [row.name for row in page]
        if len(page) < limit:
            return found


NAMES = ("acme.a", "acme.b", "acme", "acmf", "Acme.c", "x_y", "xzy", "sql", "b-sql", "a.sql", "n1", "n22")


async def test_pages_join_up_and_keep_to_patterns(names: NameRegistry, registry: AdapterRegistry) -> None:
    await fill(registry, *NAMES)
    await registry.create_version(draft("unproved", 50), proved=False)
    await registry.create_version(draft("no-default", 51), set_default=False)
    assert await paged(names, 4) == sorted(NAMES)
    wanted = {
        ("acme.*",): ["acme.a", "acme.b"],
        ("acme*", "sql"): ["acme", "acme.a", "acme.b", "sql"],
        ("*sql",): ["a.sql", "b-sql", "sql"],
        ("x_y",): ["x_y"],
        ("x_*",): ["x_y"],
        ("*_y",): ["x_y"],
        ("n?",): ["n1"],
        ("?cme.*",): ["Acme.c", "acme.a", "acme.b"],
        ("*a**b*",): ["acme.b"],
        (): [],
    }
    for patterns, found in wanted.items():
        assert await paged(names, 2, patterns) == found, patterns
        listed = await registry.list_adapters(patterns=patterns, limit=50)
        assert [adapter.name for adapter in listed.items if adapter.name in NAMES] == found


async def test_a_page_says_version_and_time(names: NameRegistry, registry: AdapterRegistry, clock: FakeClock) -> None:
    await fill(registry, "sql", "sql")
    await registry.set_default("sql", 1)
    [row] = await names.page(None, 10)
    assert (row.name, row.number, row.created_at) == ("sql", 1, clock())


async def test_digests_among_those_asked_about(registry: AdapterRegistry) -> None:
    await fill(registry, *(f"n{number}" for number in range(5)))
    await registry.delete_adapter("n1")
    asked = [digest_of(number) for number in (0, 1, 4, *range(100, 2200))]
    assert await registry.digests_in_use(among=asked) == {digest_of(0), digest_of(4)}
    assert await registry.digests_in_use(among=()) == frozenset()


MANY = 3000


async def write_many(database: Database) -> None:
    """Adapters n0000 to n2999 with a version each, as a million uploads would leave them."""
    now = database.clock()
    named = [f"n{number:04}" for number in range(MANY)]
    common = {"description": "", "default_version": 1, "next_version": 2, "created_at": now, "revision": 1}
    version = {
        "number": 1, "rank": 16, "size_bytes": 1, "module_count": 1, "base_fingerprint": "f" * 64, "source": "upload",
        "warnings": [], "proved": True, "created_at": now, "dtype": "bfloat16", "revision": 1,
    }  # fmt: skip
    async with database.write() as connection:
        await connection.execute(adapters.insert(), [common | {"name": one, "mirrored": one[::-1]} for one in named])
        digests = [version | {"name": one, "digest": digest_of(number)} for number, one in enumerate(named)]
        await connection.execute(versions.insert(), digests)
        await connection.execute(sa.text("ANALYZE adapters"))
        await connection.execute(sa.text("ANALYZE versions"))


def rows_read(plan: dict[str, Any]) -> Iterator[int]:
    """Of each scan of a table, how many rows it gave or threw away."""
    if "Relation Name" in plan:
        yield plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    for part in plan.get("Plans", ()):
        yield from rows_read(part)


@pytest.mark.parametrize(("after", "patterns"), [("n1500", None), (None, ["n15*"]), ("n1500", ["n1?5*", "n20*"])])
async def test_a_page_reads_nothing_before_its_first_name(
    names: NameRegistry, database: Database, after: str | None, patterns: list[str] | None
) -> None:
    if not database.is_shared:
        pytest.skip("SQLite joins row by row")
    await write_many(database)
    said: list[tuple[str, Any]] = []

    def hear(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        said.append((statement, parameters))

    async with database.read() as connection:
        # Other databases of this process are not heard.
        engine = connection.engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", hear)
    try:
        page = await names.page(after, 20, patterns)
    finally:
        sa.event.remove(engine, "before_cursor_execute", hear)
    assert len(page) == 20
    [(statement, parameters)] = [one for one in said if "LIMIT" in one[0]]
    async with database.read() as connection:
        # The plan that a million rows lead to.
        for other in ("nestloop", "hashjoin", "seqscan", "bitmapscan"):
            await connection.execute(sa.text(f"SET LOCAL enable_{other} = off"))
        explained = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        [found] = explained.scalars().all()
    assert max(rows_read(found[0]["Plan"])) < 400
