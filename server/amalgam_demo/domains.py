"""Draws the world that a question is asked about."""

from functools import cache
from random import Random
from typing import Final

from amalgam_demo.invented import invented_word
from amalgam_demo.tables import Domain, domains, words
from amalgam_demo.task_item import Split

MIXED_SHARE: Final = 0.75
"""This share of training items has a mixed domain."""
INVENTED_SHARE: Final = 0.25
"""This share of a mixed domain's words means nothing."""


@cache
def _taboo() -> frozenset[str]:
    """What no invented word may be: the names of the other splits."""
    return frozenset().union(*(domain.entities for split in ("dev", "test") for domain in domains()[split]))


def draw_domain(split: Split, rng: Random) -> Domain:
    """A domain of ``split``: for training one of its own or, more often, one mixed from single words."""
    if split == "train" and rng.random() < MIXED_SHARE:
        return _mixed(rng)
    return rng.choice(domains()[split])


def _mixed(rng: Random) -> Domain:
    """A domain of words that were drawn one by one; its sentences can be odd, which makes them hard to guess."""
    table, child = rng.sample(words().tables, 2)
    first, second, amount = (_or_invented(word, rng) for word in rng.sample(words().numbers, 3))
    singular = table.removesuffix("s")
    label = singular if rng.random() < 0.5 else _or_invented(rng.choice(words().labels), rng)
    values = (_or_invented(value.replace("_", " "), rng) for value in rng.sample(words().values, 4))
    low = rng.randint(1, 60)
    return Domain(
        table=table,
        label=label,
        category=_or_invented(rng.choice(words().categories), rng),
        values=tuple(values),
        first=first,
        second=second,
        low=low,
        high=low + rng.choice((60, 400, 3000, 9000)),
        child=child,
        key=f"{singular}_id",
        amount=amount,
    )


def _or_invented(word: str, rng: Random) -> str:
    """``word``, or now and then an invented one in its place."""
    if rng.random() >= INVENTED_SHARE:
        return word
    return invented_word(rng, _taboo(), capital=word[0].isupper())
