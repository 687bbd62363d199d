"""A layer's product in vectors of bfloat16 (AVX-512 BF16) with what LoRA adds to it, in one pass over the rows.

For long prompts a layer writes more than a core's caches hold, and adding LoRA to it afterwards reads and writes all of
it once more. Here the sums of some rows and columns stay in registers until what LoRA adds is among them: a block of
rows is multiplied with A first, and what lies between goes on as two bfloat16 numbers, itself and what its rounding
left, beside B twice. Sums are float32, and each result is rounded once.
"""

from typing import Any, Final, NamedTuple

import numba
import numpy as np

from amalgam.engine.cpu.compiler import Floats, Indices, Words, compiled_together, inner
from amalgam.engine.cpu.dots import STRIP_ROWS, add_totals, put_added, put_strip, split_totals
from amalgam.engine.cpu.one_pass import ROWS_AT_ONCE, Added, Layer, lined_up, row_groups, share, used_ranks
from amalgam.engine.cpu.vectors import COLUMNS, FLOAT_BYTES, HALF_BYTES, LANES, LINE_BYTES, PAIR_BYTES, address_of

STEPS_AT_ONCE: Final = 32
"""So many times 32 inputs of 16 ranks of A stay in the first cache while rows go past them."""


class _Scratch(NamedTuple):
    """One thread's memory.

    Attributes:
        parts: [rows at once, 7], of a block of rows those of one slot each: slot, its rank, first row, row after; and
            of the ranks that change some columns: the bytes before them in a row of hidden, how many they are, and the
            address of the first one's B.
        factors: [16], what some products with A are multiplied with.
        hidden: [rows at once, ranks], what lies between A and B, each value as two.
        starts: [rows of a strip, 32], what its sums begin with.
    """

    parts: Indices
    factors: Floats
    hidden: Words
    starts: Words


class _Addresses(NamedTuple):
    """Where the memory of a layer, of its LoRA and of a thread's scratch begins, and how many bytes its rows take.

    Attributes:
        up: B of all slots.
        ranks: Rows of B of a slot.
        steps: Pairs of a row of x.
    """

    x: int
    x_row: int
    y: int
    y_row: int
    weight: int
    bias: int
    up: int
    up_row: int
    ranks: int
    hidden: int
    hidden_row: int
    starts: int
    steps: int


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
    scratch = _new_scratch(added.down.shape[1])
    at = _addresses(layer, added, scratch)
    for start in range(first, stop, ROWS_AT_ONCE):
        count = _divide(spans, added, start, min(stop, start + ROWS_AT_ONCE), scratch.parts)
        for part in range(count):
            _shrink(at, added, scratch, part, scale)
        # What has been given an address has to be there: scratch is given on for that.
        for block in range(left, right):
            _use(at, added.blocks, scratch.parts, count, block)
            _columns(at, scratch, count, block)


@inner
def _new_scratch(rank: int) -> _Scratch:
    ranks = (rank + LANES - 1) // LANES * LANES
    return _Scratch(
        np.empty((ROWS_AT_ONCE, 7), np.int64),
        np.zeros(LANES, np.float32),
        lined_up(ROWS_AT_ONCE * ranks).reshape((ROWS_AT_ONCE, ranks)),
        lined_up(STRIP_ROWS * COLUMNS),
    )


@inner
def _addresses(layer: Layer, added: Added, scratch: _Scratch) -> _Addresses:
    length, width = layer.x.shape[1], layer.y.shape[1]
    return _Addresses(
        address_of(layer.x, 0),
        length * HALF_BYTES,
        address_of(layer.y, 0),
        width * HALF_BYTES,
        address_of(layer.weight, 0),
        address_of(layer.bias, 0),
        address_of(added.up, 0),
        added.up.shape[2] * HALF_BYTES,
        added.up.shape[1],
        address_of(scratch.hidden, 0),
        scratch.hidden.shape[1] * PAIR_BYTES,
        address_of(scratch.starts, 0),
        length // 2,
    )


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
def _shrink(at: _Addresses, added: Added, scratch: _Scratch, part: int, scale: Any) -> None:
    """Write hidden = scale · scales · x @ Aᵀ for the rows of a part: 16 ranks at a time, of some inputs."""
    parts, factors = scratch.parts, scratch.factors
    slot, rank, start, first, stop = parts[part, 0], parts[part, 1], parts[0, 2], parts[part, 2], parts[part, 3]
    scratch.hidden[first - start : stop - start] = np.uint32(0)
    for low in range(0, rank, LANES):
        ranks, given = min(LANES, rank - low), address_of(factors, 0)
        for r in range(ranks):
            factors[r] = added.scales[slot, low + r] * scale
        down, hidden = address_of(added.down, (slot * at.ranks + low) * at.steps), at.hidden + low * PAIR_BYTES
        for step in range(0, at.steps // LANES, STEPS_AT_ONCE):
            along, steps = step * LINE_BYTES, min(STEPS_AT_ONCE, at.steps // LANES - step)
            for row in range(first, stop):
                x, totals = at.x + row * at.x_row + along, hidden + (row - start) * at.hidden_row
                add_totals(ranks, x, (down + along, at.x_row), steps, totals)
        for row in range(first - start, stop - start):
            split_totals(hidden + row * at.hidden_row, given)


@inner
def _use(at: _Addresses, blocks: Indices, parts: Indices, count: int, block: int) -> None:
    """Write which ranks of each part change 32 columns."""
    for p in range(count):
        low, high = used_ranks(blocks, parts[p, 0], parts[p, 1], block)
        parts[p, 4], parts[p, 5] = low * PAIR_BYTES, high - low
        parts[p, 6] = at.up + (parts[p, 0] * at.ranks + low) * at.up_row + block * COLUMNS * HALF_BYTES


@inner
def _columns(at: _Addresses, scratch: _Scratch, count: int, block: int) -> None:
    """32 columns of a block of rows, which has so many parts: strip by strip, as even as they may be."""
    parts, column = scratch.parts, block * COLUMNS
    start, rows = parts[0, 2], parts[count - 1, 3] - parts[0, 2]
    strips = (rows + STRIP_ROWS - 1) // STRIP_ROWS
    weight, bias, row_bytes = at.weight + column * at.x_row, at.bias + column * FLOAT_BYTES, COLUMNS * FLOAT_BYTES
    # Of the columns after these, each step of each strip fetches as much as brings all of them.
    fetched = (COLUMNS * PAIR_BYTES + strips - 1) // strips
    part, ahead = 0, weight + COLUMNS * at.x_row
    for s in range(strips):
        row, end = start + rows * s // strips, start + rows * (s + 1) // strips
        while parts[part, 3] <= row:
            part += 1
        starts = (bias, 0)
        if parts[part, 1] > 0 or parts[part, 3] < end:
            first, p, starts = row, part, (at.starts, row_bytes)
            # No function of its own: its arrays would be counted.
            while first < end:
                until = min(end, parts[p, 3])
                hidden = (at.hidden + (first - start) * at.hidden_row + parts[p, 4], at.hidden_row)
                sums = (at.starts + (first - row) * row_bytes, row_bytes)
                put_added(until - first, hidden, (parts[p, 6], at.up_row), parts[p, 5], bias, sums)
                first, p = until, p + 1
        x, y = at.x + row * at.x_row, at.y + row * at.y_row + column * HALF_BYTES
        put_strip(end - row, (x, at.x_row), weight, at.steps, (ahead, fetched), starts, (y, at.y_row))
        ahead += at.steps * fetched
