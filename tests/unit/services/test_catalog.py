import asyncio
from collections.abc import Set
from datetime import UTC, datetime
from functools import partial

import pytest

from amalgam.domain.adapter import Adapter, AdapterVersion, BaseModelSpec
from amalgam.domain.alias import Alias, AliasTarget
from amalgam.domain.version import CatalogChange, CatalogRows
from amalgam.errors.aliases import AliasTargetGone, AmbiguousAlias
from amalgam.errors.registry import RegistryUnavailable
from amalgam.errors.requests import ModelNotFound
from amalgam.services.catalog import Catalog, Target
from amalgam.services.snapshot import Snapshot

NOW = datetime(2030, 1, 31, tzinfo=UTC)
BASE = BaseModelSpec("base", "f" * 64, {}, 16)


def version(name: str, number: int, version_id: int) -> AdapterVersion:
    return AdapterVersion(
        id=version_id, name=name, number=number, digest="0" * 64, rank=2, size_bytes=1, module_count=1,
        base_fingerprint="", source="upload", created_at=NOW,
    )  # fmt: skip


SQL = [version("sql", 1, 1), version("sql", 2, 2), version("sql", 10, 3)]
JSON = [version("json", 1, 4)]
HIDDEN = [version("hidden", 1, 5)]


def adapter(name: str, default: int | None, versions: list[AdapterVersion]) -> Adapter:
    return Adapter(name=name, default_version=default, created_at=NOW, versions=tuple(versions))


def alias(name: str, *models: str) -> Alias:
    targets = tuple(AliasTarget(model=model, weight=1) for model in models)
    return Alias(name=name, revision=1, targets=targets, created_at=NOW, updated_at=NOW)


ALIASES = (alias("prod", "sql"), alias("canary", "sql@1", "json"), alias("plain", "base"), alias("gone", "json@9"))
ROWS = CatalogRows(
    revision=3,
    adapters=(adapter("sql", 2, SQL), adapter("json", 1, JSON), adapter("hidden", None, HIDDEN)),
    versions=(*SQL, *JSON, *HIDDEN),
    aliases=ALIASES,
)


class Registry:
    """Answers with what it is given, when it is told to."""

    def __init__(self, rows: CatalogRows) -> None:
        self.rows = rows
        self.reads = 0

    async def revision(self) -> int:
        return self.rows.revision

    async def load_catalog(self) -> CatalogRows:
        self.reads += 1
        return self.rows

    async def load_change(self, known: Set[int]) -> CatalogChange:
        self.known = set(known)
        rows = self.rows
        defaults = {
            v.id for v in rows.versions for a in rows.adapters if (a.name, a.default_version) == (v.name, v.number)
        }
        new = tuple(v for v in rows.versions if v.id not in known)
        return CatalogChange(
            rows.revision, frozenset(v.id for v in rows.versions), frozenset(defaults), new, rows.aliases
        )


@pytest.fixture
async def catalog() -> Catalog:
    made = Catalog(BASE, Registry(ROWS))  # type: ignore[arg-type]
    await made.refresh()
    return made


@pytest.mark.parametrize("model", [None, "", "  ", "base", " base "])
def test_nothing_and_the_base_models_name_mean_the_base_model(catalog: Catalog, model: str | None) -> None:
    assert catalog.resolve(model) == Target("base", None)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("sql", SQL[1]), (" sql ", SQL[1]), ("sql@1", SQL[0]), ("sql@2", SQL[1]), ("sql@10", SQL[2]), ("json", JSON[0]),
        ("base:sql", SQL[1]), ("base:sql@1", SQL[0]), ("hidden@1", HIDDEN[0]),
    ],
)  # fmt: skip
def test_every_form_of_an_adapter(catalog: Catalog, model: str, found: AdapterVersion) -> None:
    assert catalog.resolve(model) == Target(str(found.ref), found)


@pytest.mark.parametrize(
    "model",
    ["SQL", "sql@3", "sql@", "sql@01", "sql@1 @1", "hidden", "base:", "base:base:sql", "sql:base", "other:sql", "@1",
    "sql@1@1", "base@1"],
)  # fmt: skip
def test_what_means_nothing(catalog: Catalog, model: str) -> None:
    if model == "base:":
        with pytest.raises(ModelNotFound):
            catalog.resolve(model)
        return
    with pytest.raises(ModelNotFound) as caught:
        catalog.resolve(model)
    assert caught.value.status == 404
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("model", "near"),
    [("sqll", ["sql"]), ("jsn", ["json"]), ("bse", ["base"]), ("base:sqq", ["sql"]),
    ("sql@7", ["sql@1", "sql@10", "sql@2"]), ("zzzzzz", [])],
)  # fmt: skip
def test_near_names_are_suggested(catalog: Catalog, model: str, near: list[str]) -> None:
    with pytest.raises(ModelNotFound) as caught:
        catalog.resolve(model)
    for name in near:
        assert name in caught.value.message
    assert ("Did you mean" in caught.value.message) is bool(near)
    assert "hidden" not in caught.value.message


def test_a_giant_name_costs_little_and_is_not_repeated(catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound) as caught:
        catalog.resolve("x" * 1_000_000)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("model", ["prod", " prod ", "base:prod"])
def test_an_alias_of_one_target_means_it(catalog: Catalog, model: str) -> None:
    assert catalog.alias(model) == ALIASES[0]
    assert catalog.resolve(model) == Target("sql@2", SQL[1])
    assert catalog.resolve("plain") == Target("base", None)


def test_an_alias_of_several_is_drawn_from_and_means_no_single_version(catalog: Catalog) -> None:
    with pytest.raises(AmbiguousAlias, match="50 % sql@1, 50 % json"):
        catalog.resolve("canary")
    assert [catalog.draw(ALIASES[1], None, partial(float, at)) for at in (0.4, 0.6)] == ["sql@1", "json"]
    assert catalog.draw(ALIASES[1], "ann", lambda: 0.4) == catalog.draw(ALIASES[1], "ann", lambda: 0.6)


def test_a_target_that_is_gone_is_named(catalog: Catalog) -> None:
    with pytest.raises(AliasTargetGone, match="'gone' means 'json@9'"):
        catalog.draw(ALIASES[3], None, lambda: 0.0)


@pytest.mark.parametrize("model", [None, "", "sql", "sql@1", "base", "prod@1", "PROD", "base:base:prod", "nope"])
def test_what_is_no_alias(catalog: Catalog, model: str | None) -> None:
    assert catalog.alias(model) is None


def test_aliases_are_near_names_too(catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound, match="canary"):
        catalog.resolve("canry")


async def test_a_refresh_reads_only_what_moved_and_never_goes_back() -> None:
    registry = Registry(ROWS)
    catalog = Catalog(BASE, registry)  # type: ignore[arg-type]
    await catalog.refresh()
    first = catalog.snapshot
    await catalog.refresh()
    assert registry.reads == 1
    assert catalog.snapshot is first
    registry.rows = CatalogRows(4, (), ())
    await catalog.refresh()
    assert catalog.snapshot.revision == 4
    assert first.defaults["sql"] == SQL[1], "who resolved before still sees one whole state"
    with pytest.raises(ModelNotFound):
        catalog.resolve("sql")

    async def older() -> CatalogRows:
        return ROWS

    assert not catalog.snapshot.by_id

    async def newer() -> int:
        return 5

    registry.load_catalog = older  # type: ignore[method-assign]
    registry.revision = newer  # type: ignore[method-assign]
    await catalog.refresh()
    assert catalog.snapshot.revision == 4


MOVED = CatalogRows(
    revision=4,
    adapters=(
        adapter("sql", 10, [SQL[0], SQL[2], version("sql", 11, 8)]),
        adapter("hidden", 1, HIDDEN),
        adapter("new", 2, []),
    ),
    versions=(SQL[0], SQL[2], *HIDDEN, version("new", 2, 7), version("sql", 11, 8)),
    aliases=(alias("prod", "new"),),
)


async def test_a_change_brings_a_reader_to_the_same_state_as_reading_everything() -> None:
    registry = Registry(ROWS)
    catalog = Catalog(BASE, registry)  # type: ignore[arg-type]
    await catalog.refresh()
    first = catalog.snapshot
    registry.rows = MOVED
    await catalog.refresh()
    assert catalog.snapshot == Snapshot.of(MOVED)
    assert registry.reads == 1
    assert registry.known == {v.id for v in ROWS.versions}, "what is known is not read again"
    assert first == Snapshot.of(ROWS), "who resolved before still sees one whole state"


async def test_an_older_change_does_not_win() -> None:
    registry = Registry(ROWS)
    catalog = Catalog(BASE, registry)  # type: ignore[arg-type]
    await catalog.refresh()
    older, newest = await registry.load_change(set()), registry.load_change

    async def overtaken(known: Set[int]) -> CatalogChange:
        # Another refresh begins later and is through before this one has its answer.
        registry.load_change = newest  # type: ignore[method-assign]
        await catalog.refresh()
        assert catalog.snapshot == Snapshot.of(MOVED)
        return older

    registry.rows = MOVED
    registry.load_change = overtaken  # type: ignore[method-assign]
    await catalog.refresh()
    assert catalog.snapshot == Snapshot.of(MOVED)


async def test_a_registry_that_is_silent_for_a_while_is_followed_again() -> None:
    registry = Registry(ROWS)
    catalog = Catalog(BASE, registry)  # type: ignore[arg-type]
    asked: list[str] = []
    read = asyncio.Event()

    async def silent_at_first() -> int:
        asked.append("revision")
        if len(asked) < 3:
            raise RegistryUnavailable("locked")
        return ROWS.revision

    registry.revision = silent_at_first  # type: ignore[method-assign]
    following = asyncio.create_task(catalog.follow_loop(read.set, period_s=0.001))
    try:
        await asyncio.wait_for(read.wait(), 5)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert len(asked) >= 3
    assert catalog.snapshot.revision == ROWS.revision


async def test_names_follow_the_snapshot() -> None:
    registry = Registry(ROWS)
    catalog = Catalog(BASE, registry)  # type: ignore[arg-type]
    await catalog.refresh()
    assert catalog.names.ordered == ["canary", "gone", "json", "plain", "prod", "sql"]
    assert catalog.names is catalog.names, "sorted once"
    registry.rows = MOVED
    await catalog.refresh()
    assert catalog.names.ordered == ["hidden", "new", "prod", "sql"]
    with pytest.raises(ModelNotFound, match="hidden@1"):
        catalog.resolve("hidden@3")


def test_a_snapshot_of_nothing() -> None:
    assert Snapshot.of(CatalogRows(0, (), ())) == Snapshot(0, {}, {})


async def test_every_name_of_the_base_model_means_it_alone_and_before_a_colon() -> None:
    base = BaseModelSpec("qwen3", "f" * 64, {}, 16, other_names=("Qwen/Qwen3-0.6B",))
    catalog = Catalog(base, Registry(ROWS))  # type: ignore[arg-type]
    await catalog.refresh()
    for name in ("qwen3", "Qwen/Qwen3-0.6B"):
        assert catalog.resolve(name) == Target("qwen3", None)
        assert catalog.resolve(f"{name}:sql").engine_name == "sql@2"
        assert catalog.short(f"{name}:sql@1") == "sql@1"
    with pytest.raises(ModelNotFound):
        catalog.resolve("qwen/qwen3-0.6b")


async def test_a_name_that_is_missed_is_looked_for_once_more() -> None:
    registry = Registry(ROWS)
    catalog = Catalog(BASE, registry)  # type: ignore[arg-type]
    await catalog.refresh()
    registry.rows = MOVED
    for must_ask in (False, True):
        found = await catalog.found(partial(catalog.resolve, "new"), must_ask=must_ask)
        assert found.engine_name == "new@2"
        with pytest.raises(ModelNotFound):
            await catalog.found(partial(catalog.resolve, "newer"), must_ask=must_ask)


async def test_while_the_registry_is_away_what_is_known_counts_for_requests() -> None:
    registry = Registry(ROWS)
    catalog = Catalog(BASE, registry)  # type: ignore[arg-type]
    await catalog.refresh()

    async def away() -> int:
        raise RegistryUnavailable("gone")

    registry.revision = away  # type: ignore[method-assign]
    assert (await catalog.found(partial(catalog.resolve, "sql"), must_ask=True)).version == SQL[1]
    with pytest.raises(ModelNotFound):
        await catalog.found(partial(catalog.resolve, "new"))
    with pytest.raises(RegistryUnavailable):
        await catalog.found(partial(catalog.resolve, "new"), must_ask=True)
    await catalog.require_live(SQL)


async def test_what_another_server_deleted_is_told_and_is_not_live() -> None:
    registry = Registry(ROWS)
    catalog = Catalog(BASE, registry)  # type: ignore[arg-type]
    await catalog.refresh()
    told: list[set[int]] = []
    catalog.on_change(lambda before, after: told.append(set(after.gone)))
    await catalog.require_live((SQL[1], *JSON))
    registry.rows = MOVED
    with pytest.raises(ModelNotFound, match="sql@2"):
        await catalog.require_live((SQL[0], SQL[1]))
    assert told == [{SQL[1].id, JSON[0].id}]
    await catalog.require_live((SQL[0],))


async def test_a_change_that_is_told_is_read_at_once() -> None:
    registry = Registry(ROWS)
    catalog = Catalog(BASE, registry)  # type: ignore[arg-type]
    await catalog.refresh()
    following = asyncio.create_task(catalog.follow_loop(lambda: None, period_s=3600))
    try:
        for rows in (MOVED, CatalogRows(5, (), ())):
            registry.rows = rows
            catalog.told()
            async with asyncio.timeout(10):
                while catalog.snapshot.revision != rows.revision:
                    await asyncio.sleep(0.005)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
