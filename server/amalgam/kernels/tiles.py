"""The operation of delta space: one block of rows of the merged matrix, straight from the factors.

The deltas of all inputs are recomputed for the block, thinned out and combined; nothing larger than the block is held.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from amalgam.kernels import reference
from amalgam.kernels.philox import Stream
from amalgam.kernels.selection import blocks, select


@dataclass(frozen=True, slots=True)
class TileRule:
    """What is done to a tile; fixed for a whole merge."""

    sparsify: Literal["none", "trim", "drop", "della", "breadcrumbs"]
    consensus: Literal["sum", "elect", "elect_plain"]
    """The rule ``elect_plain`` is an election on values that weights do not sway."""
    scale: float = 1.0
    """It is λ of an election."""
    frequency: bool = False
    """It tells whether an election counts heads instead of summing."""
    density: float = 1.0
    """It is that of ``drop`` and ``della``."""
    epsilon: float = 0.0
    """It is that of ``della``."""


@dataclass(frozen=True, slots=True)
class TileInput:
    """One input of a module: ``B`` [out, r] with the scale in it, ``A`` [r, in], float32 and contiguous."""

    B: Tensor
    A: Tensor
    weight: float
    stream: Stream
    low: float = 0.0
    """Smaller magnitudes are left out, after a drop where there is one."""
    high: float = float("inf")
    """Larger magnitudes are left out."""


class TileBackend(Protocol):
    """One implementation of the tile operation."""

    name: str

    def merge_rows(
        self, inputs: Sequence[TileInput], rule: TileRule, first: int, last: int, gate: Tensor | None = None
    ) -> Tensor:
        """Rows first .. last - 1 of the merged matrix, [last - first, in], float32.

        Args:
            inputs: At least one, all of one outer shape.
            rule: What to do.
            first: A multiple of the tile height. last: At most one tile height further.
            gate: [last - first, in]; positions where it is False become 0 in every input.
        """

    def order_statistics(
        self, part: TileInput, rule: TileRule, shape: tuple[int, int], ks: Sequence[int], buffer: Tensor | None
    ) -> list[float]:
        """The k-th largest magnitudes of one input's matrix after ``rule.sparsify``, exactly, 1 <= k <= entries.

        Args:
            part: The input. rule: Its ``sparsify`` is "none" or "drop".
            shape: (out, in).
            ks: Which.
            buffer: Memory for a matrix of that shape, float32 and contiguous, where there is any; overwritten.
        """


class ReferenceTiles:
    """The plain composition of the reference operations: what every other backend must equal."""

    name = "reference"

    def merge_rows(
        self, inputs: Sequence[TileInput], rule: TileRule, first: int, last: int, gate: Tensor | None = None
    ) -> Tensor:
        """See ``TileBackend``."""
        x = torch.stack([thinned_rows(part, rule, first, last) for part in inputs])
        if gate is not None:
            x = x * gate
        weights = torch.tensor([part.weight for part in inputs], dtype=x.dtype, device=x.device).view(-1, 1, 1)
        if rule.consensus == "sum":
            return reference.weighted_sum(x, weights)
        if rule.consensus == "elect_plain":
            return reference.elect_plain(x, weights, rule.scale)
        return reference.elect(x, weights, rule.scale, rule.frequency)

    def order_statistics(
        self, part: TileInput, rule: TileRule, shape: tuple[int, int], ks: Sequence[int], buffer: Tensor | None
    ) -> list[float]:
        """See ``TileBackend``."""
        return order_statistics_by_rows(part, rule, shape, ks, buffer)


def order_statistics_by_rows(
    part: TileInput,
    rule: TileRule,
    shape: tuple[int, int],
    ks: Sequence[int],
    buffer: Tensor | None,
    rows: Callable[[TileInput, TileRule, int, int], Tensor] | None = None,
) -> list[float]:
    """``TileBackend.order_statistics``, from a backend's rows, those of the reference by default."""
    thinned = rows or thinned_rows
    device = part.B.device

    def stream() -> Iterator[Tensor]:
        return (thinned(part, rule, block.start, block.stop) for block in blocks(shape, device))

    return select(stream, shape, ks, buffer, device)


def thinned_rows(part: TileInput, rule: TileRule, first: int, last: int) -> Tensor:
    """Rows first .. last - 1 of one input's delta after ``rule.sparsify``: [last - first, in]."""
    x = reference.delta_tile(part.B[first:last], part.A)
    if rule.sparsify == "breadcrumbs":
        return reference.breadcrumbs(x, part.low, part.high)
    if rule.sparsify == "della":
        return reference.della(x, first, rule.density, rule.epsilon, part.stream)
    if rule.sparsify == "drop":
        shape = (last - first, x.shape[1])
        x = reference.drop(x, reference.drop_mask(shape, first, rule.density, part.stream, x.device), rule.density)
    return reference.trim(x, part.low) if part.low > 0 else x
