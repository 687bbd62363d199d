"""How large an automaton a regular expression asks for, judged from its text in one pass.

A repetition copies what it repeats, so repetitions inside of repetitions multiply: 500 bytes can ask for millions of
states. The engine's compiler also compares every state that can be entered over and over with the whole vocabulary,
which is what takes seconds; such states stand below two repetitions, and wide characters make them dearer.
"""

from dataclasses import dataclass
from typing import Final

_LITERAL: Final = 1
_CLASS: Final = 4
_WIDE: Final = 8
"""They stand for any character, or all but some: in UTF-8 these are several states."""
_LARGEST: Final = 1 << 30
"""Counting ends here, so that a tower of repetitions makes no huge integers."""


@dataclass(frozen=True, slots=True)
class PatternCost:
    """What one expression asks for."""

    copies: int
    """It counts characters and classes, once all repetitions are written out."""
    nested: int
    """It is the weight of those of them that stand below a repetition of a repetition."""


@dataclass(slots=True)
class _Part:
    """A character, a class or a group, written out."""

    copies: int = 0
    weight: int = 0
    nested: int = 0
    repeats: bool = False

    def add(self, other: "_Part") -> None:
        self.copies = min(self.copies + other.copies, _LARGEST)
        self.weight = min(self.weight + other.weight, _LARGEST)
        self.nested = min(self.nested + other.nested, _LARGEST)
        self.repeats = self.repeats or other.repeats

    def repeated(self, times: int) -> "_Part":
        weight = min(self.weight * times, _LARGEST)
        nested = weight if self.repeats else min(self.nested * times, _LARGEST)
        return _Part(min(self.copies * times, _LARGEST), weight, nested, repeats=True)


def pattern_cost(expression: str) -> PatternCost:
    """The cost of ``expression``; of one that is not well formed, that of what can be read of it."""
    groups = [_Part()]
    last = _Part()
    at = 0
    while at < len(expression):
        character = expression[at]
        repetition = _repetition(expression, at)
        if repetition is not None:
            times, at = repetition
            if times is not None:
                last = last.repeated(times)
            continue
        groups[-1].add(last)
        last = _Part()
        at += 1
        if character == "(":
            groups.append(_Part())
            if expression.startswith("?", at):
                # What kind of group it is: no repetition, and no character.
                at += 2
        elif character == ")" and len(groups) > 1:
            last = groups.pop()
        elif character == "[":
            last = _Part(1, _WIDE if expression.startswith("^", at) else _CLASS)
            at = _class_end(expression, at)
        elif character == "\\":
            last = _Part(1, _escape_weight(expression[at : at + 1]))
            at += 1
        elif character not in "|^$":
            last = _Part(1, _WIDE if character == "." else _LITERAL)
    groups[-1].add(last)
    while len(groups) > 1:
        last = groups.pop()
        groups[-1].add(last)
    return PatternCost(groups[0].copies, groups[0].nested)


def _repetition(expression: str, at: int) -> tuple[int | None, int] | None:
    """How often the quantifier at ``at`` repeats, and where it ends; None for the number where it only makes optional.

    None altogether where there is no quantifier.
    """
    character = expression[at]
    if character == "?":
        return None, at + 1
    if character in "*+":
        return 1, at + 1
    if character != "{":
        return None
    end = expression.find("}", at)
    counts = expression[at + 1 : end].split(",") if 0 <= end <= at + 16 else []
    if not 1 <= len(counts) <= 2 or not all(count.strip().isascii() for count in counts):
        return None
    numbers = [int(count) for count in counts if count.strip().isdigit()]
    if not numbers:
        return None
    times = max([1, *numbers])
    return (times if times > 1 or len(counts) > 1 else None), end + 1


def _class_end(expression: str, at: int) -> int:
    """The place behind the bracket that ends the class whose first character is at ``at``."""
    if expression.startswith("^", at):
        at += 1
    if expression.startswith("]", at):
        at += 1
    while at < len(expression):
        if expression[at] == "]":
            return at + 1
        at += 2 if expression[at] == "\\" else 1
    return len(expression)


def _escape_weight(character: str) -> int:
    if character in ("d", "w", "s"):
        return _CLASS
    return _WIDE if character in ("D", "W", "S", "p", "P", "X") else _LITERAL
