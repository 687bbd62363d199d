"""Instructions of Intel's tiles (AMX) and of vectors of bfloat16, for use in loops that numba compiles.

A tile is 16 rows of 64 bytes. A *square* is 32 rows by 32 columns of float32 sums, which tiles 0 to 3 hold; tiles 4
and 5 take 32 rows of the left factor, 6 and 7 take 32 columns of the right one, 32 values of bfloat16 at a time. The
right factor is *packed*: blocks of 32 columns, in each the pairs of neighbouring rows one after the other, in each the
columns, and of each column the two values side by side.

numba keeps a loop's compiled code until the loop's own file changes. Who changes this file changes those that use it.
Names and operands of the instructions are LLVM's (``IntrinsicsX86.td``); what they do is in Intel's "Architecture
Instruction Set Extensions Programming Reference", chapter 3.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Settings = NDArray[np.uint8]
TILE: Final = 16
"""A tile has so many rows, and its float32 sums have as many columns."""
SQUARE: Final = 2 * TILE
"""A square has so many rows and columns, and a tile's row so many values."""
_TILE_BYTES: Final = 64
_PALETTE: Final = 1
_ROW_BYTES: Final = slice(16, 32)
_ROWS: Final = slice(48, 56)
"""These bytes of the settings say how long a row of each tile is, and how many rows it has."""
_SUMS: Final = (0, 1, 2, 3)
_LEFT: Final = (4, 5)
_RIGHT: Final = (6, 7)
_READ: Final = 0
_WRITE: Final = 1
_SECOND_CACHE: Final = 2
_DATA: Final = 1
_BYTE: Final = ir.IntType(8)
_LONG: Final = ir.IntType(64)
_WORD: Final = ir.IntType(32)
_ADDRESS: Final = _BYTE.as_pointer()
_NOTHING: Final = ir.VoidType()
_FLOATS: Final = ir.VectorType(ir.FloatType(), TILE)


class _BFloat16(ir.types.Type):  # type: ignore[misc]
    """LLVM's type, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


def settings() -> Settings:
    """What `configure` takes: eight tiles of 16 rows of 64 bytes."""
    values = np.zeros(64, np.uint8)
    values[0] = _PALETTE
    values[_ROW_BYTES].view(np.uint16)[:] = _TILE_BYTES
    values[_ROWS] = TILE
    return values


def _call(builder: Any, name: str, result: Any, *operands: Any) -> Any:
    function = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), operands)


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """The address of an array's item, counted through all of its axes."""
    items = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(items, [index]), _ADDRESS)


def _moved(builder: Any, address: Any, distance: Any) -> Any:
    return builder.gep(address, [distance])


def _floats(context: Any, builder: Any, signature: Any, operands: Any, place: int, part: int = 0) -> Any:
    """Sixteen numbers of the array that is operand ``place``, from the item on that the next one says, or 16 later."""
    start = _place(context, builder, signature.args[place], operands[place], operands[place + 1])
    address = _moved(builder, start, ir.Constant(_LONG, part * _TILE_BYTES))
    return builder.load(builder.bitcast(address, _FLOATS.as_pointer()), align=4)


def _tile(number: int) -> Any:
    return ir.Constant(_BYTE, number)


@intrinsic  # type: ignore[untyped-decorator]
def configure(_typing: Any, settings: Any) -> Any:
    """Take tiles into use in this thread, as the 64 bytes of `settings()` say."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        start = ir.Constant(_LONG, 0)
        _call(builder, "llvm.x86.ldtilecfg", _NOTHING, _place(context, builder, signature.args[0], operands[0], start))
        return context.get_dummy_value()

    return types.void(settings), generate


@intrinsic  # type: ignore[untyped-decorator]
def release(_typing: Any) -> Any:
    """Give tiles back; a thread that keeps them makes each change of threads dearer."""

    def generate(context: Any, builder: Any, _signature: Any, _operands: Any) -> Any:
        _call(builder, "llvm.x86.tilerelease", _NOTHING)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def begin_square(_typing: Any) -> Any:
    """Set all sums to zero."""

    def generate(context: Any, builder: Any, _signature: Any, _operands: Any) -> Any:
        for number in _SUMS:
            _call(builder, "llvm.x86.tilezero", _NOTHING, _tile(number))
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
        rows = _place(context, builder, signature.args[0], first, first_at)
        lower = _moved(builder, rows, builder.mul(row, ir.Constant(_LONG, TILE)))
        columns = _place(context, builder, signature.args[3], second, second_at)
        beside = _moved(builder, columns, ir.Constant(_LONG, _TILE_BYTES))
        pairs = ir.Constant(_LONG, 2 * _TILE_BYTES)
        # Tiles of both factors by turns, as they are needed.
        for left, start, right, address in zip(_LEFT, (rows, lower), _RIGHT, (columns, beside), strict=True):
            if right in tiles:
                _call(builder, load_right, _NOTHING, _tile(right), address, pairs)
            _call(builder, "llvm.x86.tileloadd64", _NOTHING, _tile(left), start, row)
        for number in _SUMS:
            left, right = _LEFT[number // 2], _RIGHT[number % 2]
            if right in tiles:
                _call(builder, "llvm.x86.tdpbf16ps", _NOTHING, *map(_tile, (number, left, right)))
        return context.get_dummy_value()

    return generate


@intrinsic  # type: ignore[untyped-decorator]
def end_square(_typing: Any, sums: Any, at: Any) -> Any:
    """Write the sums, row after row, from item ``at`` of an array of float32 on."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        start = _place(context, builder, signature.args[0], *operands)
        for number in _SUMS:
            down, right = number // 2 * TILE * SQUARE * 4, number % 2 * _TILE_BYTES
            address, row = _moved(builder, start, ir.Constant(_LONG, down + right)), ir.Constant(_LONG, SQUARE * 4)
            _call(builder, "llvm.x86.tilestored64", _NOTHING, _tile(number), address, row)
        return context.get_dummy_value()

    return types.void(sums, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def put_rounded(_typing: Any, sums: Any, sums_at: Any, bias: Any, bias_at: Any, y: Any, y_at: Any) -> Any:
    """Put 32 sums, each with its bias added, as bfloat16: rounded, of two as near to the even one."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        halves = []
        for part in range(2):
            added = [_floats(context, builder, signature, operands, place, part) for place in (0, 2)]
            halves.append(builder.fadd(*added))
        half = ir.VectorType(_BFloat16(), SQUARE)
        # The instruction puts its second operand first.
        rounded = _call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", half, halves[1], halves[0])
        bits = ir.VectorType(_WORD, TILE)
        target = builder.bitcast(_place(context, builder, signature.args[4], *operands[4:]), bits.as_pointer())
        builder.store(builder.bitcast(rounded, bits), target, align=2)
        return context.get_dummy_value()

    index = types.int64
    return types.void(sums, index, bias, index, y, index), generate


@intrinsic  # type: ignore[untyped-decorator]
def put_in_two(
    _typing: Any, sums: Any, sums_at: Any, factors: Any, factors_at: Any, halves: Any, halves_at: Any
) -> Any:
    """Multiply 16 sums, each with its factor, and put them as two bfloat16 numbers into 32 bits each.

    The lower is the product rounded, the upper what its rounding left.
    """

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        bits = ir.VectorType(_WORD, TILE)
        value = builder.fmul(*(_floats(context, builder, signature, operands, place) for place in (0, 2)))
        near = _upper_half(builder, value)
        left = _upper_half(builder, builder.fsub(value, builder.bitcast(near, _FLOATS)))
        both = builder.or_(builder.lshr(near, ir.Constant(bits, [16] * TILE)), left)
        target = builder.bitcast(_place(context, builder, signature.args[4], *operands[4:]), bits.as_pointer())
        builder.store(both, target, align=4)
        return context.get_dummy_value()

    index = types.int64
    return types.void(sums, index, factors, index, halves, index), generate


def _upper_half(builder: Any, value: Any) -> Any:
    """Bits of the bfloat16 numbers next to a vector's, of two as near the even one, with zeros below."""
    bits = ir.VectorType(_WORD, TILE)

    def each(number: int) -> Any:
        return ir.Constant(bits, [number] * TILE)

    given = builder.bitcast(value, bits)
    odd = builder.and_(builder.lshr(given, each(16)), each(1))
    return builder.and_(builder.add(given, builder.add(odd, each(0x7FFF))), each(0xFFFF0000))


@intrinsic  # type: ignore[untyped-decorator]
def put_twice(_typing: Any, halves: Any, halves_at: Any, pairs: Any, pairs_at: Any) -> Any:
    """Put each of 32 bfloat16 numbers into both halves of 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        narrow, bits = ir.VectorType(ir.IntType(16), SQUARE), ir.VectorType(_WORD, SQUARE)
        address = _place(context, builder, signature.args[0], *operands[:2])
        given = builder.zext(builder.load(builder.bitcast(address, narrow.as_pointer()), align=2), bits)
        both = builder.or_(given, builder.shl(given, ir.Constant(bits, [16] * SQUARE)))
        target = builder.bitcast(_place(context, builder, signature.args[2], *operands[2:]), bits.as_pointer())
        builder.store(both, target, align=4)
        return context.get_dummy_value()

    index = types.int64
    return types.void(halves, index, pairs, index), generate


@intrinsic  # type: ignore[untyped-decorator]
def first_of_line(_typing: Any, values: Any) -> Any:
    """Give the first item that begins a line of the cache: rows of tiles that cross lines take twice as long."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        start = builder.ptrtoint(_place(context, builder, signature.args[0], operands[0], ir.Constant(_LONG, 0)), _LONG)
        rest = builder.and_(builder.neg(start), ir.Constant(_LONG, _TILE_BYTES - 1))
        return builder.udiv(rest, ir.Constant(_LONG, signature.args[0].dtype.bitwidth // 8))

    return types.int64(values), generate


@intrinsic  # type: ignore[untyped-decorator]
def fetch_to_read(_typing: Any, values: Any, at: Any) -> Any:
    """Have the line of an item, which may be past the array's end, brought into the second cache."""
    return types.void(values, types.int64), _fetching(_READ)


@intrinsic  # type: ignore[untyped-decorator]
def fetch_to_write(_typing: Any, values: Any, at: Any) -> Any:
    """The same of a line that is about to be written."""
    return types.void(values, types.int64), _fetching(_WRITE)


def _fetching(purpose: int) -> Any:
    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        hints = (ir.Constant(_WORD, hint) for hint in (purpose, _SECOND_CACHE, _DATA))
        _call(builder, "llvm.prefetch.p0", _NOTHING, _place(context, builder, signature.args[0], *operands), *hints)
        return context.get_dummy_value()

    return generate
