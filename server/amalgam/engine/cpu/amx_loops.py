"""A layer's product on Intel's tiles (AMX) with what LoRA adds to it, in one pass over the rows.

For long prompts a layer writes more than a core's caches hold, and adding LoRA to it afterwards reads and writes all of
it once more, which takes a third of the layer's own time. Here a block of rows is multiplied with A while it is in the
cache for the layer's weight, and what lies between goes on as one more step of each sum: as two bfloat16 numbers,
itself and what its rounding left, beside B twice. Sums are float32, and each result is rounded once.
"""

from typing import Any, Final, NamedTuple

import numba
import numpy as np

from amalgam.engine.cpu.amx import (
    SQUARE,
    TILE,
    Settings,
    add_to_half,
    add_to_square,
    begin_square,
    configure,
    end_square,
    fetch_to_read,
    fetch_to_write,
    put_in_two,
    put_rounded,
    put_twice,
    release,
    settings,
)
from amalgam.engine.cpu.compiler import Floats, Halves, Indices, Words, compiled_together, inner
from amalgam.engine.cpu.one_pass import ROWS_AT_ONCE, Added, Layer, lined_up, row_groups, share, used_ranks

SQUARES_AT_ONCE: Final = 4
"""For each 32 rows, which stay in the first cache, so many times 32 columns are taken before the next rows."""

_LINE: Final = 32
"""A line of the cache holds so many values of bfloat16."""
_NONE: Final = np.uint32(0)
_ZERO: Final = np.float32(0)


class _Scratch(NamedTuple):
    """One thread's memory.

    Attributes:
        packed: [squares of ranks, in / 2, 32], A of one slot as a packed right factor.
        factors: [ranks], what its products are multiplied with.
        hidden: [rows at once, ranks], what lies between A and B, each value as two.
        expanded: [squares at once, ranks, 32], B of some columns, each value twice.
        ranks: [squares at once, 2], first rank of those columns, and rank after the last.
        rest: [32, in], the last rows of a block where they are fewer than 32.
        sums: [2, 32, 32], of the square that is taken now and of the one before.
        pending: [4], the square to be written: first row, rows, its columns, and which of the sums are free.
    """

    packed: Words
    factors: Floats
    hidden: Words
    expanded: Words
    ranks: Indices
    rest: Halves
    sums: Floats
    pending: Indices


def multiply(layer: Layer, spans: Indices, added: Added, scale: float, threads: int) -> None:
    """Do what `one_pass.Multiply` says."""
    multiply_in_tiles(layer, spans, added, scale, settings(), threads)


@compiled_together
def multiply_in_tiles(
    layer: Layer, spans: Indices, added: Added, scale: float, configuration: Settings, threads: int
) -> None:
    """Do what `one_pass.Multiply` says, with tiles as `amx.settings` gives them."""
    rows, squares = layer.x.shape[0], layer.y.shape[1] // SQUARE
    groups = row_groups(rows, threads)
    beside = threads // groups
    for t in numba.prange(groups * beside):
        configure(configuration)
        first, stop = share(rows, t // beside, groups)
        left, right = squares * (t % beside) // beside, squares * (t % beside + 1) // beside
        _multiply_rows(layer, spans, added, np.float32(scale), first, stop, left, right)
        release()


@inner
def _multiply_rows(
    layer: Layer, spans: Indices, added: Added, scale: Any, first: int, stop: int, left: int, right: int
) -> None:
    """One thread's rows and squares of columns."""
    scratch = _new_scratch(layer.x.shape[1], added.down.shape[1])
    known, known_rank = -1, 0
    for g in range(spans.shape[0]):
        slot, begin, end = spans[g, 0], max(first, spans[g, 1]), min(stop, spans[g, 2])
        rank = added.blocks[slot, added.blocks.shape[1] - 1, 1] if slot >= 0 else 0
        if rank > 0 and slot != known and begin < end:
            _pack(added, slot, rank, known_rank, scale, scratch)
            known, known_rank = slot, rank
        for start in range(begin, end, ROWS_AT_ONCE):
            after = min(end, start + ROWS_AT_ONCE)
            _keep_rest(layer.x, start, after, scratch.rest)
            if rank > 0:
                _shrink(layer, start, after, rank, scratch)
            for n in range(left, right, SQUARES_AT_ONCE):
                until = min(right, n + SQUARES_AT_ONCE)
                for k in range(until - n):
                    _expand(added, slot, rank, n + k, k, scratch)
                _columns(layer, start, after, n, until, scratch)
    _write_pending(layer, scratch)


@inner
def _new_scratch(length: int, rank: int) -> _Scratch:
    ranks = (rank + SQUARE - 1) // SQUARE * SQUARE
    packed = lined_up(ranks * length // 2).reshape((ranks // SQUARE, length // 2, SQUARE))
    packed[:] = _NONE
    return _Scratch(
        packed,
        np.zeros(ranks, np.float32),
        lined_up(ROWS_AT_ONCE * ranks).reshape((ROWS_AT_ONCE, ranks)),
        lined_up(SQUARES_AT_ONCE * ranks * SQUARE).reshape((SQUARES_AT_ONCE, ranks, SQUARE)),
        np.zeros((SQUARES_AT_ONCE, 2), np.int64),
        lined_up(SQUARE * length // 2).view(np.uint16).reshape((SQUARE, length)),
        lined_up(2 * SQUARE * SQUARE).view(np.float32).reshape((2, SQUARE, SQUARE)),
        np.zeros(4, np.int64),
    )


@inner
def _pack(added: Added, slot: int, rank: int, rank_before: int, scale: Any, scratch: _Scratch) -> None:
    """A of a slot as a packed right factor, with zeros where the slot before had more ranks."""
    factors, packed = scratch.factors, scratch.packed
    down, most = added.down[slot], max(rank, rank_before)
    factors[rank:most] = _ZERO
    for r in range(rank):
        factors[r] = added.scales[slot, r] * scale
    for square in range((most + SQUARE - 1) // SQUARE):
        first = square * SQUARE
        own, used = max(min(rank - first, SQUARE), 0), min(most - first, SQUARE)
        for k in range(down.shape[1]):
            columns = packed[square, k]
            for r in range(own):
                columns[r] = down[first + r, k]
            for r in range(own, used):
                columns[r] = _NONE


@inner
def _keep_rest(x: Halves, start: int, after: int, rest: Halves) -> None:
    """Copy the last rows of a block where they are fewer than 32; what is read past them comes to nothing."""
    whole = start + (after - start) // SQUARE * SQUARE
    for r in range(whole, after):
        rest[r - whole] = x[r]


@inner
def _shrink(layer: Layer, start: int, after: int, rank: int, scratch: _Scratch) -> None:
    """hidden[r - start] = factors · x[r] @ Aᵀ."""
    # The sums are needed here: what is in them is written first.
    _write_pending(layer, scratch)
    hidden, steps = scratch.hidden, layer.x.shape[1] // SQUARE
    for row in range(start, after, SQUARE):
        source, at = (layer.x, row * layer.x.shape[1]) if row + SQUARE <= after else (scratch.rest, 0)
        for square in range((rank + SQUARE - 1) // SQUARE):
            begin_square()
            is_half = rank - square * SQUARE <= TILE
            for k in range(steps):
                place = (square * steps + k) * TILE * SQUARE
                if is_half:
                    add_to_half(source, at + k * SQUARE, 2 * source.shape[1], scratch.packed, place)
                else:
                    add_to_square(source, at + k * SQUARE, 2 * source.shape[1], scratch.packed, place)
            end_square(scratch.sums, 0)
            for i in range(min(SQUARE, after - row)):
                for r in range(square * SQUARE, min((square + 1) * SQUARE, rank), TILE):
                    place = (row - start + i) * hidden.shape[1] + r
                    put_in_two(scratch.sums, i * SQUARE + r - square * SQUARE, scratch.factors, r, hidden, place)


@inner
def _expand(added: Added, slot: int, rank: int, square: int, at: int, scratch: _Scratch) -> None:
    """B of 32 columns as a packed right factor, each value twice, in whole tiles of the ranks that change them."""
    low, high = used_ranks(added.blocks, slot, rank, square)
    low, high = low // TILE * TILE, (high + TILE - 1) // TILE * TILE
    scratch.ranks[at, 0], scratch.ranks[at, 1] = low, high
    for r in range(low, high):
        if r < rank:
            row = (slot * added.up.shape[1] + r) * added.up.shape[2]
            put_twice(added.up, row + square * SQUARE, scratch.expanded, (at * scratch.expanded.shape[1] + r) * SQUARE)
        else:
            scratch.expanded[at, r] = _NONE


@inner
def _columns(layer: Layer, start: int, after: int, left: int, right: int, scratch: _Scratch) -> None:
    """Some squares of columns of a block of rows.

    While one square is summed up in tiles, vectors write the one before, and what comes next is fetched: the lines of
    this square's results, and of the weight of the columns after these.
    """
    x, weight, y, ranks = layer.x, layer.weight, layer.y, scratch.ranks
    steps, count = x.shape[1] // SQUARE, (after - start + SQUARE - 1) // SQUARE
    lines, written = (_LINE + count - 1) // count, (SQUARE + steps - 1) // steps
    for s in range(count):
        row = start + s * SQUARE
        rows = min(SQUARE, after - row)
        source, at = (x, row * x.shape[1]) if rows == SQUARE else (scratch.rest, 0)
        for n in range(left, right):
            ahead = (n + SQUARES_AT_ONCE) * steps * SQUARE * SQUARE + s * lines * steps * _LINE
            before_row, before_rows, before_n, free = _pending(scratch)
            begin_square()
            for k in range(steps):
                add_to_square(source, at + k * SQUARE, 2 * x.shape[1], weight, (n * steps + k) * SQUARE * SQUARE)
                for i in range(k * lines, (k + 1) * lines):
                    fetch_to_read(weight, ahead + i * _LINE)
                for i in range(k * written, min((k + 1) * written, rows)):
                    fetch_to_write(y, (row + i) * y.shape[1] + n * SQUARE)
                for i in range(k * written, min((k + 1) * written, before_rows)):
                    _write_row(layer, scratch.sums, before_row, before_n, free, i)
            for r in range(ranks[n - left, 0], ranks[n - left, 1], TILE):
                place = ((n - left) * scratch.expanded.shape[1] + r) * SQUARE
                between = s * SQUARE * scratch.hidden.shape[1] + r
                add_to_square(scratch.hidden, between, 4 * scratch.hidden.shape[1], scratch.expanded, place)
            end_square(scratch.sums, free * SQUARE * SQUARE)
            scratch.pending[0], scratch.pending[1], scratch.pending[2], scratch.pending[3] = row, rows, n, 1 - free


@inner
def _pending(scratch: _Scratch) -> Any:
    return scratch.pending[0], scratch.pending[1], scratch.pending[2], scratch.pending[3]


@inner
def _write_pending(layer: Layer, scratch: _Scratch) -> None:
    """The square that was summed up last."""
    row, rows, n, free = _pending(scratch)
    for i in range(rows):
        _write_row(layer, scratch.sums, row, n, free, i)
    scratch.pending[1] = 0


@inner
def _write_row(layer: Layer, sums: Floats, row: int, n: int, free: int, i: int) -> None:
    first, place = ((1 - free) * SQUARE + i) * SQUARE, (row + i) * layer.y.shape[1] + n * SQUARE
    put_rounded(sums, first, layer.bias, n * SQUARE, layer.y, place)
