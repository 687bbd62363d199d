"""Numbers are given once, versions never change, and a bare name means exactly what was last said."""

import asyncio
import random
from datetime import UTC, timedelta
from typing import Any

import pytest

from amalgam.domain.adapter import Adapter
from amalgam.domain.alias import AliasTarget
from amalgam.domain.job import JobRequest
from amalgam.errors import Conflict
from amalgam.errors.adapters import AdapterNotFound, DefaultVersionInUse, NameTaken, VersionNotFound
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.aliases import AliasRegistry
from amalgam.registry.database import Database
from amalgam.registry.jobs import JobRegistry
from tests.registry_fixtures import FakeClock, digest_of, draft


class TestCreate:
    async def test_a_version_comes_back_as_it_went_in(self, registry: AdapterRegistry, clock: FakeClock) -> None:
        lineage = {"recipe": {"weights": [0.5, -1.25]}, "ä": None}
        made = draft(lineage=lineage, warnings=("base_unverified",), recipe_digest="a" * 64, source="merge")
        created = await registry.create_version(made)
        assert created.created
        version = await registry.get_version("sql", 1)
        assert version == created.version
        assert (version.name, version.number, str(version.ref)) == ("sql", 1, "sql@1")
        assert version.lineage == lineage
        assert version.warnings == ("base_unverified",)
        assert version.size_bytes == 5 << 32
        assert version.created_at == clock()
        assert version.created_at.tzinfo == UTC

    async def test_numbers_count_by_name_and_ids_over_all(self, registry: AdapterRegistry) -> None:
        made = [
            (await registry.create_version(draft(name, n))).version for n, name in enumerate(["a", "b", "a", "b", "a"])
        ]
        assert [(v.name, v.number) for v in made] == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3)]
        assert len({v.id for v in made}) == 5
        assert all(v.id > 0 for v in made)

    @pytest.mark.parametrize("names", [["sql"] * 32, [f"n{i % 4}" for i in range(32)]])
    async def test_numbers_are_distinct_under_concurrency(self, names: list[str], registry: AdapterRegistry) -> None:
        before = await registry.revision()
        made = await asyncio.gather(*(registry.create_version(draft(name, i)) for i, name in enumerate(names)))
        for name in set(names):
            count = names.count(name)
            assert sorted(m.version.number for m in made if m.version.name == name) == list(range(1, count + 1))
            assert len((await registry.get_adapter(name)).versions) == count
        assert await registry.revision() == before + 32

    async def test_numbers_are_distinct_over_two_processes(
        self, registry: AdapterRegistry, database_url: str, clock: FakeClock
    ) -> None:
        async with Database.open(database_url) as other:
            second = AdapterRegistry(other, clock)
            made = await asyncio.gather(*((registry, second)[i % 2].create_version(draft("sql", i)) for i in range(16)))
        assert sorted(m.version.number for m in made) == list(range(1, 17))

    async def test_the_new_version_is_the_default_unless_told_otherwise(self, registry: AdapterRegistry) -> None:
        await registry.create_version(draft(number=1), set_default=False)
        assert (await registry.get_adapter("sql")).default_version is None
        await registry.create_version(draft(number=2))
        assert (await registry.get_adapter("sql")).default_version == 2
        await registry.create_version(draft(number=3), set_default=False)
        assert (await registry.get_adapter("sql")).default_version == 2

    async def test_the_default_versions_own_bytes_are_no_new_version(self, registry: AdapterRegistry) -> None:
        first = await registry.create_version(draft(number=1))
        revision = await registry.revision()
        again = await registry.create_version(draft(number=1, source="file"), if_absent=True)
        assert (again.version, again.created) == (first.version, False)
        assert await registry.revision() == revision
        # Going back to older bytes is a new version: the default has to move, and numbers tell the story.
        await registry.create_version(draft(number=2))
        back = await registry.create_version(draft(number=1))
        assert (back.version.number, back.created) == (3, True)

    async def test_if_absent(self, registry: AdapterRegistry) -> None:
        await registry.create_version(draft(number=1), if_absent=True)
        with pytest.raises(NameTaken) as caught:
            await registry.create_version(draft(number=2), if_absent=True)
        assert caught.value.status == 409
        assert len((await registry.get_adapter("sql")).versions) == 1
        await registry.delete_adapter("sql")
        assert (await registry.create_version(draft(number=2), if_absent=True)).version.number == 2

    async def test_one_name_different_bytes_at_once_one_wins(self, registry: AdapterRegistry) -> None:
        """F15."""
        tasks = [registry.create_version(draft(number=i), if_absent=True) for i in range(32)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        won = [o for o in outcomes if not isinstance(o, BaseException)]
        assert len(won) == 1
        assert all(isinstance(o, NameTaken) for o in outcomes if o is not won[0])
        assert (await registry.get_adapter("sql")).versions == (won[0].version,)


class TestRead:
    async def test_what_is_not_there(self, registry: AdapterRegistry) -> None:
        with pytest.raises(AdapterNotFound):
            await registry.get_adapter("sql")
        with pytest.raises(AdapterNotFound):
            await registry.get_version("sql", 1)
        await registry.create_version(draft())
        with pytest.raises(VersionNotFound, match="it has: 1"):
            await registry.get_version("sql", 2)

    async def test_pages_cover_everything_once_in_order(self, registry: AdapterRegistry) -> None:
        names = ["a", "B", "a.b", "a-b", "A", "z", "a_b", "10", "9", "Zz"]
        random.Random(0).shuffle(names)
        for i, name in enumerate(names):
            await registry.create_version(draft(name, i))
        await registry.create_version(draft("a", 99))
        seen: list[Adapter] = []
        cursor = None
        while True:
            page = await registry.list_adapters(limit=3, cursor=cursor)
            assert len(page.items) <= 3
            seen += page.items
            if page.next_cursor is None:
                break
            cursor = page.next_cursor
        assert [adapter.name for adapter in seen] == sorted(names)
        assert [v.number for v in seen[sorted(names).index("a")].versions] == [1, 2]

    async def test_a_full_last_page_has_no_next(self, registry: AdapterRegistry) -> None:
        for name in "ab":
            await registry.create_version(draft(name))
        assert (await registry.list_adapters(limit=2)).next_cursor is None
        assert (await registry.list_adapters(limit=1)).next_cursor == "a"

    @pytest.mark.parametrize(
        ("search", "found"),
        [("SQL", ["my-sql", "sql_x"]), ("_", ["sql_x"]), ("%", []), ("y-s", ["my-sql"]), ("", None)],
    )
    async def test_search(self, search: str, found: list[str] | None, registry: AdapterRegistry) -> None:
        names = ["json", "my-sql", "sql_x"]
        for name in names:
            await registry.create_version(draft(name))
        page = await registry.list_adapters(search=search)
        assert [adapter.name for adapter in page.items] == (names if found is None else found)


class TestChange:
    async def test_the_default_moves_to_a_live_version_only(self, registry: AdapterRegistry) -> None:
        for i in range(3):
            await registry.create_version(draft(number=i))
        assert (await registry.set_default("sql", 1)).default_version == 1
        await registry.delete_version("sql", 2)
        for number in (2, 4):
            with pytest.raises(VersionNotFound):
                await registry.set_default("sql", number)
        with pytest.raises(AdapterNotFound):
            await registry.set_default("json", 1)
        assert (await registry.get_adapter("sql")).default_version == 1

    async def test_description(self, registry: AdapterRegistry) -> None:
        await registry.create_version(draft())
        assert (await registry.set_description("sql", "Writes SQL — mostly")).description == "Writes SQL — mostly"
        await registry.create_version(draft(number=2))
        assert (await registry.get_adapter("sql")).description == "Writes SQL — mostly"
        with pytest.raises(AdapterNotFound):
            await registry.set_description("json", "")

    @pytest.mark.parametrize(
        "change",
        [
            lambda r: r.create_version(draft(number=9)),
            lambda r: r.set_default("sql", 1),
            lambda r: r.set_description("sql", "x"),
            lambda r: r.delete_version("sql", 1),
            lambda r: r.delete_adapter("sql"),
        ],
    )
    async def test_every_change_moves_the_revision(self, change: Any, registry: AdapterRegistry) -> None:
        for i in range(2):
            await registry.create_version(draft(number=i))
        before = await registry.revision()
        await change(registry)
        assert await registry.revision() > before


class TestDelete:
    async def test_numbers_are_never_used_again(self, registry: AdapterRegistry) -> None:
        for i in range(3):
            await registry.create_version(draft(number=i))
        last = await registry.get_version("sql", 3)
        await registry.set_default("sql", 1)
        assert await registry.delete_version("sql", 3) == last
        created = (await registry.create_version(draft(number=9))).version
        assert created.number == 4
        assert created.id > last.id
        with pytest.raises(VersionNotFound):
            await registry.get_version("sql", 3)

    async def test_numbers_go_on_after_the_whole_adapter_was_deleted(
        self, registry: AdapterRegistry, clock: FakeClock
    ) -> None:
        for i in range(2):
            await registry.create_version(draft(number=i))
        await registry.set_description("sql", "old")
        gone = await registry.delete_adapter("sql")
        assert [v.number for v in gone] == [1, 2]
        with pytest.raises(AdapterNotFound):
            await registry.get_adapter("sql")
        assert (await registry.list_adapters()).items == ()
        clock.advance(60)
        # The same bytes as before: the deleted version is not the answer.
        again = await registry.create_version(draft(number=1), set_default=False)
        assert (again.version.number, again.created) == (3, True)
        adapter = await registry.get_adapter("sql")
        assert (adapter.default_version, adapter.description, adapter.created_at) == (None, "", clock())
        assert [v.number for v in adapter.versions] == [3]

    async def test_ids_are_not_used_again_even_by_the_last_row(self, registry: AdapterRegistry) -> None:
        """The engine's caches go by id for as long as the process lives."""
        first = (await registry.create_version(draft("a"))).version
        await registry.delete_adapter("a")
        assert (await registry.create_version(draft("b"))).version.id > first.id

    async def test_the_default_version_needs_a_successor(self, registry: AdapterRegistry) -> None:
        for i in range(2):
            await registry.create_version(draft(number=i))
        with pytest.raises(DefaultVersionInUse) as caught:
            await registry.delete_version("sql", 2)
        assert isinstance(caught.value, Conflict)
        assert (await registry.get_adapter("sql")).default_version == 2
        await registry.delete_version("sql", 1)
        await registry.delete_version("sql", 2)
        with pytest.raises(AdapterNotFound):
            await registry.get_adapter("sql")

    async def test_twice(self, registry: AdapterRegistry) -> None:
        for i in range(2):
            await registry.create_version(draft(number=i))
        await registry.delete_version("sql", 1)
        with pytest.raises(VersionNotFound):
            await registry.delete_version("sql", 1)
        await registry.delete_adapter("sql")
        with pytest.raises(AdapterNotFound):
            await registry.delete_adapter("sql")

    async def test_a_pinned_version_is_found_after_its_deletion(self, registry: AdapterRegistry) -> None:
        version = (await registry.create_version(draft())).version
        await registry.delete_adapter("sql")
        assert await registry.get_pinned("sql", 1) == version
        with pytest.raises(VersionNotFound):
            await registry.get_pinned("sql", 2)
        assert await registry.names_ever_used(["sql", "json"]) == {"sql"}


class TestCatalog:
    async def test_everything_live_and_nothing_else(self, registry: AdapterRegistry) -> None:
        for i, name in enumerate(["b", "a", "b", "gone"]):
            await registry.create_version(draft(name, i))
        await registry.delete_adapter("gone")
        await registry.delete_version("b", 1)
        rows = await registry.load_catalog()
        assert rows.revision == await registry.revision()
        assert [str(v.ref) for v in rows.versions] == ["a@1", "b@2"]
        assert {a.name: (a.default_version, [v.number for v in a.versions]) for a in rows.adapters} == {
            "a": (1, [1]),
            "b": (2, [2]),
        }

    async def test_rows_and_revision_are_of_one_moment(self, registry: AdapterRegistry, database_url: str) -> None:
        """While another process writes, equal revisions mean equal rows."""
        async with Database.open(database_url) as other:
            writer = AdapterRegistry(other, FakeClock())

            async def write() -> None:
                for i in range(40):
                    await writer.create_version(draft("sql", i))

            async with asyncio.TaskGroup() as group:
                task = group.create_task(write())
                while not task.done():
                    rows = await registry.load_catalog()
                    assert len(rows.versions) == rows.revision
                    assert [a.default_version for a in rows.adapters] == [rows.revision] * bool(rows.revision)

    async def test_a_change_is_what_everything_is_without_the_rows_that_are_known(
        self, registry: AdapterRegistry, aliases: AliasRegistry
    ) -> None:
        for i, name in enumerate(["b", "a", "b", "gone"]):
            await registry.create_version(draft(name, i), set_default=name != "a")
        known = {version.id for version in (await registry.load_catalog()).versions}
        await registry.delete_adapter("gone")
        await registry.delete_version("b", 1)
        new = [(await registry.create_version(draft(name, 9), set_default=name != "b")).version for name in "bc"]
        await aliases.put("x", (AliasTarget(model="c", weight=1),))
        rows, change = await registry.load_catalog(), await registry.load_change(known)
        assert (change.revision, change.aliases) == (rows.revision, rows.aliases)
        assert change.live == {version.id for version in rows.versions}
        assert [str(v.ref) for v in rows.versions if v.id in change.defaults] == ["b@2", "c@1"]
        assert change.versions == tuple(new)
        assert (await registry.load_change(change.live)).versions == ()
        assert (await registry.load_change(set())).versions == rows.versions

    async def test_digests_in_use(self, registry: AdapterRegistry, jobs: JobRegistry) -> None:
        for i in range(3):
            await registry.create_version(draft(f"n{i}", i))
        await registry.create_version(draft("twin", 0))
        await registry.delete_adapter("n0")
        await registry.delete_adapter("n1")
        assert await registry.digests_in_use() == {digest_of(0), digest_of(2)}
        asked = JobRequest("merge", "m", {}, "r" * 64, input_digests=(digest_of(1), digest_of(7)))
        job = (await jobs.submit(asked)).job
        assert job is not None
        assert await registry.digests_in_use() == {digest_of(n) for n in (0, 1, 2, 7)}
        assert [await registry.is_digest_in_use(digest_of(n)) for n in (0, 1, 2, 3, 7)] == [
            True,
            True,
            True,
            False,
            True,
        ]
        await jobs.cancel(job.id)
        assert await registry.digests_in_use() == {digest_of(0), digest_of(2)}
        assert not await registry.is_digest_in_use(digest_of(1))


async def test_moments_are_kept_to_the_microsecond(registry: AdapterRegistry, clock: FakeClock) -> None:
    clock.now += timedelta(microseconds=123456)
    assert (await registry.create_version(draft())).version.created_at == clock.now


async def test_what_was_registered_a_moment_ago_is_left_to_its_own_server(
    registry: AdapterRegistry, clock: FakeClock
) -> None:
    version = (await registry.create_version(draft("sql", 1), set_default=False, proved=False)).version
    clock.advance(59)
    assert await registry.unproved(older_s=60) == ()
    assert await registry.unproved() == (version,)
    clock.advance(1)
    assert await registry.unproved(older_s=60) == (version,)


async def test_files_of_a_version_are_needed_for_a_while_after_its_deletion(
    registry: AdapterRegistry, clock: FakeClock
) -> None:
    for name, number in (("sql", 1), ("json", 2)):
        await registry.create_version(draft(name, number))
    await registry.delete_adapter("sql")
    assert await registry.digests_in_use() == {digest_of(2)}
    for passed_s in (0, 99):
        clock.advance(passed_s)
        assert await registry.digests_in_use(kept_s=100) == {digest_of(1), digest_of(2)}
    clock.advance(1)
    assert await registry.digests_in_use(kept_s=100) == {digest_of(2)}
