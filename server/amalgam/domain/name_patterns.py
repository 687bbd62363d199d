"""PEFT's tables of exceptions by module name (``rank_pattern``, ``alpha_pattern``).

To PEFT each key is a regular expression that must match a module's whole name, or its end from a dot on; the first key
that matches wins. Nearly all keys in the world are plain names. Those are looked up; the rest must be expressions that
cannot run away, because both this server and the engine evaluate them, once per module.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, Generic, TypeVar

from amalgam.errors.internal import PatternRefused

_Value = TypeVar("_Value")

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.\-]+")
_TAME: Final = re.compile(r"(?>\((?:\?:)?|[$^|)]|(?:[A-Za-z0-9_\-.]|\\[.dw]|\[\^?[\w\-]+\])[*+?]?)++")
"""It matches groups of alternatives, and characters and classes that may repeat; never a group that repeats. Possessive
signs let this check itself read a key once."""
_MAX_KEY_LENGTH: Final = 512
_MAX_EXPRESSIONS: Final = 16
_LIMITS: Final = {"(": 2, "|": 16, "*": 2, "+": 2, "?": 4}
"""Each sign may occur so often in one key: each adds choices, and their product is what a match can cost."""


class NamePatterns(Generic[_Value]):
    """A table of values by module name, in PEFT's meaning. A dot in a plain key stands for a dot."""

    def __init__(self, table: Mapping[str, _Value]) -> None:
        """Take the table as the config has it.

        Raises:
            PatternRefused: see there.
        """
        self._plain: dict[str, tuple[int, _Value]] = {}
        self._expressions: list[tuple[int, re.Pattern[str], _Value]] = []
        for index, (key, value) in enumerate(table.items()):
            if _PLAIN.fullmatch(key):
                self._plain[key] = (index, value)
            else:
                self._expressions.append((index, _compile(key), value))
        if len(self._expressions) > _MAX_EXPRESSIONS:
            raise PatternRefused(f"has more than {_MAX_EXPRESSIONS} expressions in one pattern table")

    def get(self, module: str, default: _Value) -> _Value:
        """The value of the first key that matches ``module``, or ``default``."""
        found = [self._plain[end] for end in _ends(module) if end in self._plain]
        found += [(index, value) for index, expression, value in self._expressions if expression.match(module)]
        return min(found, key=lambda item: item[0])[1] if found else default

    def values(self) -> Iterable[_Value]:
        """Every value, in no order."""
        return [value for _, value in self._plain.values()] + [value for _, _, value in self._expressions]


def _ends(module: str) -> Iterable[str]:
    """``a.b.c``, ``b.c``, ``c``."""
    yield module
    for index, letter in enumerate(module):
        if letter == ".":
            yield module[index + 1 :]


def _compile(key: str) -> re.Pattern[str]:
    shown = repr(key if len(key) <= 64 else key[:64] + "…")
    wild = len(key) > _MAX_KEY_LENGTH or not _TAME.fullmatch(key)
    if wild or any(key.count(sign) > limit for sign, limit in _LIMITS.items()):
        raise PatternRefused(f"has the pattern {shown}, which is more than a module name with a few wildcards")
    try:
        return re.compile(rf"(?:.*\.)?(?:{key})$")
    except re.error:
        raise PatternRefused(f"has the pattern {shown}, which is not an expression") from None
