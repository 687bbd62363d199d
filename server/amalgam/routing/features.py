"""A text as a vector: words, pairs of words and groups of letters, each hashed to one of a few thousand places.

Everything is computed on whole arrays, so that a text of 2000 letters takes a fraction of a millisecond, and in
integers until the counts, so that every machine finds the same places.
"""

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

WIDTH: Final = 16384
"""Places of a vector. Two features rarely meet in one; where they do, their signs differ half of the time."""
ENDS: Final = 60
"""Characters at either end of a text that count once more: an instruction stands before or after what it is about."""
HALF_TEXT: Final = 500
"""Of a long text its first and its last so many characters are read."""
EARLIER_WEIGHT: Final = 0.5
"""Of what the user said in earlier turns, beside the last one."""
_LETTERS: Final = (3, 4, 5)
"""Lengths of groups of letters."""
_FACTOR: Final = 0x01000193
"""Odd, and so with an inverse modulo 2^32: it is that of FNV-1a, by Fowler, Noll and Vo."""
_SPREAD: Final = np.uint32(0x9E3779B1)
_ZERO, _NINE, _UNDERLINE = np.uint32(ord("0")), np.uint32(ord("9")), np.uint32(ord("_"))

Vector: TypeAlias = npt.NDArray[np.float32]
_Codes: TypeAlias = npt.NDArray[np.uint32]
_Flags: TypeAlias = npt.NDArray[np.bool_]


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
    """Words count as much as groups of letters, and each end of a long text as much as the whole."""
    plain = " ".join(bounded(text).lower().split())
    if not plain:
        return np.zeros(WIDTH, np.float32)
    pieces = [plain] if len(plain) <= 2 * ENDS else [plain, plain[:ENDS], plain[-ENDS:]]
    groups = [_placed(find(codes)) for codes in map(_codes, pieces) for find in (_word_hashes, _letter_hashes)]
    places = np.concatenate([found for found, _ in groups])
    values = np.concatenate([found for _, found in groups])
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


def _word_hashes(codes: _Codes) -> _Codes:
    """The hashes of words and of signs, and of two that follow each other.

    A word's hash is a polynomial in `_FACTOR`: the difference of two sums over the text, taken back to its place.
    """
    inside = _in_words(codes)
    is_sign = ~inside & (codes != np.uint32(ord(" ")))
    begins = is_sign.copy()
    begins[1:] |= inside[1:] & ~inside[:-1]
    ends = is_sign.copy()
    ends[:-1] |= inside[:-1] & ~inside[1:]
    starts, stops = np.flatnonzero(begins), np.flatnonzero(ends)
    powers, inverses = _powers(_FACTOR, len(codes)), _powers(pow(_FACTOR, -1, 1 << 32), len(codes))
    sums = np.concatenate([np.zeros(1, np.uint32), np.cumsum(codes * powers, dtype=np.uint32)])
    words = (sums[stops + 1] - sums[starts]) * inverses[starts]
    return _mixed(np.concatenate([words, words[:-1] * _SPREAD ^ _mixed(words[1:])]))


def _powers(factor: int, count: int) -> _Codes:
    found = np.full(count, factor, np.uint32)
    found[0] = 1
    return np.cumprod(found, dtype=np.uint32)


def _letter_hashes(codes: _Codes) -> _Codes:
    """The hashes of every group of letters, blanks among them; a text too short for a group has none of that length."""
    found = []
    for length in _LETTERS:
        if len(codes) < length:
            continue
        hashes = np.full(len(codes) - length + 1, length, np.uint32)
        for offset in range(length):
            hashes = hashes * np.uint32(_FACTOR) ^ codes[offset : offset + len(hashes)]
        found.append(hashes)
    return _mixed(np.concatenate(found)) if found else np.zeros(0, np.uint32)


def _mixed(hashes: _Codes) -> _Codes:
    """The number with every bit depending on all others."""
    spread = (hashes ^ hashes >> np.uint32(15)) * _SPREAD
    spread = (spread ^ spread >> np.uint32(13)) * np.uint32(0x85EBCA6B)
    return spread ^ spread >> np.uint32(16)


def _placed(hashes: _Codes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Places and what stands there, of length 1: counted, each with its sign, more than one of a kind damped."""
    places, which = np.unique(hashes % np.uint32(WIDTH), return_inverse=True)
    counts = np.bincount(which, weights=1.0 - 2.0 * (hashes >> np.uint32(31)))
    damped = np.sign(counts) * np.log1p(np.abs(counts))
    return places.astype(np.intp), damped / max(float(np.sqrt(damped @ damped)), 1e-9)


def _scaled(values: Vector) -> Vector:
    length = float(np.sqrt(values @ values))
    return values / np.float32(length) if length > 0 else values
