"""Loops over LoRA factors, compiled by numba and kept beside this file where that can be written.

Factors are float32, or the bits of bfloat16, of which half as much is read; all products and sums are float32.
Ranks are small: an operation of torch costs more to call than it computes for a few rows, and its products reach a
fraction of their speed for many. Here both products of a module are one call for all adapters.
All arrays are contiguous. The definition is ``cpu_lora_ops.add_low_rank_``; sums are taken in another order.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numba
import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Bits = NDArray[np.unsignedinteger[Any]]
Halves = NDArray[np.uint16]
Factors = Floats | Halves
_Function = TypeVar("_Function", bound=Callable[..., Any])

# Sums may be split into several and products fused with them, which is what vectors need. What is not a number stays
# so: numba's "fast" would also promise that there is none. Columns are counted without a sign, because an index that
# could be negative counts from the end, and the loop is not vectorised for it.
_OPTIONS: Final[dict[str, Any]] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}
_ZERO: Final = np.float32(0)
_NONE: Final = np.uint64(0)
_TILE: Final = np.uint64(32)
"""Columns turned at once."""
HALF_BITS: Final = 16
"""Bits that a float32 has more than a bfloat16."""
_HALF: Final = np.uint32(HALF_BITS)


def _compiled(function: _Function) -> _Function:
    return _kept(function, **_OPTIONS)


def _compiled_together(function: _Function) -> _Function:
    """Threads of OpenMP share loops over `numba.prange`; they are torch's own, because both load one library."""
    return _kept(function, parallel=True, **_OPTIONS)


def _kept(function: _Function, **options: Any) -> _Function:
    try:
        kept: _Function = numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # No folder to keep compiled code in: it is compiled again in every process.
        kept = numba.njit(**options)(function)
    return kept


def _inner(function: _Function) -> _Function:
    """For use in compiled code only."""
    kept: _Function = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)
    return kept


@_inner
def _widened(bits: Any, shift: Any) -> Any:
    """The float32 whose upper part these bits are."""
    return np.uint32(np.uint32(bits) << np.uint32(shift)).view(np.float32)


def _wide(factor: Any) -> Any:
    """What a factor is in float32; for use in compiled code only."""
    raise NotImplementedError


def _wide_of(factor: Any) -> Callable[[Any], Any]:
    """The code of `_wide`, by the type of its argument."""

    def full(factor: Any) -> Any:
        return factor

    def half(factor: Any) -> Any:
        return _widened(factor, _HALF)

    return full if isinstance(factor, numba.types.Float) else half


overload(_wide)(_wide_of)


@_compiled
def add_low_rank(
    y: Floats,
    x: Floats,
    rows: Indices,
    starts: Indices,
    slots: Indices,
    down: Factors,
    up: Factors,
    blocks: Indices,
    scales: Floats,
    scale: float,
) -> None:
    """y[r] += scale · (x[r] @ down[s]ᵀ · scales[s]) @ up[s] for the rows r of each group's slot s, and no other row.

    Args:
        y: [rows, ≥ out or narrower by padding]. x: [rows, in].
        rows: [n], those of group g from starts[g] to starts[g + 1]. starts: [groups + 1]. slots: [groups].
        down: [slots, rank, in]. up: [slots, rank, out].
        blocks: [slots, slices, 4], where ``up`` is not zero: first rank, rank after the last, and the same of columns.
        scales: [slots, rank].
        scale: Of the sum.
    """
    hidden, spare = np.empty((4, down.shape[1]), np.float32), np.zeros((2, y.shape[1]), np.float32)
    for g in range(slots.shape[0]):
        own = rows[starts[g] : starts[g + 1]]
        _add_group(y, x, own, slots[g], down, up, blocks, scales, np.float32(scale), hidden, spare)


@_compiled_together
def add_low_rank_together(
    y: Floats,
    x: Floats,
    rows: Indices,
    starts: Indices,
    slots: Indices,
    down: Factors,
    up: Factors,
    blocks: Indices,
    scales: Floats,
    scale: float,
    threads: int,
) -> None:
    """The same, each group by one of so many threads; a group's sums are taken in the same order."""
    for t in numba.prange(threads):
        hidden, spare = np.empty((4, down.shape[1]), np.float32), np.zeros((2, y.shape[1]), np.float32)
        for g in range(t, slots.shape[0], threads):
            own = rows[starts[g] : starts[g + 1]]
            _add_group(y, x, own, slots[g], down, up, blocks, scales, np.float32(scale), hidden, spare)


@_inner
def _add_group(
    y: Floats,
    x: Floats,
    rows: Indices,
    slot: int,
    down: Factors,
    up: Factors,
    blocks: Indices,
    scales: Floats,
    scale: Any,
    hidden: Floats,
    spare: Floats,
) -> None:
    """Some rows of one slot.

    Args:
        hidden: Room for four rows of its rank. spare: Two rows like those of y, which may be written to.
    """
    parts, a, b, own = blocks[slot], down[slot], up[slot], scales[slot]
    rank = parts[parts.shape[0] - 1, 1]
    if rank == 0:
        return
    i, count = 0, rows.shape[0]
    # Four rows at a time read the factors once for all of them; two or three go as four, of which some go nowhere.
    # All four are different ones: where outputs may be the same, the loops are not vectorised.
    while i + 1 < count:
        first, second = rows[i], rows[i + 1]
        third, fourth = rows[min(i + 2, count - 1)], rows[min(i + 3, count - 1)]
        _shrink_four(x[first], x[second], x[third], x[fourth], a, rank, own, scale, hidden)
        y_third = y[third] if i + 2 < count else spare[0]
        y_fourth = y[fourth] if i + 3 < count else spare[1]
        for p in range(parts.shape[0]):
            _expand_four(y[first], y[second], y_third, y_fourth, hidden, b, parts[p])
        i += 4
    if i < count:
        _shrink(x[rows[i]], a, rank, own, scale, hidden[0])
        for p in range(parts.shape[0]):
            _expand(y[rows[i]], hidden[0], b, parts[p])


@_inner
def _shrink(x: Floats, down: Factors, rank: int, scales: Floats, scale: Any, hidden: Floats) -> None:
    for r in range(rank):
        factors, total = down[r], _ZERO
        for k in range(x.shape[0]):
            total += x[k] * _wide(factors[k])
        hidden[r] = total * (scales[r] * scale)


@_inner
def _shrink_four(
    x: Floats, x1: Floats, x2: Floats, x3: Floats, down: Factors, rank: int, scales: Floats, scale: Any, hidden: Floats
) -> None:
    """As `_shrink` for four rows, by two ranks at a time: eight sums are as many as a CPU's registers hold."""
    r = 0
    while r + 2 <= rank:
        factors, others = down[r], down[r + 1]
        a0, a1, a2, a3 = _ZERO, _ZERO, _ZERO, _ZERO
        b0, b1, b2, b3 = _ZERO, _ZERO, _ZERO, _ZERO
        for k in range(x.shape[0]):
            factor, other = _wide(factors[k]), _wide(others[k])
            a0 += x[k] * factor
            a1 += x1[k] * factor
            a2 += x2[k] * factor
            a3 += x3[k] * factor
            b0 += x[k] * other
            b1 += x1[k] * other
            b2 += x2[k] * other
            b3 += x3[k] * other
        _put_four(hidden, r, a0, a1, a2, a3, scales[r] * scale)
        _put_four(hidden, r + 1, b0, b1, b2, b3, scales[r + 1] * scale)
        r += 2
    if r < rank:
        factors = down[r]
        a0, a1, a2, a3 = _ZERO, _ZERO, _ZERO, _ZERO
        for k in range(x.shape[0]):
            factor = _wide(factors[k])
            a0 += x[k] * factor
            a1 += x1[k] * factor
            a2 += x2[k] * factor
            a3 += x3[k] * factor
        _put_four(hidden, r, a0, a1, a2, a3, scales[r] * scale)


@_inner
def _put_four(hidden: Floats, rank: int, first: Any, second: Any, third: Any, fourth: Any, scale: Any) -> None:
    hidden[0, rank], hidden[1, rank] = first * scale, second * scale
    hidden[2, rank], hidden[3, rank] = third * scale, fourth * scale


@_inner
def _expand(y: Floats, h: Floats, up: Factors, block: Indices) -> None:
    """Four ranks at a time, so that y is read and written once for all of them."""
    r, stop = block[0], block[1]
    first, last = np.uint64(block[2]), np.uint64(min(block[3], y.shape[0]))
    while r + 4 <= stop:
        h0, h1, h2, h3 = h[r], h[r + 1], h[r + 2], h[r + 3]
        u0, u1, u2, u3 = up[r], up[r + 1], up[r + 2], up[r + 3]
        for c in range(first, last):
            y[c] += (h0 * _wide(u0[c]) + h1 * _wide(u1[c])) + (h2 * _wide(u2[c]) + h3 * _wide(u3[c]))
        r += 4
    while r < stop:
        h0, u0 = h[r], up[r]
        for c in range(first, last):
            y[c] += h0 * _wide(u0[c])
        r += 1


@_inner
def _expand_four(y: Floats, y1: Floats, y2: Floats, y3: Floats, hidden: Floats, up: Factors, block: Indices) -> None:
    """As `_expand` for four rows."""
    h, g, f, e = hidden[0], hidden[1], hidden[2], hidden[3]
    r, stop = block[0], block[1]
    first, last = np.uint64(block[2]), np.uint64(min(block[3], y.shape[0]))
    while r + 4 <= stop:
        h0, h1, h2, h3 = h[r], h[r + 1], h[r + 2], h[r + 3]
        g0, g1, g2, g3 = g[r], g[r + 1], g[r + 2], g[r + 3]
        f0, f1, f2, f3 = f[r], f[r + 1], f[r + 2], f[r + 3]
        e0, e1, e2, e3 = e[r], e[r + 1], e[r + 2], e[r + 3]
        u0, u1, u2, u3 = up[r], up[r + 1], up[r + 2], up[r + 3]
        for c in range(first, last):
            w0, w1, w2, w3 = _wide(u0[c]), _wide(u1[c]), _wide(u2[c]), _wide(u3[c])
            y[c] += (h0 * w0 + h1 * w1) + (h2 * w2 + h3 * w3)
            y1[c] += (g0 * w0 + g1 * w1) + (g2 * w2 + g3 * w3)
            y2[c] += (f0 * w0 + f1 * w1) + (f2 * w2 + f3 * w3)
            y3[c] += (e0 * w0 + e1 * w1) + (e2 * w2 + e3 * w3)
        r += 4
    while r < stop:
        h0, g0, f0, e0, u0 = h[r], g[r], f[r], e[r], up[r]
        for c in range(first, last):
            w0 = _wide(u0[c])
            y[c] += h0 * w0
            y1[c] += g0 * w0
            y2[c] += f0 * w0
            y3[c] += e0 * w0
        r += 1


@_compiled
def used_rows(stacked: Floats, slot: int) -> int:
    """Rows of stacked[slot, 0] up to the last that is not zero. stacked: [slots, 1, rows, columns]."""
    rows = stacked[slot, 0]
    count: int = rows.shape[0]
    while count > 0:
        row, zeros = rows[count - 1], True
        # Without a way out: a loop that may end early is not vectorised.
        for k in range(row.shape[0]):
            zeros &= row[k] == _ZERO
        if not zeros:
            return count
        count -= 1
    return 0


@_compiled
def copy_slice(a: Factors, b: Factors, slot: int, block: Indices, down: Factors, up: Factors) -> None:
    """One slice's factors of one slot, all of one type, B turned: down[slot, ranks] = A, up[slot, ranks, columns] = Bᵀ.

    Args:
        a: [≥ rank, in]. b: [width, ≥ rank].
        block: [4], as in `add_low_rank`.
        down: [slots, rank, in]. up: [slots, rank, out].
    """
    first, rank, column = np.uint64(block[0]), np.uint64(block[1] - block[0]), np.uint64(block[2])
    target, tall = down[slot], up[slot]
    for r in range(rank):
        for k in range(a.shape[1]):
            target[first + r, k] = a[r, k]
    width = np.uint64(b.shape[0])
    # Some columns at a time: lines of the cache that one rank read in part are still there for the next.
    for c in range(_NONE, width, _TILE):
        for r in range(rank):
            for k in range(c, min(c + _TILE, width)):
                tall[first + r, column + k] = b[k, r]


@_compiled
def take_slice(
    a: Bits, b: Bits, shifts: tuple[int, int], scale: float, slot: int, block: Indices, down: Floats, up: Floats
) -> None:
    """down[slot, ranks] = A and up[slot, ranks, columns] = scale · Bᵀ, of types that are the upper part of a float32.

    Args:
        a: Bits of A, [rank, in]. b: Bits of B, [width, rank].
        shifts: Bits that a float32 has more than either.
        scale: Rounded to float32, as the product is.
        block: [4], as in `add_low_rank`.
        down: [slots, rank, in]. up: [slots, rank, out].
    """
    first, column, factor = np.uint64(block[0]), np.uint64(block[2]), np.float32(scale)
    target, tall = down[slot], up[slot]
    rank, width = np.uint64(a.shape[0]), np.uint64(b.shape[0])
    for r in range(rank):
        for k in range(a.shape[1]):
            target[first + r, k] = _widened(a[r, k], shifts[0])
    for c in range(_NONE, width, _TILE):
        for r in range(rank):
            for k in range(c, min(c + _TILE, width)):
                tall[first + r, column + k] = factor * _widened(b[k, r], shifts[1])


def warm_up(threads: int) -> None:
    """Compile, or load what was compiled before, ahead of the first request.

    Args:
        threads: As many as torch uses. numba counts the processors that this process may run on, and an engine that has
            bound its main thread may run on one.
    """
    numba.config.THREADING_LAYER = "omp"
    numba.config.NUMBA_NUM_THREADS = threads
    ends, blocks = np.array([0, 1], np.int64), np.array([[[0, 1, 0, 1]]], np.int64)
    one, stacked = np.zeros((1, 1), np.float32), np.zeros((1, 1, 1, 1), np.float32)
    half, full = np.zeros((1, 1), np.uint16), np.zeros((1, 1), np.uint32)
    used_rows(stacked, 0)
    for kept in (stacked[0], half[None]):
        add_low_rank(one, one, ends[:1], ends, ends[:1], kept, kept, blocks, one, 1.0)
        add_low_rank_together(one, one, ends[:1], ends, ends[:1], kept, kept, blocks, one, 1.0, threads)
        copy_slice(kept[0], kept[0], 0, blocks[0, 0], kept, kept)
    for stored, shift in ((half, HALF_BITS), (full, 0)):
        take_slice(stored, stored, (shift, shift), 1.0, 0, blocks[0, 0], stacked[0], stacked[0])
