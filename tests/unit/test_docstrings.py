"""Docstrings are sentences, those of attributes too; what describes a field of the API stands by itself."""

import ast
import functools
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

SERVER = Path(__file__).parents[2] / "server"

FRAGMENT = re.compile(r"(?:Of|By|To|From|On|Behind|Until|Without|With|In)\b|(?:As|For) (?:`|the\b|it\b|ever\b|vLLM\b)")
"""How a docstring begins that only goes on from the name: "Of the key", "As `path`"."""

SUBORDINATE = re.compile(
    r"\b(?:that|which|who|whom|whose|what|where|when|while|whether|how|why|if|unless|until|because|once|whoever|wherever"
    r"|whatever)\b|^As\b|(?<!such )\bas (?=(?:it|they|the)\b)",
    re.IGNORECASE,
)
"""Each of these has a verb behind it that is not the sentence's own."""
FINITE = frozenset(
    re.findall(
        r"\w+",
        """
        is are was were has have had does do may can must will would
        adds allows answers applies arrives asks begins belongs bounds brings builds calls carries changes chooses
        closes comes compares computes costs counts decides describes dies differs draws ends expires fails finds fits
        follows forgets gets gives goes grows holds identifies imports includes keeps knows lasts leaves lets lies
        lives loads makes maps matches means misses names needs opens passes puts raises reaches reads refuses
        reports rests returns runs says sends serves sets shares shows sorts spreads stands starts stays stops takes
        tells tries turns uses waits watches weighs works writes yields
        apply ask begin belong bound come compare compute cover decide differ find fit gain get give go hold import
        keep lead leave lie make mean miss need pass read rest run say sit stand stay take tell try weigh write
        answered asked began brought came carried changed chose described died failed gave held kept knew lay left made
        meant named took used went
        """,
    )
)
"""The verbs that docstrings of attributes have, with person and tense; a new one is added here."""

AUXILIARY = frozenset({"is", "are", "was", "were", "be", "has", "have", "had"})
"""The word behind one of these is a part of the same verb."""

CONTINUES = re.compile(
    r"(?:of|by|to|from|in|at|for|as|with|within|the same|null|none|that (?:was|were|took|ended))\b(?! JSON\b)"
)
"""How a description begins that only goes on from the field's name: "of the key", "by adapter"."""


def is_sentence(text: str) -> bool:
    """Whether the first clause of a docstring has a subject, and behind it a verb of its own."""
    plain = re.sub(r"\([^()]*\)", "", re.sub(r"(`+)[^`]+\1", "X", text.strip()))
    clause = re.split(r"[.!?;:](?=\s|$)", plain)[0]
    found = SUBORDINATE.search(clause)

    def verbs(part: str) -> int:
        words = re.findall(r"[\w'-]+", part.lower())
        return sum(word in FINITE and before not in AUXILIARY for before, word in pairwise(words))

    begins_well = (
        re.match(r"(?!(?:As|By|Whether|How|Why)\b[^,]*$)[A-Z]|vLLM", clause) is not None and plain[-1] in ".!?"
    )
    before = clause[: found.start()] if found else clause
    return begins_well and (verbs(before) > 0 or verbs(clause) > len(SUBORDINATE.findall(clause)))


def text_of(node: ast.stmt | ast.expr) -> str | None:
    inner = node.value if isinstance(node, ast.Expr) else node
    return inner.value if isinstance(inner, ast.Constant) and isinstance(inner.value, str) else None


@functools.cache
def trees() -> dict[Path, ast.Module]:
    return {path.relative_to(SERVER): ast.parse(path.read_text()) for path in sorted(SERVER.rglob("*.py"))}


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    return ((path, node) for path, tree in trees().items() for node in ast.walk(tree))


def attribute_docstrings() -> Iterator[tuple[str, str]]:
    """Place and text of every literal behind an assignment, in a module or in a class."""
    for path, node in nodes():
        if not isinstance(node, ast.Module | ast.ClassDef):
            continue
        for assigned, told in pairwise(node.body):
            text = text_of(told) if isinstance(told, ast.Expr) else None
            if isinstance(assigned, ast.Assign | ast.AnnAssign) and text is not None:
                yield f"{path}:{told.lineno}", text


def descriptions() -> Iterator[tuple[str, str]]:
    """Place and text of what is said of every field and parameter."""
    for path, node in nodes():
        for keyword in node.keywords if isinstance(node, ast.Call) else ():
            text = text_of(keyword.value) if keyword.arg == "description" else None
            if text is not None:
                yield f"{path}:{keyword.value.lineno}", text


def test_a_docstring_says_what_the_thing_is_or_does() -> None:
    found, seen = [], 0
    for path, node in nodes():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = ast.get_docstring(node) or ""
            seen += bool(text)
            if FRAGMENT.match(text):
                found.append(f"{path}:{node.lineno} {node.name}: {text.splitlines()[0]}")
    assert seen > 2000
    assert found == []


def test_a_docstring_of_an_attribute_is_a_sentence() -> None:
    found = list(attribute_docstrings())
    assert len(found) > 1000
    assert [(place, text) for place, text in found if not is_sentence(text)] == []


def test_a_description_stands_by_itself() -> None:
    found = list(descriptions())
    assert len(found) > 500
    assert [(place, text) for place, text in found if CONTINUES.match(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "Of the key; empty without one.",
        "Rows that are read at once.",
        "Bytes that were kept.",
        "Completed and pinned.",
        "Longest wait for a place, seconds; more is refused.",
        "Whether requests get it.",
        "As it was asked for.",
        "By adapter, the longest wait first.",
        "``name@number`` -> version.",
        "it is pinned.",
        "It is pinned",
    ],
)
def test_a_fragment_is_seen(text: str) -> None:
    assert not is_sentence(text)


@pytest.mark.parametrize(
    "text",
    [
        "It is pinned.",
        "A server that is silent for so long does not publish any more.",
        "``kept`` tells what was kept (of all).",
        "vLLM sets them so.",
    ],
)
def test_a_sentence_is_none(text: str) -> None:
    assert is_sentence(text)
