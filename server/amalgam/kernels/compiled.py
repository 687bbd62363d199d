"""Loops for processors, compiled by numba on their first call and kept beside this file where that can be written.

Elementwise work in torch or numpy goes through memory once an operation; here it is done in one pass over pieces that
stay in the first cache. Every function leaves the interpreter's lock, so that threads share the work. Arrays are
contiguous. The values are those of ``reference`` and of ``philox_numpy``.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from amalgam.kernels.philox import MULTIPLIERS, ROUNDS, WEYL, WORD, Stream

_PIECE: Final = 2048
"""So many entries are worked on at once; a multiple of 4."""

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_FIRST, _SECOND = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
_STEP_LOW, _STEP_HIGH = (np.uint64(weyl) for weyl in WEYL)
_MASK: Final = np.uint64(WORD)
_SHIFT: Final = np.uint64(32)

Floats = NDArray[np.float32]
Reals = Floats | NDArray[np.float64]
"""They are of one width in one call."""

Words = NDArray[np.uint64]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    try:
        kept: _Function = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # No folder to keep compiled code in: it is compiled again in every process.
        kept = numba.njit(nogil=True)(function)
    return kept


def stream_words(stream: Stream) -> Words:
    """A stream as the loops take it: (adapter, tensor, seed's low word, seed's high word)."""
    return np.array([stream.adapter, stream.tensor, *stream.key], dtype=np.uint64)


@_compiled
def philox_below(stream: Words, first: int, bound: int, flags: NDArray[np.bool_]) -> None:
    """Which words of blocks first .. are below ``bound``, into ``flags`` [4 · blocks]."""
    adapter, tensor, low, high = stream[0], stream[1], stream[2], stream[3]
    limit = np.uint64(bound)
    for b in range(flags.shape[0] >> 2):
        # Written out, and the comparison with it: across a call, or with the words stored, the loop is not vectorised.
        block = np.uint64(first + b)
        c0, c1, c2, c3 = block & _MASK, block >> _SHIFT, adapter, tensor
        k0, k1 = low, high
        for _ in range(ROUNDS):
            p0, p1 = c0 * _FIRST, c2 * _SECOND
            c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _MASK, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _MASK
            k0, k1 = (k0 + _STEP_LOW) & _MASK, (k1 + _STEP_HIGH) & _MASK
        flags[4 * b], flags[4 * b + 1] = c0 < limit, c1 < limit
        flags[4 * b + 2], flags[4 * b + 3] = c2 < limit, c3 < limit


@_compiled
def drop(x: Reals, stream: Words, first: int, bound: int) -> None:
    """Zero the entries of x [n], elements first .. of a stream, whose word is not below ``bound``."""
    flags = np.empty(_PIECE, dtype=np.bool_)
    at = 0
    while at < x.shape[0]:
        element = first + at
        skipped = element & 3
        piece = x[at : at + _PIECE - skipped]
        philox_below(stream, element >> 2, bound, flags[: (skipped + piece.shape[0] + 3) >> 2 << 2])
        keeps = flags[skipped:]
        for j in range(piece.shape[0]):
            piece[j] = piece[j] if keeps[j] else _ZERO
        at += piece.shape[0]


@_compiled
def combine_sum(x: Reals, weights: Reals, lows: Reals, out: Reals) -> None:
    """Σ_t w·x, entries below an input's ``low`` in magnitude left out: x [T, n], weights and lows [T] -> out [n]."""
    for start in range(0, x.shape[1], _PIECE):
        total = out[start : start + _PIECE]
        total[:] = _ZERO
        for t in range(x.shape[0]):
            row, low, weight = x[t, start : start + _PIECE], lows[t], weights[t]
            for j in range(row.shape[0]):
                # Not "at least": what is not a number has to stay one.
                total[j] += _ZERO if abs(row[j]) < low else weight * row[j]


@_compiled
def combine_elect(x: Reals, weights: Reals, lows: Reals, scale: Any, heads: bool, out: Reals) -> None:
    """``reference.elect`` of x [T, n], entries below an input's ``low`` in magnitude as zeros -> out [n]; x is used up.

    Args:
        x: Inputs. weights: [T], signed. lows: [T].
        scale: λ. heads: Whether heads are counted, not votes summed.
        out: The result.
    """
    ballot, mass = np.empty(_PIECE, dtype=x.dtype), np.empty(_PIECE, dtype=x.dtype)
    for start in range(0, x.shape[1], _PIECE):
        total = out[start : start + _PIECE]
        ballot[:], mass[:], total[:] = _ZERO, _ZERO, _ZERO
        for t in range(x.shape[0]):
            row, low, weight = x[t, start : start + _PIECE], lows[t], weights[t]
            for j in range(row.shape[0]):
                vote = _ZERO if abs(row[j]) < low else weight * row[j]
                row[j] = vote
                ballot[j] += np.sign(vote) if heads else vote
        for j in range(total.shape[0]):
            ballot[j] = -_ONE if ballot[j] < _ZERO else _ONE
        for t in range(x.shape[0]):
            row, weight = x[t, start : start + _PIECE], abs(weights[t])
            for j in range(row.shape[0]):
                vote = row[j] * ballot[j]
                # Zeros never agree; what is not a number does, so that it shows.
                total[j] += _ZERO if vote <= _ZERO else vote
                mass[j] += _ZERO if vote <= _ZERO else weight
        for j in range(total.shape[0]):
            total[j] = ballot[j] * total[j] * scale / (mass[j] if mass[j] > _ZERO else _ONE)


@_compiled
def gather_between(values: Floats, low: float, high: float, found: Floats) -> tuple[int, int]:
    """Magnitudes of values [n] in [low, high], in order, into ``found``.

    Returns: how many are larger than ``high``; and how many were found, or -1 where ``found``, which has to be a piece
        of 2048 wider, did not hold them.
    """
    least, most = np.float32(low), np.float32(high)
    above, count = 0, 0
    for start in range(0, values.shape[0], _PIECE):
        piece = values[start : start + _PIECE]
        over = 0
        for j in range(piece.shape[0]):
            over += abs(piece[j]) > most
        above += over
        if count + _PIECE > found.shape[0]:
            return above, -1
        for j in range(piece.shape[0]):
            magnitude = abs(piece[j])
            found[count] = magnitude
            count += (magnitude >= least) & (magnitude <= most)
    return above, count
