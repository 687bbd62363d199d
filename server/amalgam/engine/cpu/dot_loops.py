"""A layer's product in vectors of bfloat16 (AVX-512 BF16) with what LoRA adds to it, in one pass over the rows.

For long prompts a layer writes more than a core's caches hold, and adding LoRA to it afterwards reads and writes all of
it once more. Here the sums of some rows and columns stay in registers until what LoRA adds is among them: a block of
rows is multiplied with A first, and what lies between goes on as two bfloat16 numbers, itself and what its rounding
left, beside B twice. Sums are float32, and each result is rounded once.
"""

from typing import Any, NamedTuple

import numba
import numpy as np

from amalgam.engine.cpu.compiler import Floats, Indices, Words, compiled_together, inner
from amalgam.engine.cpu.dots import STRIP_ROWS, put_half_of_hidden, put_hidden, put_strip
from amalgam.engine.cpu.one_pass import (
    ROWS_AT_ONCE,
    Added,
    Layer,
    expand,
    lined_up,
    pack,
    row_groups,
    share,
    used_ranks,
)
from amalgam.engine.cpu.vectors import COLUMNS, LANES


class _Scratch(NamedTuple):
    """One thread's memory.

    Attributes:
        parts: [rows at once, 4], of a block of rows those of one slot each: slot, its rank, first row, row after.
        packed: [blocks of ranks, in / 2, 32], A of one slot as a packed right factor.
        factors: [ranks], what its products are multiplied with.
        hidden: [rows at once, ranks], what lies between A and B, each value as two.
        expanded: [1, ranks, 32], B of 32 columns, each value twice.
    """

    parts: Indices
    packed: Words
    factors: Floats
    hidden: Words
    expanded: Words


@compiled_together
def multiply(layer: Layer, spans: Indices, added: Added, scale: float, threads: int) -> None:
    """Do what `one_pass.Multiply` says."""
    rows, blocks = layer.x.shape[0], layer.y.shape[1] // COLUMNS
    groups = row_groups(rows, threads)
    beside = threads // groups
    for t in numba.prange(groups * beside):
        first, stop = share(rows, t // beside, groups)
        left, right = blocks * (t % beside) // beside, blocks * (t % beside + 1) // beside
        _multiply_rows(layer, spans, added, np.float32(scale), first, stop, left, right)


@inner
def _multiply_rows(
    layer: Layer, spans: Indices, added: Added, scale: Any, first: int, stop: int, left: int, right: int
) -> None:
    """One thread's rows and blocks of columns."""
    scratch = _new_scratch(layer.x.shape[1], added.down.shape[1])
    known, known_rank = -1, 0
    for start in range(first, stop, ROWS_AT_ONCE):
        parts = scratch.parts[: _divide(spans, added, start, min(stop, start + ROWS_AT_ONCE), scratch.parts)]
        strips = 0
        for p in range(parts.shape[0]):
            slot, rank, begin, end = parts[p]
            strips += _strips(begin, end)
            if rank > 0 and slot != known:
                pack(added, slot, rank, known_rank, scale, scratch.factors, scratch.packed)
                known, known_rank = slot, rank
            if rank > 0:
                _shrink(layer, begin, end, begin - start, rank, scratch)
        for block in range(left, right):
            _columns(layer, added, parts, strips, block, scratch)


@inner
def _divide(spans: Indices, added: Added, start: int, after: int, parts: Indices) -> int:
    """Write the parts of a block of rows, and give how many there are."""
    count = 0
    for g in range(spans.shape[0]):
        slot, begin, end = spans[g, 0], max(start, spans[g, 1]), min(after, spans[g, 2])
        if begin < end:
            parts[count, 0], parts[count, 2], parts[count, 3] = slot, begin, end
            parts[count, 1] = added.blocks[slot, added.blocks.shape[1] - 1, 1] if slot >= 0 else 0
            count += 1
    return count


@inner
def _new_scratch(length: int, rank: int) -> _Scratch:
    blocks = (rank + COLUMNS - 1) // COLUMNS
    ranks = blocks * COLUMNS
    packed = lined_up(ranks * length // 2).reshape((blocks, length // 2, COLUMNS))
    packed[:] = np.uint32(0)
    return _Scratch(
        np.empty((ROWS_AT_ONCE, 4), np.int64),
        packed,
        np.zeros(ranks, np.float32),
        lined_up(ROWS_AT_ONCE * ranks).reshape((ROWS_AT_ONCE, ranks)),
        lined_up(ranks * COLUMNS).reshape((1, ranks, COLUMNS)),
    )


@inner
def _strips(begin: int, end: int) -> int:
    """Into how many strips rows are divided."""
    return (end - begin + STRIP_ROWS - 1) // STRIP_ROWS


@inner
def _strip(begin: int, end: int, strip: int) -> Any:
    """The first row of a strip, and its rows: as many in each as there may be, or one less."""
    strips = _strips(begin, end)
    first = begin + (end - begin) * strip // strips
    return first, begin + (end - begin) * (strip + 1) // strips - first


@inner
def _shrink(layer: Layer, begin: int, end: int, at: int, rank: int, scratch: _Scratch) -> None:
    """hidden[r - begin + at] = factors · x[r] @ Aᵀ."""
    length, ranks = layer.x.shape[1], scratch.hidden.shape[1]
    for block in range((rank + COLUMNS - 1) // COLUMNS):
        first = block * COLUMNS
        packed, factors = (scratch.packed, first * length // 2), (scratch.factors, first)
        for s in range(_strips(begin, end)):
            row, count = _strip(begin, end, s)
            x, hidden = (layer.x, row * length, length), (scratch.hidden, (row - begin + at) * ranks + first, ranks)
            if rank - first <= LANES:
                put_half_of_hidden(count, x, packed, length // 2, factors, hidden)
            else:
                put_hidden(count, x, packed, length // 2, factors, hidden)


@inner
def _columns(layer: Layer, added: Added, parts: Indices, strips: int, block: int, scratch: _Scratch) -> None:
    """32 columns of a block of rows, which has so many strips."""
    length, width, between = layer.x.shape[1], layer.y.shape[1], scratch.hidden.shape[1]
    column = block * COLUMNS
    weight, bias = (layer.weight, column * length), (layer.bias, column)
    # Of the columns after these, each step of each strip fetches as much as brings all of them.
    fetched = (2 * COLUMNS + strips - 1) // strips
    ahead = (column + COLUMNS) * length
    for p in range(parts.shape[0]):
        slot, rank, begin, end = parts[p]
        low, high = used_ranks(added, slot, rank, block)
        expand(added, slot, rank, block, (low, high), scratch.expanded, 0)
        for s in range(_strips(begin, end)):
            row, count = _strip(begin, end, s)
            x, y = (layer.x, row * length, length), (layer.y, row * width + column, width)
            hidden = (scratch.hidden, (row - parts[0, 2]) * between + low, between)
            up, fetch = (scratch.expanded, low * COLUMNS), (layer.weight, ahead, fetched)
            put_strip(count, x, weight, length // 2, fetch, hidden, up, high - low, bias, y)
            ahead += length // 2 * fetched
