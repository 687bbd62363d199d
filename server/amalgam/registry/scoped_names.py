"""Patterns of names as a condition: what a key may ask for, judged where the names are."""

import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa


def page_of(
    query: sa.Select[Any],
    column: sa.Column[Any],
    patterns: Sequence[str] | None,
    limit: int,
    dialect: str,
    same: Sequence[sa.Column[Any]] = (),
) -> sa.Select[Any]:
    """The first ``limit`` rows of ``query`` in order of ``column``, its ``name``, that match one of ``patterns``.

    In a pattern ``*`` stands for any letters and ``?`` for one; None: all match. What stands before the first of them
    bounds a part of the index, and each pattern is a statement of its own, so that a page of ``acme.*`` is as cheap
    among a million names as among ten. A pattern that begins with a star has every name looked at.

    Args:
        same: columns of joined tables that ``query`` says are equal to ``column``. They are bounded too: PostgreSQL
            merges two tables along their indexes, and reads the one that has no bound of its own from its start.
    """
    if patterns is None:
        return query.order_by(column).limit(limit)
    parts = [
        query.where(_matches(column, one, dialect), *(_between(other, one) for other in same))
        .order_by(column)
        .limit(limit)
        for one in patterns
    ]
    if len(parts) < 2:
        return parts[0] if parts else query.where(sa.false())
    found = sa.union(*(sa.select(part.subquery()) for part in parts)).subquery()
    return sa.select(found).order_by(found.c.name).limit(limit)


def _matches(column: sa.Column[Any], pattern: str, dialect: str) -> sa.ColumnElement[bool]:
    start = _start(pattern)
    if pattern in (start, f"{start}*"):
        return _between(column, pattern)
    return _between(column, pattern) & _like(column, pattern, dialect)


def _between(column: sa.Column[Any], pattern: str) -> sa.ColumnElement[bool]:
    """The part of the index in which a match of ``pattern`` can lie."""
    start = _start(pattern)
    if start == pattern:
        return column == pattern
    if not start:
        return sa.true()
    # Names are ASCII, so this is what follows every name that begins with `start`.
    return (column >= start) & (column < start[:-1] + chr(ord(start[-1]) + 1))


def _start(pattern: str) -> str:
    """What stands before the first star or question mark."""
    return re.split(r"[*?]", pattern, maxsplit=1)[0]


def _like(column: sa.Column[Any], pattern: str, dialect: str) -> sa.ColumnElement[bool]:
    if dialect == "sqlite":
        # Its LIKE knows no case; GLOB does, and has the same two signs.
        return column.op("GLOB", is_comparison=True, return_type=sa.Boolean())(pattern)
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return column.like(escaped.replace("*", "%").replace("?", "_"), escape="\\")
