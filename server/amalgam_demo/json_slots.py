"""Draws the values of one structuring question: how each is said in the text, and what it is in JSON."""

import calendar
import itertools
import string
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from random import Random
from typing import Final, NamedTuple

from amalgam_demo.invented import invented_word
from amalgam_demo.tables import json_pools
from amalgam_demo.task_item import Split

INVENTED_SHARE: Final = 0.3
"""This share of training's values is invented; of its keys, half as many get an invented ending."""


@cache
def _taboo() -> frozenset[str]:
    """What nothing invented may be: the values and keys of the other splits."""
    pools = [*json_pools().values.values(), *json_pools().keys.values()]
    held_out: tuple[Split, ...] = ("dev", "test")
    return frozenset(value for pool in pools for split in held_out for value in pool[split])


@cache
def _free_codes() -> tuple[str, ...]:
    """Codes of two letters that no other split has."""
    codes = map("".join, itertools.product(string.ascii_uppercase, repeat=2))
    return tuple(code for code in codes if code not in _taboo())


class Slot(NamedTuple):
    """One value.

    Attributes:
        said: How the text says it. value: What it is in JSON. kind: Its type, as the prompt names it.
    """

    said: str
    value: object
    kind: object


class Draw:
    """Draws from the pools of one split, never the same value twice, and remembers what it drew."""

    def __init__(self, split: Split, rng: Random) -> None:
        self.split: Split = split
        self.rng = rng
        self.entities: set[str] = set()
        self._keys: dict[str, str] = {}

    def pick(self, pool: str, count: int = 1) -> list[str]:
        """``count`` different values of ``pool``."""
        left = [value for value in json_pools().values[pool][self.split] if value not in self.entities]
        values = [self._or_invented(value, pool) for value in self.rng.sample(left, count)]
        self.entities.update(values)
        return values

    def _or_invented(self, value: str, pool: str) -> str:
        """``value``, or in training now and then an invented one of its look."""
        if self.split != "train" or self.rng.random() >= INVENTED_SHARE:
            return value
        if pool == "code":
            return self.rng.choice(_free_codes())
        word = invented_word(self.rng, _taboo(), capital=value[0].isupper())
        return f"{word}s" if pool == "thing" else word

    def key(self, concept: str) -> str:
        """The name of the key ``concept``: one per item, and no two concepts share one."""
        if concept not in self._keys:
            left = [key for key in json_pools().keys[concept][self.split] if key not in self.entities]
            key = self.rng.choice(left)
            if self.split == "train" and self.rng.random() < INVENTED_SHARE / 2:
                key = f"{key}_{invented_word(self.rng, _taboo())}"
            self._keys[concept] = key
            self.entities.add(self._keys[concept])
        return self._keys[concept]

    def slot(self, name: str) -> Slot:
        """A value for the slot ``name``; a digit at its end tells two of a kind apart."""
        kind = name.rstrip("0123456789")
        return _SLOTS[kind](self) if kind in _SLOTS else _text(self.pick(kind)[0])

    def lines(self, keys: Sequence[str]) -> Slot:
        """Two products with their quantities, as a list of objects with the two ``keys``."""
        things = self.pick("thing", 2)
        counts = [self.rng.randint(2, 40) for _ in things]
        said = listed([f"{count} {thing}" for count, thing in zip(counts, things, strict=True)])
        value = [dict(zip(keys, pair, strict=True)) for pair in zip(things, counts, strict=True)]
        return Slot(said, value, [dict(zip(keys, ("string", "integer"), strict=True))])


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _text(value: str) -> Slot:
    return Slot(value, value, "string")


def _integer(low: int, high: int) -> Callable[[Draw], Slot]:
    def drawn(draw: Draw) -> Slot:
        value = draw.rng.randint(low, high)
        return Slot(str(value), value, "integer")

    return drawn


def _several(pool: str, low: int = 2, high: int = 3) -> Callable[[Draw], Slot]:
    def drawn(draw: Draw) -> Slot:
        values = draw.pick(pool, draw.rng.randint(low, high))
        return Slot(listed(values), values, ["string"])

    return drawn


def _full_name(draw: Draw) -> str:
    return f"{draw.pick('first')[0]} {draw.pick('last')[0]}"


def _people(draw: Draw) -> Slot:
    names = [_full_name(draw) for _ in range(2)]
    return Slot(listed(names), names, ["string"])


def _numbers(draw: Draw) -> Slot:
    values = [draw.rng.randint(1, 99) for _ in range(draw.rng.randint(2, 4))]
    return Slot(listed([str(value) for value in values]), values, ["integer"])


def _thousands(draw: Draw) -> Slot:
    value = draw.rng.randint(200, 999) * 100
    return Slot(f"{value:,}", value, "integer")


def _money(draw: Draw) -> Slot:
    value = draw.rng.randint(10, 990) / 10
    return Slot(f"{value:.2f}", value, "number")


def _date(draw: Draw) -> Slot:
    year, month, day = draw.rng.randint(2019, 2029), draw.rng.randint(1, 12), draw.rng.randint(1, 28)
    return Slot(f"{day} {calendar.month_name[month]} {year}", f"{year}-{month:02}-{day:02}", "YYYY-MM-DD")


def _email(draw: Draw) -> Slot:
    return _text(f"{draw.pick('first')[0].lower()}@{draw.pick('last')[0].lower()}.org")


def _code(draw: Draw) -> Slot:
    return _text(f"{draw.pick('code')[0]}-{draw.rng.randint(10, 999)}")


_SLOTS: Final[Mapping[str, Callable[[Draw], Slot]]] = {
    "person": lambda draw: _text(_full_name(draw)),
    "people": _people,
    "email": _email,
    "code": _code,
    "count": _integer(2, 99),
    "small": _integer(1, 5),
    "large": _thousands,
    "signed": _integer(-19, 38),
    "money": _money,
    "date": _date,
    "numbers": _numbers,
    "words": _several("word"),
    "foods": _several("food"),
    "cities": _several("city"),
}
