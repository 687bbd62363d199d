"""Patterns of names, and what is shown of what they cover."""

import fnmatch
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from amalgam.domain.adapter import VersionRef
from amalgam.domain.in_scope import HIDDEN, covers, redacted
from amalgam.domain.scopes import EVERYTHING, Scopes, pattern_expression

LETTERS = "ab.-"
PATTERNS = st.text(alphabet=LETTERS + "*?", min_size=1, max_size=12)
NAMES = st.text(alphabet=LETTERS, min_size=1, max_size=16)


@given(PATTERNS, NAMES)
@example("a*b*a", "abba")
@example("*", "a")
@example("a**b", "ab")
@example("?*?", "a")
def test_a_pattern_means_what_a_shells_does(pattern: str, name: str) -> None:
    assert Scopes(models=(pattern,)).name(name) is fnmatch.fnmatchcase(name, pattern)


@given(st.lists(PATTERNS, min_size=1, max_size=5), NAMES)
def test_several_patterns_cover_what_any_of_them_does(patterns: list[str], name: str) -> None:
    each = any(Scopes(models=(pattern,)).name(name) for pattern in patterns)
    assert Scopes(models=tuple(patterns)).name(name) is each


def test_no_pattern_takes_long() -> None:
    scopes = Scopes(models=tuple(f"{'*a' * 60}{number}" for number in range(200)))
    began = time.process_time()
    assert not scopes.name("a" * 128)
    assert time.process_time() - began < 5


def test_the_base_model_is_named_by_its_word_or_by_all() -> None:
    assert EVERYTHING.base
    assert Scopes(models=("base", "sql")).base
    assert not Scopes(models=("b*", "sql", "bas?")).base
    assert not Scopes(models=("base",)).name("base"), "an adapter of that name is another thing"


def test_a_version_is_covered_by_its_name_or_by_itself() -> None:
    name, exact = Scopes(models=("sql",)), Scopes(models=("sql@3", "json@1?"))
    assert name.version(VersionRef("sql", 3))
    assert name.asked("sql")
    assert exact.version("sql@3")
    assert exact.asked("json@12")
    for other in ("sql", "sql@4", "sql@33", "json@1", "xsql@3"):
        assert not exact.asked(other), other


@pytest.mark.parametrize("pattern", ["", "a b", "a+b", "a@", "a@x", "sql@@3", "x" * 129, "a\n", "é", "[ab]", "a,b"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        Scopes(models=(pattern,))


def test_everything_is_everything() -> None:
    assert EVERYTHING.is_everything
    assert not Scopes(blends="own").is_everything
    assert Scopes(blends="none").has_every_name
    assert not Scopes(models=("a*",)).has_every_name


def test_of_an_expression_every_input_counts() -> None:
    scopes = Scopes(models=("a.*", "base"))
    for model in ("a.x", "a.x@3", "a.x + 0.5*a.y", "ties(a.x, a.y@2; density=0.5)", "tiny"):
        assert covers(model, scopes, ["tiny"]), model
    for model in (
        "b",
        "a.x + b",
        "a.x@3 - b@1",
        "ties(a.x, a.y; orthogonalize_against=b)",
        "a.x + (",
        "blend@0123456789ab",
    ):
        assert not covers(model, scopes, ["tiny"]), model


def test_exact_versions_out_of_scope_are_taken_out_of_texts_and_json() -> None:
    scopes = Scopes(models=("a.*",))
    value = {"inputs": [{"adapter": "b@1"}, {"adapter": "a.x@2"}], "b@1": "of b@1, a.x@2, xa.x@2 and 0.5*b-c@77."}
    shown = redacted(value, scopes)
    assert shown == {
        "inputs": [{"adapter": HIDDEN}, {"adapter": "a.x@2"}],
        HIDDEN: f"of {HIDDEN}, a.x@2, {HIDDEN} and 0.5*{HIDDEN}.",
    }
    assert redacted(value, EVERYTHING) is value
    assert redacted(("blend@0123456789ab", 3, None), scopes) == ("blend@0123456789ab", 3, None)


def test_patterns_are_compiled_without_a_way_back() -> None:
    assert re.fullmatch(pattern_expression("a.*b?c*"), "a.xxbyczz")
    assert "(?>" in pattern_expression("a*b*c")
