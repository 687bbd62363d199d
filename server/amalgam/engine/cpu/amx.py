"""Instructions of Intel's tiles (AMX), for use in loops that numba compiles.

A tile is 16 rows of 64 bytes. A *square* is 32 rows by 32 columns of float32 sums, which tiles 0 to 3 hold; tiles 4
and 5 take 32 rows of the left factor, 6 and 7 take 32 columns of the right one, 32 values of bfloat16 at a time. The
right factor is packed as `vectors` says.

numba keeps a loop's compiled code until the loop's own file changes. Who changes this file changes those that use it.
Names and operands of the instructions are LLVM's (``IntrinsicsX86.td``); what they do is in Intel's "Architecture
Instruction Set Extensions Programming Reference", chapter 3.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from amalgam.engine.cpu.vectors import (
    BYTE,
    FLOATS,
    LINE_BYTES,
    LONG,
    NOTHING,
    call,
    fetch,
    in_two,
    moved,
    place,
    read,
    rounded,
    twice,
    write,
)

Settings = NDArray[np.uint8]
TILE: Final = 16
"""A tile has so many rows, and its float32 sums have as many columns."""
SQUARE: Final = 2 * TILE
"""A square has so many rows and columns, and a tile's row so many values."""
_PALETTE: Final = 1
_ROW_BYTES: Final = slice(16, 32)
_ROWS: Final = slice(48, 56)
"""These bytes of the settings say how long a row of each tile is, and how many rows it has."""
_SUMS: Final = (0, 1, 2, 3)
_LEFT: Final = (4, 5)
_RIGHT: Final = (6, 7)


def settings() -> Settings:
    """What `configure` takes: eight tiles of 16 rows of 64 bytes."""
    values = np.zeros(64, np.uint8)
    values[0] = _PALETTE
    values[_ROW_BYTES].view(np.uint16)[:] = LINE_BYTES
    values[_ROWS] = TILE
    return values


def _floats(context: Any, builder: Any, signature: Any, operands: Any, at: int, part: int = 0) -> Any:
    """Sixteen numbers of the array that is operand ``at``, from the item on that the next one says, or 16 later."""
    start = place(context, builder, signature.args[at], operands[at], operands[at + 1])
    return read(builder, FLOATS, moved(builder, start, part * LINE_BYTES))


def _tile(number: int) -> Any:
    return ir.Constant(BYTE, number)


@intrinsic  # type: ignore[untyped-decorator]
def configure(_typing: Any, settings: Any) -> Any:
    """Take tiles into use in this thread, as the 64 bytes of `settings()` say."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        start = ir.Constant(LONG, 0)
        call(builder, "llvm.x86.ldtilecfg", NOTHING, place(context, builder, signature.args[0], operands[0], start))
        return context.get_dummy_value()

    return types.void(settings), generate


@intrinsic  # type: ignore[untyped-decorator]
def release(_typing: Any) -> Any:
    """Give tiles back; a thread that keeps them makes each change of threads dearer."""

    def generate(context: Any, builder: Any, _signature: Any, _operands: Any) -> Any:
        call(builder, "llvm.x86.tilerelease", NOTHING)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def begin_square(_typing: Any) -> Any:
    """Set all sums to zero."""

    def generate(context: Any, builder: Any, _signature: Any, _operands: Any) -> Any:
        for number in _SUMS:
            call(builder, "llvm.x86.tilezero", NOTHING, _tile(number))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def add_to_square(_typing: Any, left: Any, left_at: Any, left_row: Any, right: Any, right_at: Any) -> Any:
    """Add the products of 32 rows of ``left``, 32 values of each, with 32 packed columns of ``right``.

    What is read of ``right`` is marked as not used again soon, so that ``left`` stays in the first cache.

    Args:
        left_at, right_at: The item of each array to begin with, counted through all axes.
        left_row: So many bytes lie between two rows of ``left``.
    """
    index = types.int64
    return types.void(left, index, index, right, index), _adding(_RIGHT, "llvm.x86.tileloaddt164")


@intrinsic  # type: ignore[untyped-decorator]
def add_to_half(_typing: Any, left: Any, left_at: Any, left_row: Any, right: Any, right_at: Any) -> Any:
    """Do `add_to_square` for the first 16 of the columns, without the mark."""
    index = types.int64
    return types.void(left, index, index, right, index), _adding(_RIGHT[:1], "llvm.x86.tileloadd64")


def _adding(tiles: tuple[int, ...], load_right: str) -> Any:
    """The code of a step, for as many tiles of the right factor."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        first, first_at, row, second, second_at = operands
        rows = place(context, builder, signature.args[0], first, first_at)
        lower = moved(builder, rows, builder.mul(row, ir.Constant(LONG, TILE)))
        columns = place(context, builder, signature.args[3], second, second_at)
        beside = moved(builder, columns, ir.Constant(LONG, LINE_BYTES))
        pairs = ir.Constant(LONG, 2 * LINE_BYTES)
        # Tiles of both factors by turns, as they are needed.
        for left, start, right, address in zip(_LEFT, (rows, lower), _RIGHT, (columns, beside), strict=True):
            if right in tiles:
                call(builder, load_right, NOTHING, _tile(right), address, pairs)
            call(builder, "llvm.x86.tileloadd64", NOTHING, _tile(left), start, row)
        for number in _SUMS:
            left, right = _LEFT[number // 2], _RIGHT[number % 2]
            if right in tiles:
                call(builder, "llvm.x86.tdpbf16ps", NOTHING, *map(_tile, (number, left, right)))
        return context.get_dummy_value()

    return generate


@intrinsic  # type: ignore[untyped-decorator]
def end_square(_typing: Any, sums: Any, at: Any) -> Any:
    """Write the sums, row after row, from item ``at`` of an array of float32 on."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        start = place(context, builder, signature.args[0], *operands)
        for number in _SUMS:
            down, right = number // 2 * TILE * SQUARE * 4, number % 2 * LINE_BYTES
            address, row = moved(builder, start, ir.Constant(LONG, down + right)), ir.Constant(LONG, SQUARE * 4)
            call(builder, "llvm.x86.tilestored64", NOTHING, _tile(number), address, row)
        return context.get_dummy_value()

    return types.void(sums, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def put_rounded(_typing: Any, sums: Any, sums_at: Any, bias: Any, bias_at: Any, y: Any, y_at: Any) -> Any:
    """Put 32 sums, each with its bias added, as bfloat16: rounded, of two as near to the even one."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        halves = [
            builder.fadd(*(_floats(context, builder, signature, operands, at, part) for at in (0, 2)))
            for part in range(2)
        ]
        target = place(context, builder, signature.args[4], *operands[4:])
        write(builder, rounded(builder, *halves), target, align=2)
        return context.get_dummy_value()

    index = types.int64
    return types.void(sums, index, bias, index, y, index), generate


@intrinsic  # type: ignore[untyped-decorator]
def put_in_two(
    _typing: Any, sums: Any, sums_at: Any, factors: Any, factors_at: Any, halves: Any, halves_at: Any
) -> Any:
    """Multiply 16 sums, each with its factor, and put them as `vectors.in_two` gives them."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        value = builder.fmul(*(_floats(context, builder, signature, operands, at) for at in (0, 2)))
        write(builder, in_two(builder, value), place(context, builder, signature.args[4], *operands[4:]))
        return context.get_dummy_value()

    index = types.int64
    return types.void(sums, index, factors, index, halves, index), generate


@intrinsic  # type: ignore[untyped-decorator]
def put_twice(_typing: Any, halves: Any, halves_at: Any, pairs: Any, pairs_at: Any) -> Any:
    """Put each of 32 bfloat16 numbers into both halves of 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        target = place(context, builder, signature.args[2], *operands[2:])
        for part, both in enumerate(twice(builder, place(context, builder, signature.args[0], *operands[:2]))):
            write(builder, both, moved(builder, target, part * LINE_BYTES))
        return context.get_dummy_value()

    index = types.int64
    return types.void(halves, index, pairs, index), generate


@intrinsic  # type: ignore[untyped-decorator]
def fetch_to_read(_typing: Any, values: Any, at: Any) -> Any:
    """Have the line of an item, which may be past the array's end, brought into the second cache."""
    return types.void(values, types.int64), _fetching(to_write=False)


@intrinsic  # type: ignore[untyped-decorator]
def fetch_to_write(_typing: Any, values: Any, at: Any) -> Any:
    """The same of a line that is about to be written."""
    return types.void(values, types.int64), _fetching(to_write=True)


def _fetching(*, to_write: bool) -> Any:
    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        fetch(builder, place(context, builder, signature.args[0], *operands), to_write=to_write)
        return context.get_dummy_value()

    return generate
