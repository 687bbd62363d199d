"""Words that mean nothing, for training alone: what no one can know must be copied letter by letter."""

from collections.abc import Container
from random import Random
from typing import Final

_ONSETS: Final = "b br c ch d dr f fl g gr h j k l m n p pl r s sh st t tr v w z".split()  # noqa: SIM905 -- a list to read
_VOWELS: Final = "aeiou"
_CODAS: Final = "bdgklmnprstx"


def invented_word(rng: Random, taboo: Container[str], *, capital: bool = False) -> str:
    """A word of two syllables that is not in ``taboo``."""
    while True:
        syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(2)]
        word = "".join(syllables) + rng.choice(_CODAS)
        word = word.capitalize() if capital else word
        if word not in taboo:
            return word
