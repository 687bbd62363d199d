"""The features of a text against their plain definition, one at a time; and what they make alike."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from amalgam.routing.features import ENDS, WIDTH, vector

FACTOR, SPREAD, LIMIT = 0x01000193, 0x9E3779B1, 1 << 32
COUNTS = {"words": 1.0, "pairs": 0.5, "letters": 1.5}
ROUNDING = 1e-6
"""The vector is kept in single precision."""
LONG = (
    "Please write a headline for this. " + "The storm of 1987 felled 15 million trees; " * 4 + "Thanks, and be quick!"
)


def mixed(number: int) -> int:
    spread = (number ^ number >> 15) * SPREAD % LIMIT
    spread = (spread ^ spread >> 13) * 0x85EBCA6B % LIMIT
    return spread ^ spread >> 16


def hashed(codes: str) -> Iterator[tuple[str, int, int, int]]:
    """Kind, hash, start and stop of all that a text has."""
    words = [
        (sum(ord(letter) * pow(FACTOR, place, LIMIT) for place, letter in enumerate(found[0])) % LIMIT, *found.span())
        for found in re.finditer(r"[a-z0_\x80-\U0010ffff]+|[^ ]", codes)
    ]
    for word, start, stop in words:
        yield "words", word, start, stop
    for (one, start, _), (other, _, stop) in pairwise(words):
        yield "pairs", one * SPREAD % LIMIT ^ mixed(other), start, stop
    for length in (3, 4, 5):
        for start in range(len(codes) - length + 1):
            group = length
            for letter in codes[start : start + length]:
                group = group * FACTOR % LIMIT ^ ord(letter)
            yield "letters", group, start, start + length


def plain(text: str) -> np.ndarray:
    codes = re.sub("[0-9]+", "0", f" {' '.join(text.lower().split())} ")
    size, pieces = len(codes), [(0, len(codes))]
    if size > 2 * max(ENDS):
        pieces += [piece for length in ENDS for piece in ((0, length), (size - length, size))]
    found = np.zeros(WIDTH)
    for kind, counts in COUNTS.items():
        for first, last in pieces:
            places: Counter[int] = Counter()
            for name, value, start, stop in hashed(codes):
                if name == kind and start >= first and stop <= last:
                    places[mixed(value) % WIDTH] += -1 if mixed(value) >> 31 else 1
            damped = {place: math.copysign(math.log1p(abs(count)), count) for place, count in places.items()}
            norm = math.sqrt(sum(value * value for value in damped.values()))
            for place, weight in damped.items():
                found[place] += counts * weight / max(norm, 1e-9)
    return found / np.linalg.norm(found)


@pytest.mark.parametrize("text", ["How many users are there?", "a", "x_1 = 22,5", "Größe: 3 µm", "一二三", LONG])
def test_a_vector_is_that_of_the_plain_definition(text: str) -> None:
    np.testing.assert_allclose(vector(text), plain(text), rtol=0, atol=ROUNDING)


def test_a_text_at_the_bound_has_no_ends_of_its_own() -> None:
    bound = 2 * max(ENDS) - 2
    for text in ("word " * 40)[:bound], ("word " * 40)[: bound + 1]:
        np.testing.assert_allclose(vector(text), plain(text), rtol=0, atol=ROUNDING)


def alike(one: str, other: str) -> float:
    return float(vector(one) @ vector(other))


def test_what_stands_at_an_end_of_a_long_text_counts_more_than_in_its_middle() -> None:
    filling = "the market hall lost its roof in the storm and will open again when spring comes "
    asked = "write a headline"
    begun, inside = f"{asked} {filling * 3}", f"{filling * 2}{asked} {filling}"
    ended = f"{filling * 3}{asked}"
    assert alike(begun, asked) > 1.5 * alike(inside, asked)
    assert alike(ended, asked) > 1.5 * alike(inside, asked)


def test_numbers_blanks_and_capitals_make_no_difference() -> None:
    assert alike("Order 4471:  three LAMPS", "order 9: three lamps") == pytest.approx(1)
    assert alike("order lamps", "lamps order") < 0.95


def test_earlier_turns_count_half() -> None:
    last, earlier = vector("translate this"), vector("count the rows")
    wanted = last + 0.5 * earlier
    np.testing.assert_allclose(
        vector("translate this", "count the rows"), wanted / np.linalg.norm(wanted), rtol=0, atol=ROUNDING
    )
