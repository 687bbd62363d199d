"""Products in vectors of bfloat16 (AVX-512 BF16) for as many rows as the registers hold, for use in loops of numba.

A *strip* is 1 to 14 rows by 32 columns of float32 sums, or by 16; they stay in registers from their first product until
they are rounded. One step multiplies a pair of values of each row with the same pair of each column.

numba keeps a loop's compiled code until the loop's own file changes. Who changes this file changes those that use it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from amalgam.engine.cpu.vectors import (
    COLUMNS,
    FLOATS,
    HALVES,
    LANES,
    LINE_BYTES,
    LONG,
    NOTHING,
    WORD,
    WORDS,
    call,
    fetch,
    in_two,
    moved,
    place,
    read,
    rounded,
    write,
)

STRIP_ROWS: Final = 14
"""So many rows by 32 columns are 28 of the 32 registers; two take the columns, and one a row's pair of values."""
_PAIR_BYTES: Final = 4


class _Rows(NamedTuple):
    """Where rows begin, and how many bytes lie between two of them."""

    start: Any
    distance: Any

    def at(self, builder: Any, row: int, more: Any) -> Any:
        """The address so many bytes into a row."""
        start = moved(builder, self.start, builder.mul(self.distance, ir.Constant(LONG, row)))
        return moved(builder, start, more)


class _Sums(NamedTuple):
    """A strip's sums, row by row; LLVM keeps what these variables hold in registers."""

    variables: Sequence[Sequence[Any]]

    @classmethod
    def of(cls, builder: Any, rows: int, starts: Sequence[Any]) -> "_Sums":
        """Each row begins with the same vectors."""
        strip = cls([[cgutils.alloca_once(builder, FLOATS) for _ in starts] for _ in range(rows)])
        for row in strip.variables:
            for variable, start in zip(row, starts, strict=True):
                builder.store(start, variable)
        return strip

    def add(self, builder: Any, rows: _Rows, columns: Any, steps: Any, ahead: _Rows | None = None) -> None:
        """Add the products of so many pairs of each row with those of packed columns, and fetch a row ahead at each."""
        with _counted(builder, steps) as step:
            if ahead is not None:
                fetch(builder, moved(builder, ahead.start, builder.mul(step, ahead.distance)))
            pairs = moved(builder, columns, builder.mul(step, ir.Constant(LONG, COLUMNS * _PAIR_BYTES)))
            parts = range(len(self.variables[0]))
            vectors = [read(builder, HALVES, moved(builder, pairs, part * LINE_BYTES)) for part in parts]
            along = builder.mul(step, ir.Constant(LONG, _PAIR_BYTES))
            for row, variables in enumerate(self.variables):
                pair = _each(builder, read(builder, WORD, rows.at(builder, row, along)))
                for vector, variable in zip(vectors, variables, strict=True):
                    operands = builder.load(variable), builder.bitcast(pair, HALVES), vector
                    builder.store(call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, *operands), variable)

    def rows(self, builder: Any) -> list[list[Any]]:
        """What they have come to."""
        return [[builder.load(variable) for variable in row] for row in self.variables]


@contextmanager
def _counted(builder: Any, count: Any) -> Iterator[Any]:
    with cgutils.for_range(builder, count, intp=LONG) as loop:
        # Convergent code is not unrolled: two steps at once need more registers than there are.
        builder.asm(ir.FunctionType(NOTHING, []), "", "", [], True).attributes.add("convergent")
        yield loop.index


def _each(builder: Any, word: Any) -> Any:
    """A vector of which each word is this one."""
    nothing = ir.Constant(WORDS, ir.Undefined)
    first = builder.insert_element(nothing, word, ir.Constant(WORD, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(WORDS, [0] * LANES))


def _for_each_count(builder: Any, count: Any, generate: Callable[[int], None]) -> None:
    """Have code for each number of rows a strip may have, of which the right one is executed."""
    after = builder.append_basic_block("strip.done")
    switch = builder.switch(count, after)
    for rows in range(1, STRIP_ROWS + 1):
        block = builder.append_basic_block(f"strip.{rows}")
        switch.add_case(ir.Constant(LONG, rows), block)
        builder.position_at_end(block)
        generate(rows)
        builder.branch(after)
    builder.position_at_end(after)


def _item(context: Any, builder: Any, kind: Any, operand: Any) -> Any:
    """The address that a tuple of an array and an item says."""
    array, at = (builder.extract_value(operand, part) for part in range(2))
    return place(context, builder, kind[0], array, at)


def _rows(context: Any, builder: Any, kind: Any, operand: Any) -> _Rows:
    """What a tuple of an array, an item and the items of a row says."""
    distance = builder.mul(builder.extract_value(operand, 2), ir.Constant(LONG, kind[0].dtype.bitwidth // 8))
    return _Rows(_item(context, builder, kind, operand), distance)


@intrinsic  # type: ignore[untyped-decorator]
def put_strip(
    _typing: Any,
    count: Any,
    x: Any,
    weight: Any,
    steps: Any,
    ahead: Any,
    hidden: Any,
    expanded: Any,
    ranks: Any,
    bias: Any,
    y: Any,
) -> Any:
    """Put y = bias + x @ weight + hidden @ expanded as bfloat16: rounded, of two as near to the even one.

    Rows are given as an array, the item to begin with, counted through all axes, and the items of a row; the others as
    an array and an item.

    Args:
        count: Rows, 1 to `STRIP_ROWS`.
        x: Rows. weight: 32 packed columns. steps: Pairs of both.
        ahead: Rows, as many as there are steps, which are brought into the second cache.
        hidden: Rows. expanded: 32 packed columns. ranks: Pairs of both; it may be none.
        bias: float32, 32 items. y: Rows, 32 items of each.
    """
    kinds = types.int64, x, weight, types.int64, ahead, hidden, expanded, types.int64, bias, y

    def generate(context: Any, builder: Any, _signature: Any, operands: Any) -> Any:
        left, fetched, between, target = (_rows(context, builder, kinds[i], operands[i]) for i in (1, 4, 5, 9))
        right, up, start = (_item(context, builder, kinds[i], operands[i]) for i in (2, 6, 8))

        def strip(rows: int) -> None:
            starts = [read(builder, FLOATS, moved(builder, start, part * LINE_BYTES)) for part in range(2)]
            sums = _Sums.of(builder, rows, starts)
            sums.add(builder, left, right, operands[3], fetched)
            sums.add(builder, between, up, operands[7])
            for row, vectors in enumerate(sums.rows(builder)):
                write(builder, rounded(builder, *vectors), target.at(builder, row, 0), align=2)

        _for_each_count(builder, operands[0], strip)
        return context.get_dummy_value()

    return types.void(*kinds), generate


@intrinsic  # type: ignore[untyped-decorator]
def put_hidden(_typing: Any, count: Any, x: Any, packed: Any, steps: Any, factors: Any, hidden: Any) -> Any:
    """Put hidden = factors · (x @ packed) for 32 columns, each value as `vectors.in_two` gives it.

    Operands are as those of `put_strip`.
    """
    return _putting_hidden(2, (types.int64, x, packed, types.int64, factors, hidden))


@intrinsic  # type: ignore[untyped-decorator]
def put_half_of_hidden(_typing: Any, count: Any, x: Any, packed: Any, steps: Any, factors: Any, hidden: Any) -> Any:
    """Do `put_hidden` for the first 16 of the columns."""
    return _putting_hidden(1, (types.int64, x, packed, types.int64, factors, hidden))


def _putting_hidden(parts: int, kinds: Sequence[Any]) -> Any:
    """The code for so many vectors of columns."""

    def generate(context: Any, builder: Any, _signature: Any, operands: Any) -> Any:
        left, target = (_rows(context, builder, kinds[i], operands[i]) for i in (1, 5))
        right, start = (_item(context, builder, kinds[i], operands[i]) for i in (2, 4))

        def strip(rows: int) -> None:
            sums = _Sums.of(builder, rows, [ir.Constant(FLOATS, [0.0] * LANES)] * parts)
            sums.add(builder, left, right, operands[3])
            for row, vectors in enumerate(sums.rows(builder)):
                for part, vector in enumerate(vectors):
                    factor = read(builder, FLOATS, moved(builder, start, part * LINE_BYTES))
                    address = target.at(builder, row, part * LINE_BYTES)
                    write(builder, in_two(builder, builder.fmul(vector, factor)), address)

        _for_each_count(builder, operands[0], strip)
        return context.get_dummy_value()

    return types.void(*kinds), generate
