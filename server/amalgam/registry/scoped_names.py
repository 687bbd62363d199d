"""Patterns of names as a condition: what a key may ask for, judged where the names are."""

import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa


def in_scope(column: sa.Column[Any], patterns: Sequence[str], dialect: str) -> sa.ColumnElement[bool]:
    """Whether a name matches one of ``patterns``: ``*`` stands for any letters and ``?`` for one.

    What stands before the first of them bounds a part of the index, so that a page of ``acme.*`` is as cheap among a
    million names as among ten. A pattern that begins with a star has every name looked at.
    """
    return sa.or_(sa.false(), *(_matches(column, pattern, dialect) for pattern in patterns))


def _matches(column: sa.Column[Any], pattern: str, dialect: str) -> sa.ColumnElement[bool]:
    start = re.split(r"[*?]", pattern, maxsplit=1)[0]
    if start == pattern:
        return column == pattern
    conditions: list[sa.ColumnElement[bool]] = []
    if start:
        # Names are ASCII, so this is what follows every name that begins with `start`.
        conditions += [column >= start, column < start[:-1] + chr(ord(start[-1]) + 1)]
    if pattern != f"{start}*":
        conditions.append(_like(column, pattern, dialect))
    return sa.and_(sa.true(), *conditions)


def _like(column: sa.Column[Any], pattern: str, dialect: str) -> sa.ColumnElement[bool]:
    if dialect == "sqlite":
        # Its LIKE knows no case; GLOB does, and has the same two signs.
        return column.op("GLOB", is_comparison=True, return_type=sa.Boolean())(pattern)
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return column.like(escaped.replace("*", "%").replace("?", "_"), escape="\\")
