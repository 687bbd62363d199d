"""A text as a vector: words, pairs of words and groups of letters, each hashed to one of a few thousand places.

Everything is computed on whole arrays, so that a text of 2000 letters takes a fraction of a millisecond, and in
integers until the counts, so that every machine finds the same places.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

WIDTH: Final = 16384
"""A vector has so many places. Two features rarely meet in one; where they do, their signs differ half of the time."""
ENDS: Final = (30, 60)
"""So many characters at either end of a long text are counted once more: an instruction stands before or after what it
is about."""
HALF_TEXT: Final = 500
"""So many characters of a long text are read at its begin, and as many at its end."""
EARLIER_WEIGHT: Final = 0.5
"""What the user said in earlier turns has this weight, beside the last one."""
_LETTERS: Final = (3, 4, 5)
"""Groups of letters have these lengths."""
_WORDS_COUNT, _PAIRS_COUNT, _LETTERS_COUNT = 1.0, 0.5, 1.5
"""They weigh the parts of one piece of text: another wording has other pairs of words, and often the same stems."""
_FACTOR: Final = 0x01000193
"""It is odd, and so has an inverse modulo 2^32: it is that of FNV-1a, by Fowler, Noll and Vo."""
_SPREAD: Final = np.uint32(0x9E3779B1)
_ZERO, _NINE, _UNDERLINE = np.uint32(ord("0")), np.uint32(ord("9")), np.uint32(ord("_"))

Vector: TypeAlias = npt.NDArray[np.float32]
_Codes: TypeAlias = npt.NDArray[np.uint32]
_Flags: TypeAlias = npt.NDArray[np.bool_]
_Places: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class _Hashed:
    """What a text has of one kind: the hash of each, and where it starts and stops."""

    hashes: _Codes
    starts: _Places
    stops: _Places

    def inside(self, first: int, last: int) -> _Codes:
        """The hashes of those that lie between two places of the text."""
        found: _Codes = self.hashes[(self.starts >= first) & (self.stops <= last)]
        return found


def bounded(text: str) -> str:
    """The ends of a long text, a shorter one as it is."""
    return text if len(text) <= 2 * HALF_TEXT else f"{text[:HALF_TEXT]} {text[-HALF_TEXT:]}"


def vector(last: str, earlier: str = "") -> Vector:
    """The features of what a user says, of length 1; all zeros where there is no text.

    Args:
        last: the last turn.
        earlier: the turns before it, which count `EARLIER_WEIGHT` as much.
    """
    found = _of_text(last)
    if earlier:
        found = found + np.float32(EARLIER_WEIGHT) * _of_text(earlier)
    return _scaled(found)


def _of_text(text: str) -> Vector:
    """The features of the whole and, of a long text, those of its ends, each piece counting alike."""
    plain = " ".join(bounded(text).lower().split())
    if not plain:
        return np.zeros(WIDTH, np.float32)
    codes = _codes(plain)
    words = _words(codes)
    size = len(codes)
    pieces = [(0, size)]
    if size > 2 * max(ENDS):
        pieces += [piece for length in ENDS for piece in ((0, length), (size - length, size))]
    placed = [
        _placed(features.inside(*piece), counts)
        for features, counts in (
            (words, _WORDS_COUNT),
            (_pairs(words), _PAIRS_COUNT),
            (_letters(codes), _LETTERS_COUNT),
        )
        for piece in pieces
    ]
    places = np.concatenate([found for found, _ in placed])
    values = np.concatenate([found for _, found in placed])
    return _scaled(np.bincount(places, weights=values, minlength=WIDTH).astype(np.float32))


def _codes(plain: str) -> _Codes:
    """The text between two blanks, with every number as a single 0."""
    codes = np.frombuffer(f" {plain} ".encode("utf-32-le", "replace"), np.uint32)
    is_digit = (codes >= _ZERO) & (codes <= _NINE)
    follows = np.zeros(len(codes), np.bool_)
    follows[1:] = is_digit[1:] & is_digit[:-1]
    kept: _Codes = np.where(is_digit, _ZERO, codes)[~follows]
    return kept


def _in_words(codes: _Codes) -> _Flags:
    """Where letters and numbers are; what is not ASCII counts as a letter."""
    is_letter = (codes >= np.uint32(ord("a"))) & (codes <= np.uint32(ord("z")))
    found: _Flags = is_letter | (codes == _ZERO) | (codes == _UNDERLINE) | (codes >= np.uint32(128))
    return found


def _words(codes: _Codes) -> _Hashed:
    """Words and signs.

    A word's hash is a polynomial in `_FACTOR`: the difference of two sums over the text, taken back to its place.
    """
    inside = _in_words(codes)
    is_sign = ~inside & (codes != np.uint32(ord(" ")))
    begins = is_sign.copy()
    begins[1:] |= inside[1:] & ~inside[:-1]
    ends = is_sign.copy()
    ends[:-1] |= inside[:-1] & ~inside[1:]
    starts, stops = np.flatnonzero(begins), np.flatnonzero(ends) + 1
    powers, inverses = _powers(_FACTOR, len(codes)), _powers(pow(_FACTOR, -1, 1 << 32), len(codes))
    sums = np.concatenate([np.zeros(1, np.uint32), np.cumsum(codes * powers, dtype=np.uint32)])
    return _Hashed((sums[stops] - sums[starts]) * inverses[starts], starts, stops)


def _pairs(words: _Hashed) -> _Hashed:
    """Two words or signs that follow each other."""
    hashes = words.hashes[:-1] * _SPREAD ^ _mixed(words.hashes[1:])
    return _Hashed(hashes, words.starts[:-1], words.stops[1:])


def _powers(factor: int, count: int) -> _Codes:
    found = np.full(count, factor, np.uint32)
    found[0] = 1
    return np.cumprod(found, dtype=np.uint32)


def _letters(codes: _Codes) -> _Hashed:
    """Every group of letters, blanks among them; a text too short for a group has none of that length."""
    found = []
    for length in _LETTERS:
        count = max(len(codes) - length + 1, 0)
        hashes = np.full(count, length, np.uint32)
        for offset in range(length):
            hashes = hashes * np.uint32(_FACTOR) ^ codes[offset : offset + count]
        starts = np.arange(count)
        found.append((hashes, starts, starts + length))
    return _Hashed(*map(np.concatenate, zip(*found, strict=True)))


def _mixed(hashes: _Codes) -> _Codes:
    """The number with every bit depending on all others."""
    spread = (hashes ^ hashes >> np.uint32(15)) * _SPREAD
    spread = (spread ^ spread >> np.uint32(13)) * np.uint32(0x85EBCA6B)
    return spread ^ spread >> np.uint32(16)


def _placed(hashes: _Codes, length: float) -> tuple[_Places, npt.NDArray[np.float64]]:
    """Places and what stands there, of this length: counted, each with its sign, more than one of a kind damped."""
    mixed = _mixed(hashes)
    places, which = np.unique(mixed % np.uint32(WIDTH), return_inverse=True)
    counts = np.bincount(which, weights=1.0 - 2.0 * (mixed >> np.uint32(31)))
    damped = np.sign(counts) * np.log1p(np.abs(counts))
    return places.astype(np.intp), damped * (length / max(float(np.sqrt(damped @ damped)), 1e-9))


def _scaled(values: Vector) -> Vector:
    length = float(np.sqrt(values @ values))
    return values / np.float32(length) if length > 0 else values
