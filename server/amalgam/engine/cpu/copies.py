"""Loops that read adapters' factors into the copies that are multiplied; see `loops` for the products."""

from typing import Any, Final

import numpy as np

from amalgam.engine.cpu.compiler import HALF_BITS, Bits, Factors, Floats, Indices, compiled, inner

_ZERO: Final = np.float32(0)
_NONE: Final = np.uint64(0)
_TILE: Final = np.uint64(32)
"""So many columns are turned at once."""


@inner
def _widened(bits: Any, shift: Any) -> Any:
    """The float32 whose upper part these bits are."""
    return np.uint32(np.uint32(bits) << np.uint32(shift)).view(np.float32)


@compiled
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


@compiled
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


@compiled
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


def warm_up(*, in_halves: bool) -> None:
    """Compile, or load what was compiled before, ahead of the first adapter.

    Args:
        in_halves: Whether all factors are kept as bfloat16; else some are, and some are float32.
    """
    block = np.array([0, 1, 0, 1], np.int64)
    half, wide = np.zeros((1, 1, 1), np.uint16), np.zeros((1, 1, 1), np.float32)
    copy_slice(half[0], half[0], 0, block, half, half)
    if in_halves:
        return
    used_rows(wide[None], 0)
    copy_slice(wide[0], wide[0], 0, block, wide, wide)
    for stored, shift in ((half[0], HALF_BITS), (wide[0].view(np.uint32), 0)):
        take_slice(stored, stored, (shift, shift), 1.0, 0, block, wide, wide)
