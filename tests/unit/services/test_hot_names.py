"""Names in memory: as many as are allowed, those asked for last, and none that changed."""

from datetime import UTC, datetime

from amalgam.domain.adapter import AdapterVersion
from amalgam.domain.catalog_rows import NameAnswers, ServedVersion
from amalgam.services.hot_names import HotNames


def version(name: str, number: int = 1) -> AdapterVersion:
    return AdapterVersion(
        id=hash((name, number)) % 10**6, name=name, number=number, digest="0" * 64, rank=2, size_bytes=1,
        module_count=1, base_fingerprint="", source="upload", created_at=datetime(2030, 1, 31, tzinfo=UTC),
    )  # fmt: skip


def answers(**found: AdapterVersion) -> NameAnswers:
    return NameAnswers(1, {name: ServedVersion(one) for name, one in found.items()}, {}, {})


def test_a_name_brings_its_version_along() -> None:
    hot = HotNames(10)
    hot.keep(answers(sql=version("sql", 3)))
    assert hot.get("sql") is hot.get("sql@3")
    assert hot.get("sql@2") is None
    assert {str(one.ref) for one in hot.versions} == {"sql@3"}


def test_what_was_asked_for_longest_ago_goes() -> None:
    hot = HotNames(4)
    for name in "ab":
        hot.keep(answers(**{name: version(name)}))
    hot.get("a"), hot.get("a@1")
    hot.keep(answers(c=version("c")))
    assert [hot.get(name) is not None for name in ("a", "a@1", "b", "b@1", "c", "c@1")] == [1, 1, 0, 0, 1, 1]
    assert len(hot) == 4


def test_an_adapter_is_forgotten_with_all_that_is_known_of_it() -> None:
    hot = HotNames(10)
    hot.keep(NameAnswers(1, {"sql@1": ServedVersion(version("sql")), "b": ServedVersion(version("b"))}, {}, {}))
    hot.keep(answers(sql=version("sql", 2)))
    hot.forget(["sql", "never"], [])
    assert [hot.get(name) for name in ("sql", "sql@1", "sql@2")] == [None, None, None]
    assert hot.get("b") is not None
    assert len(hot) == 2


def test_nothing_is_kept_of_names_that_left_the_memory() -> None:
    hot = HotNames(6)
    for number in range(1000):
        hot.keep(answers(**{f"n{number}": version(f"n{number}")}))
    assert len(hot) == 6
    assert len(hot.adapters) == 3


def test_a_recipe_is_known_until_a_version_of_it_comes_or_goes() -> None:
    hot = HotNames(10)
    hot.keep(NameAnswers(1, {}, {}, {"r": (version("m"),), "s": ()}))
    assert hot.merged("r") == (version("m"),)
    assert hot.merged("s") == ()
    assert hot.merged("t") is None
    hot.forget([], ["r"])
    assert hot.merged("r") is None


def test_none_may_be_kept() -> None:
    hot = HotNames(0)
    hot.keep(answers(sql=version("sql")))
    assert hot.get("sql") is None
    assert len(hot) == len(hot.adapters) == 0
