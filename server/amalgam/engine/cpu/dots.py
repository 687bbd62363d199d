"""Products in vectors of bfloat16 (AVX-512 BF16) for as many rows as the registers hold, for use in loops of numba.

A *strip* is 1 to 14 rows by 32 columns of float32 sums, which stay in registers from their first product until they are
rounded. One step multiplies a pair of values of each row with the same pair of each column.

Operands that are *rows* are given as the address of the first and the bytes from one to the next, others as addresses.

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
    BYTE,
    COLUMNS,
    FLOATS,
    HALVES,
    LANES,
    LINE_BYTES,
    LONG,
    NOTHING,
    PAIR_BYTES,
    WORD,
    WORDS,
    call,
    fetch,
    in_two,
    moved,
    read,
    rounded,
    twice,
    write,
)

STRIP_ROWS: Final = 14
"""So many rows by 32 columns are 28 of the 32 registers; two take the columns, and one a row's pair of values."""
_NUMBER: Final = types.int64
_ROWS: Final = types.UniTuple(types.int64, 2)


class _Rows(NamedTuple):
    """Where rows begin, and how many bytes there are from one to the next."""

    start: Any
    distance: Any

    def at(self, builder: Any, row: Any, more: Any = 0) -> Any:
        """The address so many bytes into a row."""
        number = ir.Constant(LONG, row) if isinstance(row, int) else row
        return moved(builder, moved(builder, self.start, builder.mul(self.distance, number)), more)


class _Sums(NamedTuple):
    """Vectors of sums, row by row; LLVM keeps what these variables hold in registers."""

    variables: Sequence[Sequence[Any]]

    @classmethod
    def of(cls, builder: Any, starts: Sequence[Sequence[Any]]) -> "_Sums":
        """Sums that begin with these vectors."""
        sums = cls([[cgutils.alloca_once(builder, FLOATS) for _ in row] for row in starts])
        for variables, row in zip(sums.variables, starts, strict=True):
            for variable, start in zip(variables, row, strict=True):
                builder.store(start, variable)
        return sums

    def add(self, builder: Any, row: int, left: Any, right: Sequence[Any]) -> None:
        """Add the products of a vector of pairs with others, one for each of a row's sums."""
        for variable, vector in zip(self.variables[row], right, strict=True):
            operands = builder.load(variable), builder.bitcast(left, HALVES), builder.bitcast(vector, HALVES)
            builder.store(call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, *operands), variable)

    def come_to(self, builder: Any) -> list[list[Any]]:
        """What they are now."""
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


def _for_each_count(builder: Any, count: Any, most: int, generate: Callable[[int], None]) -> None:
    """Have code for each count from 1 to ``most``, of which the right one is executed."""
    after = builder.append_basic_block("counted.done")
    switch = builder.switch(count, after)
    for number in range(1, most + 1):
        block = builder.append_basic_block(f"counted.{number}")
        switch.add_case(ir.Constant(LONG, number), block)
        builder.position_at_end(block)
        generate(number)
        builder.branch(after)
    builder.position_at_end(after)


def _start(builder: Any, operand: Any) -> Any:
    """The pointer of an address."""
    return builder.inttoptr(operand, BYTE.as_pointer())


def _rows(builder: Any, operand: Any) -> _Rows:
    """What a tuple of an address and of bytes says."""
    return _Rows(_start(builder, builder.extract_value(operand, 0)), builder.extract_value(operand, 1))


def _parts(builder: Any, kind: Any, address: Any) -> list[Any]:
    """The two vectors of 32 columns."""
    return [read(builder, kind, moved(builder, address, part * LINE_BYTES)) for part in range(2)]


@intrinsic  # type: ignore[untyped-decorator]
def put_strip(_typing: Any, count: Any, x: Any, weight: Any, steps: Any, ahead: Any, starts: Any, y: Any) -> Any:
    """Put y = starts + x @ weight as bfloat16: rounded, of two as near to the even one.

    Args:
        count: Rows, 1 to `STRIP_ROWS`.
        x: Rows. weight: 32 packed columns. steps: Pairs of both.
        ahead: Rows, as many as there are steps, whose first two lines are brought into the second cache.
        starts: Rows of 32 float32; they may all be the same. y: Rows of 32 items.
    """

    def generate(context: Any, builder: Any, _signature: Any, operands: Any) -> Any:
        left, fetched, begun, target = (_rows(builder, operands[i]) for i in (1, 4, 5, 6))
        right = _Rows(_start(builder, operands[2]), ir.Constant(LONG, COLUMNS * PAIR_BYTES))

        def strip(rows: int) -> None:
            sums = _Sums.of(builder, [_parts(builder, FLOATS, begun.at(builder, row)) for row in range(rows)])
            with _counted(builder, operands[3]) as step:
                for line in range(2):
                    fetch(builder, fetched.at(builder, step, line * LINE_BYTES))
                columns = _parts(builder, WORDS, right.at(builder, step))
                along = builder.mul(step, ir.Constant(LONG, PAIR_BYTES))
                for row in range(rows):
                    sums.add(builder, row, _each(builder, read(builder, WORD, left.at(builder, row, along))), columns)
            for row, vectors in enumerate(sums.come_to(builder)):
                write(builder, rounded(builder, *vectors), target.at(builder, row), align=2)

        _for_each_count(builder, operands[0], STRIP_ROWS, strip)
        return context.get_dummy_value()

    return types.void(_NUMBER, _ROWS, _NUMBER, _NUMBER, _ROWS, _ROWS, _ROWS), generate


@intrinsic  # type: ignore[untyped-decorator]
def put_added(_typing: Any, count: Any, hidden: Any, up: Any, ranks: Any, bias: Any, sums: Any) -> Any:
    """Put sums = bias + hidden @ up, of which each value is taken for both of a pair.

    Args:
        count: Rows, 1 to `STRIP_ROWS`.
        hidden: Rows, of a pair for each rank. up: Rows of 32 bfloat16, one for each rank. ranks: There may be none.
        bias: 32 float32. sums: Rows of 32 float32.
    """

    def generate(context: Any, builder: Any, _signature: Any, operands: Any) -> Any:
        left, right, target = (_rows(builder, operands[i]) for i in (1, 2, 5))
        start = _start(builder, operands[4])

        def strip(rows: int) -> None:
            sums = _Sums.of(builder, [_parts(builder, FLOATS, start) for _ in range(rows)])
            with _counted(builder, operands[3]) as rank:
                fetch(builder, right.at(builder, rank, LINE_BYTES))
                columns = twice(builder, right.at(builder, rank))
                along = builder.mul(rank, ir.Constant(LONG, PAIR_BYTES))
                for row in range(rows):
                    sums.add(builder, row, _each(builder, read(builder, WORD, left.at(builder, row, along))), columns)
            for row, vectors in enumerate(sums.come_to(builder)):
                for part, vector in enumerate(vectors):
                    write(builder, vector, target.at(builder, row, part * LINE_BYTES))

        _for_each_count(builder, operands[0], STRIP_ROWS, strip)
        return context.get_dummy_value()

    return types.void(_NUMBER, _ROWS, _ROWS, _NUMBER, _NUMBER, _ROWS), generate


@intrinsic  # type: ignore[untyped-decorator]
def add_totals(_typing: Any, count: Any, x: Any, down: Any, steps: Any, totals: Any) -> Any:
    """Do totals += down @ x for one row x and up to 16 ranks.

    Args:
        count: Ranks, 1 to 16; to the others up to 16 something is added too.
        x: 32 bfloat16 for each step. down: Rows of as many, one for each rank. steps: How many times 32 they are.
        totals: 16 float32.
    """

    def generate(context: Any, builder: Any, _signature: Any, operands: Any) -> Any:
        left, target = (_start(builder, operands[i]) for i in (1, 4))
        right = _rows(builder, operands[2])

        def ranks(count: int) -> None:
            sums = _Sums.of(builder, [[ir.Constant(FLOATS, [0.0] * LANES)] for _ in range(count)])
            with _counted(builder, operands[3]) as step:
                along = builder.mul(step, ir.Constant(LONG, LINE_BYTES))
                vector = read(builder, WORDS, moved(builder, left, along))
                for rank in range(count):
                    sums.add(builder, rank, vector, [read(builder, WORDS, right.at(builder, rank, along))])
            found = _totals(builder, [row[0] for row in sums.come_to(builder)])
            write(builder, builder.fadd(read(builder, FLOATS, target), found), target)

        _for_each_count(builder, operands[0], LANES, ranks)
        return context.get_dummy_value()

    return types.void(_NUMBER, _NUMBER, _ROWS, _NUMBER, _NUMBER), generate


@intrinsic  # type: ignore[untyped-decorator]
def split_totals(_typing: Any, totals: Any, factors: Any) -> Any:
    """Multiply 16 float32, each with its factor, and put them in their place as `vectors.in_two` gives them."""

    def generate(context: Any, builder: Any, _signature: Any, operands: Any) -> Any:
        place, given = (_start(builder, operand) for operand in operands)
        scaled = builder.fmul(read(builder, FLOATS, place), read(builder, FLOATS, given))
        write(builder, in_two(builder, scaled), place)
        return context.get_dummy_value()

    return types.void(_NUMBER, _NUMBER), generate


def _totals(builder: Any, vectors: Sequence[Any]) -> Any:
    """A vector of the totals of up to 16 vectors, in their order; what is beyond them is undefined.

    Each time, two vectors become one, until one is left: of the 2 · width neighbours that belong to a total, one half
    is added to the other, and those of the second vector are put behind those of the first.
    """
    parts: list[Any] = [*vectors, *[None] * (LANES - len(vectors))]
    for width in (8, 4, 2, 1):
        parts = [_added_halves(builder, parts[at], parts[at + width], width) for at in range(width)]
    return parts[0]


def _added_halves(builder: Any, first: Any, second: Any, width: int) -> Any:
    if first is None:
        return None
    begins = [source + place for place in range(0, LANES, 2 * width) for source in (0, LANES)]
    lower = [begin + lane for begin in begins for lane in range(width)]
    upper = [place + width for place in lower]
    other = ir.Constant(FLOATS, ir.Undefined) if second is None else second
    halves = (
        builder.shuffle_vector(first, other, ir.Constant(ir.VectorType(WORD, LANES), places))
        for places in (lower, upper)
    )
    return builder.fadd(*halves)
