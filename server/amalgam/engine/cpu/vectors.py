"""Vectors of 16 float32 and of 32 bfloat16 numbers (AVX-512 BF16), for use in loops that numba compiles.

A right factor is *packed*: blocks of 32 columns, in each the pairs of neighbouring rows one after the other, in each
the columns, and of each column the two values side by side.

numba keeps a loop's compiled code until the loop's own file changes. Who changes this file changes those that use it.
Names and operands of the instructions are LLVM's (``IntrinsicsX86.td``); what they do is in Intel's "Architecture
Instruction Set Extensions Programming Reference", chapter 2.
"""

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES: Final = 16
"""A vector holds so many float32 numbers, or pairs of bfloat16."""
COLUMNS: Final = 2 * LANES
"""A block of a packed right factor has so many columns."""
LINE_BYTES: Final = 64
"""A vector takes so many bytes, and a line of the cache."""
BYTE: Final = ir.IntType(8)
WORD: Final = ir.IntType(32)
LONG: Final = ir.IntType(64)
NOTHING: Final = ir.VoidType()
FLOATS: Final = ir.VectorType(ir.FloatType(), LANES)
WORDS: Final = ir.VectorType(WORD, LANES)
HALF_BYTES: Final = 2
FLOAT_BYTES: Final = 4
PAIR_BYTES: Final = 2 * HALF_BYTES
_SECOND_CACHE: Final = 2
_DATA: Final = 1


class _BFloat16(ir.types.Type):  # type: ignore[misc]
    """LLVM's type, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


HALVES: Final = ir.VectorType(_BFloat16(), 2 * LANES)


def call(builder: Any, name: str, result: Any, *operands: Any) -> Any:
    """Have an instruction of LLVM's name executed."""
    function = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), operands)


def place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Give the address of an array's item, counted through all of its axes."""
    items = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(items, [index]), BYTE.as_pointer())


def moved(builder: Any, address: Any, distance: Any) -> Any:
    """Give the address so many bytes further."""
    return builder.gep(address, [ir.Constant(LONG, distance) if isinstance(distance, int) else distance])


def read(builder: Any, kind: Any, address: Any, align: int = 4) -> Any:
    """Give what is kept at an address."""
    return builder.load(builder.bitcast(address, kind.as_pointer()), align=align)


def write(builder: Any, value: Any, address: Any, align: int = 4) -> None:
    """Keep a value at an address."""
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=align)


def fetch(builder: Any, address: Any, *, to_write: bool = False) -> None:
    """Have the line of an address, which may be anywhere, brought into the second cache."""
    hints = (ir.Constant(WORD, hint) for hint in (int(to_write), _SECOND_CACHE, _DATA))
    call(builder, "llvm.prefetch.p0", NOTHING, address, *hints)


def rounded(builder: Any, first: Any, second: Any) -> Any:
    """Give the bits of 32 float32 numbers as bfloat16: rounded, of two as near to the even one."""
    # The instruction puts its second operand first.
    halves = call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", HALVES, second, first)
    return builder.bitcast(halves, WORDS)


def in_two(builder: Any, value: Any) -> Any:
    """Give each of 16 numbers as two of bfloat16 in 32 bits: in the lower half itself, in the upper what is left."""
    near = _upper_half(builder, value)
    left = _upper_half(builder, builder.fsub(value, builder.bitcast(near, FLOATS)))
    return builder.or_(builder.lshr(near, ir.Constant(WORDS, [16] * LANES)), left)


def twice(builder: Any, address: Any) -> list[Any]:
    """Give 32 bfloat16 numbers as two vectors, each number in both halves of 32 bits."""
    narrow, pairs = ir.VectorType(ir.IntType(16), LANES), []
    for part in range(2):
        given = builder.zext(read(builder, narrow, moved(builder, address, part * LINE_BYTES // 2), align=2), WORDS)
        pairs.append(builder.or_(given, builder.shl(given, ir.Constant(WORDS, [16] * LANES))))
    return pairs


def _upper_half(builder: Any, value: Any) -> Any:
    """Bits of the bfloat16 numbers next to a vector's, of two as near the even one, with zeros below."""

    def each(number: int) -> Any:
        return ir.Constant(WORDS, [number] * LANES)

    given = builder.bitcast(value, WORDS)
    odd = builder.and_(builder.lshr(given, each(16)), each(1))
    return builder.and_(builder.add(given, builder.add(odd, each(0x7FFF))), each(0xFFFF0000))


@intrinsic  # type: ignore[untyped-decorator]
def address_of(_typing: Any, values: Any, at: Any) -> Any:
    """Give the address of an item, counted through all axes: unlike an array, a number is given to others for nothing.

    An array is counted for each function that is given it, and threads that count the same ones wait for each other.
    """

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return builder.ptrtoint(place(context, builder, signature.args[0], *operands), LONG)

    return types.int64(values, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def first_of_line(_typing: Any, values: Any) -> Any:
    """Give the first item that begins a line of the cache: vectors that cross lines take twice as long."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        start = builder.ptrtoint(place(context, builder, signature.args[0], operands[0], ir.Constant(LONG, 0)), LONG)
        rest = builder.and_(builder.neg(start), ir.Constant(LONG, LINE_BYTES - 1))
        return builder.udiv(rest, ir.Constant(LONG, signature.args[0].dtype.bitwidth // 8))

    return types.int64(values), generate
