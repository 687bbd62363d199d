"""Patterns find what Python's `re` finds, and take no longer than pattern times text."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amalgam.domain.pattern import MAX_PATTERN, MAX_TEXT, Pattern
from amalgam.errors.evaluations import InvalidPattern


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["a", "[ab]", "(?:a|b1)", "é", ".", r"\.", "a*", "b+?", "1?", "^", r"\b"]), max_size=5),
    st.text("ab1. é", max_size=8),
)
def test_it_finds_what_re_finds(parts: list[str], text: str) -> None:
    pattern = "".join(parts)
    assert Pattern(pattern).is_in(text) is (re.search(pattern, text, re.ASCII) is not None), (pattern, text)


@pytest.mark.parametrize("pattern", ["(a+)+$", "^(a|a)*$", "(a|aa)+$", "(.*a){12}$", "((a?){16}){2}b$"])
def test_what_makes_a_backtracking_matcher_hang_ends_soon(pattern: str) -> None:
    began = time.process_time()
    assert not Pattern(pattern).is_in("a" * 8000 + "!")
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    "pattern",
    [
        "(a", "a)", "[a", "*a", "a{3,2}", "a{9999}", r"(a)\1", "(?=a)", "[b-a]", r"\q", "\ud800",
        "a" * (MAX_PATTERN + 1), "((a{99}){99}){99}",
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_a_reason(pattern: str) -> None:
    with pytest.raises(InvalidPattern, match=r"The pattern cannot be used: \w+") as refused:
        Pattern(pattern)
    refused.value.message.encode()


def test_text_that_is_no_unicode_is_searched_too() -> None:
    assert Pattern("a$").is_in("\ud800a")


def test_only_the_beginning_of_a_text_is_searched() -> None:
    assert Pattern("b").is_in("a" * (MAX_TEXT - 1) + "b")
    assert not Pattern("b").is_in("a" * MAX_TEXT + "b")
