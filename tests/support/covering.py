"""Covering arrays: few rows that hold, between them, every pair of values of every two fields."""

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any


def covering(table: Mapping[str, Sequence[Any]], draws: random.Random) -> list[dict[str, Any]]:
    """Rows with a value of each field, drawn greedily: each value is one that adds most pairs to those before it."""
    names = sorted(table)
    missing = {
        (one, i, other, j)
        for one, other in combinations(names, 2)
        for i in range(len(table[one]))
        for j in range(len(table[other]))
    }
    rows = []
    while missing:
        one, i, other, j = min(missing)
        row = {one: i, other: j}
        for name in draws.sample(names, len(names)):
            if name not in row:
                gains = [sum(_pair(other, k, name, n) in missing for other, k in row.items())
                         for n in range(len(table[name]))]  # fmt: skip
                row[name] = max(range(len(gains)), key=lambda number: (gains[number], draws.random()))
        missing -= {_pair(a, row[a], b, row[b]) for a, b in combinations(names, 2)}
        rows.append({name: table[name][number] for name, number in row.items()})
    return rows


def _pair(one: str, i: int, other: str, j: int) -> tuple[str, int, str, int]:
    return (one, i, other, j) if one < other else (other, j, one, i)
