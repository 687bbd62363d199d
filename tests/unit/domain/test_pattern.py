"""Patterns find what Python's `re` finds, and take no longer than pattern times text."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amalgam.domain.pattern import MAX_PATTERN
from amalgam.domain.pattern_search import MAX_TEXT, Pattern
from amalgam.errors.evaluations import InvalidPattern

LETTERS = "ab1_ \n-é"
ATOMS = ["a", "b", "1", "_", " ", "é", ".", r"\d", r"\W", r"\s", r"\S", r"\w", r"\n", r"\.", r"\x61", "[ab]", "[^a]"]
ATOMS += ["[a-z1]", "[]a]", r"[\d_-]", r"[^\s]", "[a-]", "(?:)"]
ANCHORS = ["^", "$", r"\b", r"\B", r"\A", r"\Z"]
QUANTIFIERS = ["", "", "*", "+", "?", "*?", "+?", "{2}", "{0,2}", "{1,}", "{,1}"]


def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.tuples(st.sampled_from(["(", "(?:"]), inner, st.sampled_from(QUANTIFIERS)).map(
        lambda parts: f"{parts[0]}{parts[1]}){parts[2]}"
    )
    return st.one_of(
        st.lists(st.one_of(group, inner), min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join),
    )


SIMPLE = st.one_of(
    st.tuples(st.sampled_from(ATOMS), st.sampled_from(QUANTIFIERS)).map("".join), st.sampled_from(ANCHORS)
)
PATTERNS = st.recursive(SIMPLE, extend, max_leaves=8)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(PATTERNS, st.lists(st.text(LETTERS, max_size=7), min_size=3, max_size=3))
def test_it_finds_what_re_finds(pattern: str, texts: list[str]) -> None:
    ours = Pattern(pattern)
    for text in texts:
        assert ours.is_in(text) is (re.search(pattern, text) is not None), (pattern, text)


@pytest.mark.parametrize("pattern", ["(a+)+$", "^(a|a)*$", "(a|aa)+$", "(.*a){12}$", "((a?){16}){2}b$"])
def test_what_makes_a_backtracking_matcher_hang_ends_soon(pattern: str) -> None:
    began = time.process_time()
    assert not Pattern(pattern).is_in("a" * 1500 + "!")
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("pattern", "position"),
    [
        ("(a", 3), ("a)", 2), ("[a", 3), ("a**", 3), ("*a", 1), ("a{2", 2), ("a{3,2}", 2), ("a{999}", 2),
        (r"(a)\1", 5), ("(?=a)", 2), ("(?i)a", 2), ("(?P<n>a)", 2), ("^*", 3), ("a\\", 3), ("[b-a]", 5), (r"\q", 2),
        (r"\xg0", 2), ("a{}", 2), (r"[a-\d]", 6),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_place(pattern: str, position: int) -> None:
    with pytest.raises(InvalidPattern) as refused:
        Pattern(pattern)
    assert refused.value.position == position


@pytest.mark.parametrize(
    "pattern", ["a" * (MAX_PATTERN + 1), "(" * 40 + ")" * 40, "((a{99}){99}){99}", "((((){256}){256}){256}){256}"]
)
def test_what_would_be_too_large_is_refused_at_once(pattern: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidPattern):
        Pattern(pattern)
    assert time.process_time() - began < 1


def test_only_the_beginning_of_a_text_is_searched() -> None:
    assert Pattern("b").is_in("a" * (MAX_TEXT - 1) + "b")
    assert not Pattern("b").is_in("a" * MAX_TEXT + "b")
