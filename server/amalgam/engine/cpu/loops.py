"""Loops over LoRA factors, compiled by numba: both products of a module are one call for all rows and all adapters.

Rows are float32, or the bits of bfloat16: these are widened when they are read, and rounded once, when everything is
added. Factors are float32, or the bits of bfloat16, of which half as much is read. All products and sums are float32,
also what lies between A and B. Ranks are small: an operation of torch costs more to call than it computes for a few
rows. All arrays are contiguous. The definition is ``products.add_low_rank_``; sums are taken in another order.
"""

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np
from numba.extending import overload

from amalgam.engine.cpu.compiler import Factors, Floats, Indices, Rows, compiled, compiled_together, inner
from amalgam.engine.cpu.halves import rounded, widened

_ZERO: Final = np.float32(0)


def _wide(factor: Any) -> Any:
    """What a factor is in float32; this and the next three are for use in compiled code only."""
    raise NotImplementedError


def _opened(row: Any, scratch: Any) -> Any:
    """A row in float32: itself, or its values in ``scratch``, a row as long or longer."""
    raise NotImplementedError


def _target(row: Any, scratch: Any, is_wanted: bool) -> Any:
    """Open as `_opened` does a row to add to; in ``scratch``, whatever is there, where nothing is to be added to it."""
    raise NotImplementedError


def _close(row: Any, opened: Any) -> None:
    """Put what was opened back where it is not the row itself."""
    raise NotImplementedError


def _is_wide(values: Any) -> bool:
    """Args: values: numba's type of a number or of an array."""
    return isinstance(getattr(values, "dtype", values), numba.types.Float)


def _wide_of(factor: Any) -> Callable[..., Any]:
    """The code of `_wide`, by the type of its argument; the next three are alike."""

    def full(factor: Any) -> Any:
        return factor

    def half(factor: Any) -> Any:
        return widened(factor)

    return full if _is_wide(factor) else half


def _opened_of(row: Any, scratch: Any) -> Callable[..., Any]:
    def full(row: Any, scratch: Any) -> Any:
        return row

    def half(row: Any, scratch: Any) -> Any:
        for k in range(row.shape[0]):
            scratch[k] = widened(row[k])
        return scratch[: row.shape[0]]

    return full if _is_wide(row) else half


def _target_of(row: Any, scratch: Any, is_wanted: Any) -> Callable[..., Any]:
    def full(row: Any, scratch: Any, is_wanted: Any) -> Any:
        return row if is_wanted else scratch

    def half(row: Any, scratch: Any, is_wanted: Any) -> Any:
        return _opened(row, scratch)

    return full if _is_wide(row) else half


def _close_of(row: Any, opened: Any) -> Callable[..., Any]:
    def full(row: Any, opened: Any) -> None:
        return

    def half(row: Any, opened: Any) -> None:
        for k in range(row.shape[0]):
            row[k] = rounded(opened[k])

    return full if _is_wide(row) else half


overload(_wide)(_wide_of)
overload(_opened)(_opened_of)
overload(_target)(_target_of)
overload(_close)(_close_of)


@compiled
def add_low_rank(
    y: Rows,
    x: Rows,
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
        y: [rows, ≥ out or narrower by padding]. x: [rows, in]. Both of one type.
        rows: [n], those of group g from starts[g] to starts[g + 1]. starts: [groups + 1]. slots: [groups].
        down: [slots, rank, in]. up: [slots, rank, out].
        blocks: [slots, slices, 4], where ``up`` is not zero: first rank, rank after the last, and the same of columns.
        scales: [slots, rank].
        scale: Of the sum.
    """
    hidden, x_scratch, y_scratch = _scratch(y, x, down)
    for g in range(slots.shape[0]):
        own = rows[starts[g] : starts[g + 1]]
        _add_group(y, x, own, slots[g], down, up, blocks, scales, np.float32(scale), hidden, x_scratch, y_scratch)


@compiled_together
def add_low_rank_together(
    y: Rows,
    x: Rows,
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
        hidden, x_scratch, y_scratch = _scratch(y, x, down)
        for g in range(t, slots.shape[0], threads):
            own = rows[starts[g] : starts[g + 1]]
            _add_group(y, x, own, slots[g], down, up, blocks, scales, np.float32(scale), hidden, x_scratch, y_scratch)


@inner
def _scratch(y: Rows, x: Rows, down: Factors) -> tuple[Floats, Floats, Floats]:
    """Four rows each, of ranks, of x and of y. In y's, what is added nowhere goes to the last two."""
    y_scratch = np.empty((4, y.shape[1]), np.float32)
    y_scratch[2:] = _ZERO
    return np.empty((4, down.shape[1]), np.float32), np.empty((4, x.shape[1]), np.float32), y_scratch


@inner
def _add_group(
    y: Rows,
    x: Rows,
    rows: Indices,
    slot: int,
    down: Factors,
    up: Factors,
    blocks: Indices,
    scales: Floats,
    scale: Any,
    hidden: Floats,
    x_scratch: Floats,
    y_scratch: Floats,
) -> None:
    """Some rows of one slot.

    Args:
        hidden, x_scratch, y_scratch: See `_scratch`.
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
        x0, x1 = _opened(x[first], x_scratch[0]), _opened(x[second], x_scratch[1])
        x2, x3 = _opened(x[third], x_scratch[2]), _opened(x[fourth], x_scratch[3])
        _shrink_four(x0, x1, x2, x3, a, rank, own, scale, hidden)
        y0, y1 = _target(y[first], y_scratch[0], True), _target(y[second], y_scratch[1], True)
        y2, y3 = _target(y[third], y_scratch[2], i + 2 < count), _target(y[fourth], y_scratch[3], i + 3 < count)
        for p in range(parts.shape[0]):
            _expand_four(y0, y1, y2, y3, hidden, b, parts[p])
        _close(y[first], y0)
        _close(y[second], y1)
        if i + 2 < count:
            _close(y[third], y2)
        if i + 3 < count:
            _close(y[fourth], y3)
        i += 4
    if i < count:
        row = y[rows[i]]
        _shrink(_opened(x[rows[i]], x_scratch[0]), a, rank, own, scale, hidden[0])
        target = _target(row, y_scratch[0], True)
        for p in range(parts.shape[0]):
            _expand(target, hidden[0], b, parts[p])
        _close(row, target)


@inner
def _shrink(x: Floats, down: Factors, rank: int, scales: Floats, scale: Any, hidden: Floats) -> None:
    for r in range(rank):
        factors, total = down[r], _ZERO
        for k in range(x.shape[0]):
            total += x[k] * _wide(factors[k])
        hidden[r] = total * (scales[r] * scale)


@inner
def _shrink_four(
    x: Floats, x1: Floats, x2: Floats, x3: Floats, down: Factors, rank: int, scales: Floats, scale: Any, hidden: Floats
) -> None:
    """Does `_shrink` for four rows, by two ranks at a time: eight sums are as many as a CPU's registers hold."""
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


@inner
def _put_four(hidden: Floats, rank: int, first: Any, second: Any, third: Any, fourth: Any, scale: Any) -> None:
    hidden[0, rank], hidden[1, rank] = first * scale, second * scale
    hidden[2, rank], hidden[3, rank] = third * scale, fourth * scale


@inner
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


@inner
def _expand_four(y: Floats, y1: Floats, y2: Floats, y3: Floats, hidden: Floats, up: Factors, block: Indices) -> None:
    """Does what `_expand` does for four rows."""
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


def warm_up(threads: int, *, in_halves: bool) -> None:
    """Compile, or load what was compiled before, ahead of the first request.

    Args:
        threads: As many as torch uses. numba counts the processors that this process may run on, and an engine that has
            bound its main thread may run on one.
        in_halves: Whether rows are bfloat16, and not float32.
    """
    numba.config.THREADING_LAYER = "omp"
    numba.config.NUMBA_NUM_THREADS = threads
    ends, blocks = np.array([0, 1], np.int64), np.array([[[0, 1, 0, 1]]], np.int64)
    scales, full, half = np.ones((1, 1), np.float32), np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.uint16)
    row: Rows = half[0] if in_halves else full[0]
    for kept in (half,) if in_halves else (full, half):
        add_low_rank(row, row, ends[:1], ends, ends[:1], kept, kept, blocks, scales, 1.0)
        add_low_rank_together(row, row, ends[:1], ends, ends[:1], kept, kept, blocks, scales, 1.0, threads)
