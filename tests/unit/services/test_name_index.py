import time

import pytest

from amalgam.services.name_index import NameIndex

TASKS = ("sql", "json", "summarise", "classify", "translate", "extract", "rewrite", "route")
MANY = [f"tenant-{number:04}-{task}" for number in range(1250) for task in TASKS]
INDEX = NameIndex(MANY, [f"{name}@{number}" for name in MANY for number in (1, 2)])


def test_names_in_order_and_those_after_one() -> None:
    index = NameIndex(["b", "a", "c"], [])
    assert index.ordered == ["a", "b", "c"]
    assert [index.after(name) for name in ("", "a", "bb", "c")] == [["a", "b", "c"], ["b", "c"], ["c"], []]


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [("tenant-0042-transalte", "tenant-0042-translate"), ("tenant-0042-sq", "tenant-0042-sql"),
     ("xenant-0042-rewrite", "tenant-0042-rewrite"), ("tenant0042-json", "tenant-0042-json"),
     ("zenant-1249-sql", "tenant-1249-sql"), ("Tenant-0000-classify", "tenant-0000-classify")],
)  # fmt: skip
def test_a_slip_anywhere_in_a_name_finds_it_among_thousands(unknown: str, meant: str) -> None:
    near = INDEX.near(unknown)
    assert meant in near
    assert len(near) <= 3


def test_what_is_like_nothing_finds_nothing() -> None:
    assert INDEX.near("qqqqqqqqqqqqqqqq") == []
    assert NameIndex((), ()).near("sql") == []


def test_names_beside_the_index_are_compared_too() -> None:
    assert NameIndex(["json"], []).near("bse", "base") == ["base"]


def test_versions_of_one_name_only() -> None:
    refs = ["sql@1", "sql@2", "sql@10", "sql-b@1", "sql.x@3", "sqlA@4", "sq@1"]
    assert NameIndex([], refs).versions_of("sql") == ["sql@1", "sql@10", "sql@2"]
    assert NameIndex([], refs).versions_of("sq") == ["sq@1"]
    assert NameIndex([], refs).versions_of("none") == []


@pytest.mark.parametrize("long", ["t" * 128, "tenant-0042-" * 10, "e" * 127 + "q"])
def test_an_unknown_name_costs_the_same_among_many(long: str) -> None:
    """Comparing with all ten thousand takes a hundred times as long as this bound."""
    INDEX.near("warm-up")
    INDEX.versions_of("warm-up")
    began = time.process_time()
    for unknown in (long, "tenant-0042-transalte"):
        INDEX.near(unknown)
        INDEX.versions_of(unknown)
    assert time.process_time() - began < 0.05
