"""What a layer's product and LoRA's in one pass are made of, whatever the instructions: `amx_loops`, `dot_loops`.

numba keeps a loop's compiled code until the loop's own file changes. Who changes this file changes those that use it.
"""

from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from amalgam.engine.cpu.compiler import Floats, Halves, Indices, Words, inner
from amalgam.engine.cpu.vectors import COLUMNS, LANES, first_of_line

ROWS_AT_ONCE: Final = 256
"""A block of so many rows stays in a core's second cache while the weight goes past it."""


class Layer(NamedTuple):
    """Rows, and what multiplies them.

    Attributes:
        x: [rows, in]; in is a multiple of 32.
        weight: [out · in], packed as `vectors` says; out is a multiple of 32.
        bias: [out].
        y: [rows, out], to be written.
    """

    x: Halves
    weight: Halves
    bias: Floats
    y: Halves


class Added(NamedTuple):
    """LoRA's factors of all slots.

    Attributes:
        down: [slots, rank, in / 2], pairs of bfloat16.
        up: [slots, rank, out].
        blocks: [slots, slices, 4], as in `loops.add_low_rank`.
        scales: [slots, rank].
    """

    down: Words
    up: Halves
    blocks: Indices
    scales: Floats


class Multiply(Protocol):
    """One pass: y[r] = x[r] @ weightᵀ + bias + scale · (scales[s] · x[r] @ down[s]ᵀ) @ up[s], s being the slot of r."""

    def __call__(self, layer: Layer, spans: Indices, added: Added, scale: float, threads: int) -> None:
        """Write y.

        Args:
            spans: [n, 3]: slot, or -1 where nothing is added; first row, row after the last. All rows, in order.
            threads: They share rows, and columns where there are few rows.
        """


@inner
def row_groups(rows: int, threads: int) -> int:
    """Give into how many parts rows are divided, of which each is shared by as many threads."""
    most = max(1, min(threads, rows // ROWS_AT_ONCE))
    while threads % most != 0:
        most -= 1
    return most


@inner
def share(rows: int, group: int, groups: int) -> Any:
    """Give the first row of a group and the row after its last: whole squares of 32 rows, but at the end."""
    count = (rows + COLUMNS - 1) // COLUMNS
    return min(rows, count * group // groups * COLUMNS), min(rows, count * (group + 1) // groups * COLUMNS)


@inner
def lined_up(count: int) -> Words:
    """Give so many items, not set to anything, from the beginning of a line of the cache on."""
    items = np.empty(count + LANES, np.uint32)
    first = first_of_line(items)
    return items[first : first + count]


@inner
def used_ranks(blocks: Indices, slot: int, rank: int, block: int) -> Any:
    """Give the first rank that changes 32 columns and the one after the last; none is as many of 0."""
    left, right = block * COLUMNS, (block + 1) * COLUMNS
    low, high = rank, 0
    for p in range(blocks.shape[1] if rank > 0 else 0):
        first, stop = blocks[slot, p, 0], blocks[slot, p, 1]
        if first < stop and blocks[slot, p, 2] < right and left < blocks[slot, p, 3]:
            low, high = min(low, first), max(high, stop)
    return (low, high) if low < high else (0, 0)
