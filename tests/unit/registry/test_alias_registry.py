"""One space of names, one winner of a race, a history to go back in, and nothing deleted that an alias means."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest

from amalgam.domain.alias import MAX_CHANGES_KEPT, Alias, AliasTarget
from amalgam.domain.job import JobRequest
from amalgam.errors import AmalgamError
from amalgam.errors.adapters import AdapterNotFound, DefaultVersionInUse, NameTaken
from amalgam.errors.aliases import (
    AliasNotFound,
    AliasOfAlias,
    AliasRevisionNotFound,
    AliasTargetInUse,
    NothingToRollBack,
    StaleRevision,
)
from amalgam.errors.requests import ModelNotFound
from amalgam.registry.adapters import AdapterRegistry
from amalgam.registry.aliases import AliasRegistry
from amalgam.registry.database import Database
from amalgam.registry.jobs import JobRegistry
from amalgam.registry.tables import alias_changes
from tests.registry_fixtures import FakeClock, digest_of, draft


def to(*models: str, weight: int = 1) -> tuple[AliasTarget, ...]:
    return tuple(AliasTarget(model=model, weight=weight) for model in models)


async def put(aliases: AliasRegistry, name: str, *models: str, expected: int | None = None) -> Alias:
    return (await aliases.put(name, to(*models), expected=expected))[0]


@pytest.fixture(autouse=True)
async def _adapters(registry: AdapterRegistry) -> None:
    """`sql` with versions 1 to 3, the last one default, and `json@1`."""
    for number in (1, 2, 3):
        await registry.create_version(draft("sql", number))
    await registry.create_version(draft("json", 4))


class TestPut:
    async def test_it_comes_back_as_it_went_in_and_the_catalog_sees_it(
        self, aliases: AliasRegistry, registry: AdapterRegistry, clock: FakeClock
    ) -> None:
        before = await registry.revision()
        targets = (AliasTarget(model="sql@2", weight=90), AliasTarget(model="base", weight=10))
        made, created = await aliases.put("support", targets)
        assert created
        assert made == Alias(name="support", revision=1, targets=targets, created_at=clock(), updated_at=clock())
        assert await aliases.get("support") == made
        rows = await registry.load_catalog()
        assert rows.aliases == (made,)
        assert rows.revision == before + 1
        clock.advance(5)
        changed, created = await aliases.put("support", to("sql"))
        assert not created
        assert (changed.revision, changed.created_at, changed.updated_at) == (2, made.created_at, clock())

    async def test_what_it_means_already_changes_nothing(
        self, aliases: AliasRegistry, registry: AdapterRegistry
    ) -> None:
        made = await put(aliases, "support", "sql@1")
        before = await registry.revision()
        assert await aliases.put("support", to("sql@1")) == (made, False)
        assert await aliases.put("support", to("sql@1"), expected=1) == (made, False)
        assert await registry.revision() == before
        assert len((await aliases.history("support")).items) == 1

    @pytest.mark.parametrize(("models", "error"), [
        (("sql@4",), ModelNotFound), (("nope",), ModelNotFound), (("sql", "nope@1"), ModelNotFound),
        (("other",), AliasOfAlias), (("support",), AliasOfAlias), (("sql + other",), AliasOfAlias),
        (("sql + 0.5*nope",), ModelNotFound),
    ])  # fmt: skip
    async def test_targets_exist_and_are_no_aliases(
        self, models: tuple[str, ...], error: type[AmalgamError], aliases: AliasRegistry
    ) -> None:
        await put(aliases, "other", "sql@1")
        with pytest.raises(error):
            await put(aliases, "support", *models)
        with pytest.raises(AliasNotFound):
            await aliases.get("support")

    async def test_an_adapter_without_a_default_is_no_target(
        self, aliases: AliasRegistry, registry: AdapterRegistry
    ) -> None:
        await registry.create_version(draft("new", 9), set_default=False)
        with pytest.raises(ModelNotFound):
            await put(aliases, "support", "new")
        await put(aliases, "support", "new@1", "sql + 0.5*new@1")

    async def test_pages_go_by_name(self, aliases: AliasRegistry) -> None:
        names = ["B", "a", "a-b", "a.c", "ab", "c"]
        for name in reversed(names):
            await put(aliases, name, "sql")
        seen, cursor = [], None
        while True:
            page = await aliases.list(limit=2, cursor=cursor)
            seen += [alias.name for alias in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == names
        assert [alias.name for alias in (await aliases.list(search="A.")).items] == ["a.c"]


class TestCompareAndSet:
    async def test_a_change_for_another_state_is_refused(self, aliases: AliasRegistry) -> None:
        await put(aliases, "support", "sql@1", expected=0)
        await put(aliases, "support", "sql@2", expected=1)
        for expected in (0, 1, 3):
            for change in (
                put(aliases, "support", "sql@3", expected=expected),
                aliases.rollback("support", expected=expected),
                aliases.delete("support", expected=expected),
            ):
                with pytest.raises(StaleRevision) as caught:
                    await change
                assert (caught.value.expected, caught.value.current) == (expected, 2)
        assert (await aliases.get("support")).targets == to("sql@2")
        with pytest.raises(StaleRevision) as caught:
            await put(aliases, "new", "sql", expected=1)
        assert caught.value.current is None

    async def test_of_changes_for_one_state_one_wins(
        self, aliases: AliasRegistry, database_url: str, clock: FakeClock
    ) -> None:
        await put(aliases, "support", "base")
        async with Database.open(database_url, busy_timeout_s=60, answer_timeout_s=30) as other:
            both = (aliases, AliasRegistry(other, clock, "base"))
            for revision in range(1, 6):
                changes = [
                    both[i % 2].put(
                        "support", (AliasTarget(model="sql", weight=100 * revision + i),), expected=revision
                    )
                    for i in range(8)
                ]
                outcomes = await asyncio.gather(*changes, return_exceptions=True)
                won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
                assert len(won) == 1
                assert Counter(type(o) for o in outcomes if o is not won[0]) == {StaleRevision: 7}
                assert await aliases.get("support") == won[0][0]
        assert [change.revision for change in (await aliases.history("support")).items] == [6, 5, 4, 3, 2, 1]

    async def test_revisions_are_not_used_again_after_a_deletion(self, aliases: AliasRegistry) -> None:
        await put(aliases, "support", "sql@1")
        await aliases.delete("support", expected=1)
        with pytest.raises(StaleRevision):
            await put(aliases, "support", "sql@2", expected=1)
        assert (await put(aliases, "support", "sql@2", expected=0)).revision == 3


class TestNames:
    async def test_of_an_adapter_and_an_alias_that_are_made_at_once_one_wins(
        self, aliases: AliasRegistry, registry: AdapterRegistry, database_url: str, clock: FakeClock
    ) -> None:
        async with Database.open(database_url, busy_timeout_s=60, answer_timeout_s=30) as other:
            second = AliasRegistry(other, clock, "base")
            for index in range(12):
                name = f"new-{index}"
                pair: list[Coroutine[Any, Any, Any]] = [
                    second.put(name, to("sql")),
                    registry.create_version(draft(name, 100 + index)),
                ]
                outcomes = await asyncio.gather(*(pair if index % 2 else pair[::-1]), return_exceptions=True)
                refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
                assert [type(error) for error in refused] == [NameTaken], outcomes
                rows = await registry.load_catalog()
                holders = [
                    found
                    for found in (*(a.name for a in rows.adapters), *(a.name for a in rows.aliases))
                    if found == name
                ]
                assert holders == [name]

    async def test_a_name_is_free_again_once_it_is_deleted(
        self, aliases: AliasRegistry, registry: AdapterRegistry
    ) -> None:
        with pytest.raises(NameTaken):
            await put(aliases, "json", "sql")
        await registry.delete_adapter("json")
        await put(aliases, "json", "sql")
        with pytest.raises(NameTaken) as caught:
            await registry.create_version(draft("json", 5))
        assert "alias" in caught.value.message
        await aliases.delete("json")
        assert (await registry.create_version(draft("json", 5))).version.number == 2
        with pytest.raises(NameTaken):
            await aliases.rollback("json")

    async def test_an_unfinished_merge_has_its_name_already(
        self, aliases: AliasRegistry, registry: AdapterRegistry, jobs: JobRegistry
    ) -> None:
        job = (await jobs.submit(JobRequest("merge", "mix", {}, "a" * 64))).job
        assert job is not None
        with pytest.raises(NameTaken):
            await put(aliases, "mix", "sql")
        await jobs.cancel(job.id)
        await put(aliases, "mix", "sql")
        with pytest.raises(NameTaken):
            await jobs.submit(JobRequest("merge", "mix", {}, "b" * 64))
        assert await registry.names_ever_used(["mix", "sql", "none"]) == {"mix", "sql"}


class TestHistory:
    async def test_rolling_back_again_goes_further_back(self, aliases: AliasRegistry) -> None:
        for model in ("sql@1", "sql@2", "sql@3"):
            await put(aliases, "support", model)
        assert (await aliases.rollback("support")).targets == to("sql@2")
        back = await aliases.rollback("support")
        assert (back.targets, back.revision) == (to("sql@1"), 5)
        with pytest.raises(NothingToRollBack):
            await aliases.rollback("support")
        await put(aliases, "support", "json")
        assert (await aliases.rollback("support")).targets == to("sql@1")
        with pytest.raises(NothingToRollBack):
            await aliases.rollback("support")
        history = (await aliases.history("support")).items
        assert [(c.revision, c.action, c.restores) for c in history] == [
            (7, "rollback", 1), (6, "set", None), (5, "rollback", 1), (4, "rollback", 2), (3, "set", None),
            (2, "set", None), (1, "set", None),
        ]  # fmt: skip
        assert history[1].targets == to("json")

    async def test_to_any_revision_that_had_targets(self, aliases: AliasRegistry) -> None:
        await put(aliases, "support", "sql@1")
        await put(aliases, "support", "sql@2")
        await aliases.delete("support")
        await put(aliases, "support", "sql@3")
        assert (await aliases.rollback("support", to_revision=1)).targets == to("sql@1")
        for revision in (3, 6, 99):
            with pytest.raises(AliasRevisionNotFound):
                await aliases.rollback("support", to_revision=revision)
        with pytest.raises(AliasNotFound):
            await aliases.rollback("nope")

    async def test_a_deletion_is_rolled_back_like_a_change(self, aliases: AliasRegistry) -> None:
        await put(aliases, "support", "sql@1")
        await aliases.delete("support")
        with pytest.raises(AliasNotFound):
            await aliases.delete("support")
        back = await aliases.rollback("support", expected=0)
        assert (back.targets, back.revision) == (to("sql@1"), 3)
        with pytest.raises(NothingToRollBack):
            await aliases.rollback("support")
        await aliases.delete("support")
        await put(aliases, "support", "sql@2")
        with pytest.raises(NothingToRollBack):
            await aliases.rollback("support")

    async def test_what_is_gone_is_not_brought_back(self, aliases: AliasRegistry, registry: AdapterRegistry) -> None:
        await put(aliases, "support", "json@1")
        await put(aliases, "support", "sql@1")
        await registry.delete_adapter("json")
        with pytest.raises(ModelNotFound, match="json@1"):
            await aliases.rollback("support")
        assert (await aliases.get("support")).targets == to("sql@1")

    async def test_pages_of_it_and_how_far_back_it_reaches(self, aliases: AliasRegistry, database: Database) -> None:
        await put(aliases, "support", "sql@1")
        await put(aliases, "other", "sql@1")
        async with database.write() as connection:
            # As after a thousand changes, without making them.
            await connection.exec_driver_sql(f"UPDATE aliases SET revision = {MAX_CHANGES_KEPT} WHERE name = 'support'")
            await connection.execute(alias_changes.update().values(revision=5))
        await put(aliases, "support", "sql@2")
        assert [c.revision for c in (await aliases.history("support")).items] == [MAX_CHANGES_KEPT + 1, 5]
        for _ in range(2):
            await put(aliases, "support", "sql@2", "sql@3")
            await put(aliases, "support", "sql@2")
        assert [c.revision - MAX_CHANGES_KEPT for c in (await aliases.history("support")).items] == [5, 4, 3, 2, 1]
        assert len((await aliases.history("other")).items) == 1
        first = await aliases.history("support", limit=3)
        rest = await aliases.history("support", limit=3, cursor=first.next_cursor)
        assert [len(first.items), len(rest.items), rest.next_cursor] == [3, 2, None]
        assert first.items[-1].revision == rest.items[0].revision + 1
        with pytest.raises(AliasNotFound):
            await aliases.history("nope")


class TestDeletions:
    @pytest.mark.parametrize(
        "model", ["sql@1", "json + 0.5*sql@1", "ties(json; density=0.5, orthogonalize_against=sql@1)"]
    )
    async def test_a_version_that_an_alias_means_stays(
        self, model: str, aliases: AliasRegistry, registry: AdapterRegistry
    ) -> None:
        await put(aliases, "support", "json", model)
        for deletion in (registry.delete_version("sql", 1), registry.delete_adapter("sql")):
            with pytest.raises(AliasTargetInUse, match="'support'"):
                await deletion
        assert digest_of(1) in await registry.digests_in_use()
        await registry.delete_version("sql", 2)
        await aliases.delete("support")
        await registry.delete_version("sql", 1)
        assert digest_of(1) not in await registry.digests_in_use()

    async def test_what_follows_the_default_lets_other_versions_go(
        self, aliases: AliasRegistry, registry: AdapterRegistry
    ) -> None:
        await put(aliases, "support", "sql")
        await registry.delete_version("sql", 1)
        with pytest.raises(DefaultVersionInUse):
            await registry.delete_version("sql", 3)
        await registry.set_default("sql", 2)
        await registry.delete_version("sql", 3)
        with pytest.raises(AliasTargetInUse):
            await registry.delete_version("sql", 2)
        await put(aliases, "support", "json")
        await registry.delete_version("sql", 2)
        with pytest.raises(AdapterNotFound):
            await registry.get_adapter("sql")

    async def test_what_never_answered_is_withdrawn_all_the_same(
        self, aliases: AliasRegistry, registry: AdapterRegistry
    ) -> None:
        await put(aliases, "support", "sql@3")
        await registry.withdraw_version("sql", 3)
        assert (await registry.get_adapter("sql")).default_version is None

    async def test_of_a_deletion_and_an_alias_for_it_at_once_one_wins(
        self, aliases: AliasRegistry, registry: AdapterRegistry, database_url: str, clock: FakeClock
    ) -> None:
        async with Database.open(database_url, busy_timeout_s=60, answer_timeout_s=30) as other:
            second = AdapterRegistry(other, clock)
            for index in range(8):
                await registry.create_version(draft("fresh", 50 + index), set_default=False)
                await registry.create_version(draft("fresh", 90 + index))
                number = 2 * index + 1
                pair = [aliases.put(f"to-{index}", to(f"fresh@{number}")), second.delete_version("fresh", number)]
                outcomes = await asyncio.gather(*(pair if index % 2 else pair[::-1]), return_exceptions=True)
                refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
                assert len(refused) == 1
                assert isinstance(refused[0], AliasTargetInUse | ModelNotFound)
                rows = await registry.load_catalog()
                alive = f"fresh@{number}" in [str(version.ref) for version in rows.versions]
                assert alive == any(alias.name == f"to-{index}" for alias in rows.aliases)
