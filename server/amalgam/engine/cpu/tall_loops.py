"""Loops over A for long runs of bfloat16 rows: one call a module, whatever the number of runs and of adapters.

Where ranks are few, a product of torch for each run costs more to call than it computes, and rounds what it returns.
Here rows are widened once, all sums are float32, and what lies between A and B goes on as two bfloat16 numbers, itself
and what its rounding left. Units of the processor multiply these with B.
"""

from typing import Any, Final

import numba
import numpy as np

from amalgam.engine.cpu.compiler import Factors, Floats, Halves, Indices, compiled_together, inner
from amalgam.engine.cpu.halves import rounded, widened

_ZERO: Final = np.float32(0)
_ZERO_ROWS: Final = np.int64(0)


@compiled_together
def shrink_runs(
    x: Halves,
    runs: Indices,
    down: Factors,
    blocks: Indices,
    scales: Floats,
    scale: float,
    hidden: Halves,
    threads: int,
) -> None:
    """hidden[r] = scale · scales[s] · x[r] @ down[s]ᵀ for the rows r of each run's slot s, and no other row.

    Args:
        x: [rows, in].
        runs: [n, 3]: slot, first row, row after the last.
        down: [slots, rank, in].
        blocks: [slots, slices, 4], as in `loops.add_low_rank`.
        scales: [slots, rank].
        scale: Of the sum.
        hidden: [rows, ≥ 2 · rank]. Of a slot of rank n, columns 0 to n are the values rounded, n to 2n what is left.
        threads: Each takes as many rows.
    """
    total = _ZERO_ROWS
    for g in range(runs.shape[0]):
        total += (runs[g, 2] - runs[g, 1] + 3) // 4
    for t in numba.prange(threads):
        wide = np.empty((4, x.shape[1]), np.float32)
        first, stop, before = total * t // threads, total * (t + 1) // threads, _ZERO_ROWS
        for g in range(runs.shape[0]):
            slot, start, end = runs[g, 0], runs[g, 1], runs[g, 2]
            count = (end - start + 3) // 4
            rank = blocks[slot, blocks.shape[1] - 1, 1]
            for k in range(max(first - before, 0), min(stop - before, count)):
                _shrink_four(x, start + 4 * k, end, down[slot], rank, scales[slot], np.float32(scale), wide, hidden)
            before += count


@inner
def _shrink_four(
    x: Halves, row: int, end: int, down: Factors, rank: int, scales: Floats, scale: Any, wide: Floats, hidden: Halves
) -> None:
    """Four rows from ``row`` on, of which those from ``end`` on are the last one again."""
    rows = (row, min(row + 1, end - 1), min(row + 2, end - 1), min(row + 3, end - 1))
    for at in range(4):
        given, opened = x[rows[at]], wide[at]
        for k in range(opened.shape[0]):
            opened[k] = widened(given[k])
    r = 0
    while r + 4 <= rank:
        _four_ranks(down, r, rank, scales, scale, wide, hidden, rows)
        r += 4
    while r < rank:
        _one_rank(down, r, rank, scales[r] * scale, wide, hidden, rows)
        r += 1


@inner
def _four_ranks(
    down: Factors, r: int, rank: int, scales: Floats, scale: Any, wide: Floats, hidden: Halves, rows: Any
) -> None:
    """Sixteen sums at once: a processor with units for bfloat16 has registers for them."""
    x0, x1, x2, x3 = wide[0], wide[1], wide[2], wide[3]
    f0, f1, f2, f3 = down[r], down[r + 1], down[r + 2], down[r + 3]
    a0, a1, a2, a3 = _ZERO, _ZERO, _ZERO, _ZERO
    b0, b1, b2, b3 = _ZERO, _ZERO, _ZERO, _ZERO
    c0, c1, c2, c3 = _ZERO, _ZERO, _ZERO, _ZERO
    d0, d1, d2, d3 = _ZERO, _ZERO, _ZERO, _ZERO
    for k in range(x0.shape[0]):
        w0, w1, w2, w3 = widened(f0[k]), widened(f1[k]), widened(f2[k]), widened(f3[k])
        v0, v1, v2, v3 = x0[k], x1[k], x2[k], x3[k]
        a0 += v0 * w0
        a1 += v1 * w0
        a2 += v2 * w0
        a3 += v3 * w0
        b0 += v0 * w1
        b1 += v1 * w1
        b2 += v2 * w1
        b3 += v3 * w1
        c0 += v0 * w2
        c1 += v1 * w2
        c2 += v2 * w2
        c3 += v3 * w2
        d0 += v0 * w3
        d1 += v1 * w3
        d2 += v2 * w3
        d3 += v3 * w3
    _put_four(hidden, rows, r, rank, a0, a1, a2, a3, scales[r] * scale)
    _put_four(hidden, rows, r + 1, rank, b0, b1, b2, b3, scales[r + 1] * scale)
    _put_four(hidden, rows, r + 2, rank, c0, c1, c2, c3, scales[r + 2] * scale)
    _put_four(hidden, rows, r + 3, rank, d0, d1, d2, d3, scales[r + 3] * scale)


@inner
def _one_rank(down: Factors, r: int, rank: int, scale: Any, wide: Floats, hidden: Halves, rows: Any) -> None:
    x0, x1, x2, x3, factors = wide[0], wide[1], wide[2], wide[3], down[r]
    a0, a1, a2, a3 = _ZERO, _ZERO, _ZERO, _ZERO
    for k in range(x0.shape[0]):
        factor = widened(factors[k])
        a0 += x0[k] * factor
        a1 += x1[k] * factor
        a2 += x2[k] * factor
        a3 += x3[k] * factor
    _put_four(hidden, rows, r, rank, a0, a1, a2, a3, scale)


@inner
def _put_four(
    hidden: Halves, rows: Any, r: int, rank: int, first: Any, second: Any, third: Any, fourth: Any, scale: Any
) -> None:
    _put(hidden[rows[0]], r, rank, first * scale)
    _put(hidden[rows[1]], r, rank, second * scale)
    _put(hidden[rows[2]], r, rank, third * scale)
    _put(hidden[rows[3]], r, rank, fourth * scale)


@inner
def _put(row: Halves, r: int, rank: int, value: Any) -> None:
    near = rounded(value)
    row[r], row[rank + r] = near, rounded(value - widened(near))


def warm_up(threads: int) -> None:
    """Compile, or load what was compiled before, ahead of the first request; after `loops.warm_up`.

    Args:
        threads: As many as torch uses.
    """
    half = np.zeros((1, 1, 1), np.uint16)
    runs, blocks = np.array([[0, 0, 1]], np.int64), np.array([[[0, 1, 0, 1]]], np.int64)
    shrink_runs(half[0], runs, half, blocks, np.ones((1, 1), np.float32), 1.0, np.zeros((1, 2), np.uint16), threads)
