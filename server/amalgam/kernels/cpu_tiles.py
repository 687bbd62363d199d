"""The tile operation for processors: products by BLAS, the rest in one compiled pass; the values of the reference."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from amalgam.kernels import reference
from amalgam.kernels.philox import Stream, keep_threshold
from amalgam.kernels.selection import blocks, largest_of_buffer
from amalgam.kernels.tiles import TileInput, TileRule, order_statistics_by_rows, thinned_rows

_FUSED: Final = ("none", "trim", "drop")
"""These ways to thin out need nothing but the entry itself."""


class CpuTiles:
    """Each input once through the cache, then one pass over all of them."""

    name = "cpu"

    def merge_rows(
        self, inputs: Sequence[TileInput], rule: TileRule, first: int, last: int, gate: Tensor | None = None
    ) -> Tensor:
        """See ``TileBackend``."""
        x = torch.empty((len(inputs), last - first, inputs[0].A.shape[1]))
        for part, tile in zip(inputs, x, strict=True):
            _fill(tile, part, rule, first, last)
            if gate is not None:
                tile.mul_(gate)
        weights = torch.tensor([part.weight for part in inputs])
        lows = torch.tensor([part.low if rule.sparsify in _FUSED else 0.0 for part in inputs])
        return _combined(x, weights, lows, rule)

    def order_statistics(
        self, part: TileInput, rule: TileRule, shape: tuple[int, int], ks: Sequence[int], buffer: Tensor | None
    ) -> list[float]:
        """See ``TileBackend``."""
        if buffer is None:
            # Of the very values that merge_rows compares with them: the reference rounds a drop differently.
            return order_statistics_by_rows(part, rule, shape, ks, None, _rows)
        for block in blocks(shape, buffer.device):
            _fill(buffer[block], part, rule, block.start, block.stop)
        return largest_of_buffer(buffer, ks)


def elect(x: Tensor, weights: Tensor, scale: float, frequency: bool) -> Tensor:
    """``reference.elect`` on a processor, in one pass: x [T, ...], which is used up, weights [T] -> [...]."""
    return _combined(x, weights, torch.zeros_like(weights), TileRule("none", "elect", scale, frequency))


def drop(x: Tensor, first_row: int, density: float, stream: Stream) -> None:
    """Zero what ``reference.drop_mask`` does not keep: x [rows, columns], rows first_row .. of a matrix, contiguous."""
    # Where only an accelerator computes, numba need not be installed.
    from amalgam.kernels import compiled

    bound, first = keep_threshold(density), first_row * x.shape[1]
    compiled.drop(x.view(-1).numpy(), compiled.stream_words(stream), first, bound)


def _rows(part: TileInput, rule: TileRule, first: int, last: int) -> Tensor:
    tile = torch.empty((last - first, part.A.shape[1]))
    _fill(tile, part, rule, first, last)
    return tile


def _fill(tile: Tensor, part: TileInput, rule: TileRule, first: int, last: int) -> None:
    """Rows first .. last - 1 of one input's delta, dropped as the rule says, and not yet trimmed."""
    if rule.sparsify not in _FUSED:
        tile.copy_(thinned_rows(part, rule, first, last))
    elif rule.sparsify == "drop":
        torch.mm(part.B[first:last] * (1.0 / rule.density), part.A, out=tile)
        drop(tile, first, rule.density, part.stream)
    else:
        torch.mm(part.B[first:last], part.A, out=tile)


def _combined(x: Tensor, weights: Tensor, lows: Tensor, rule: TileRule) -> Tensor:
    """The consensus of x [T, ...], which is used up: weights and lows [T] -> [...]."""
    from amalgam.kernels import compiled

    out = torch.empty(x.shape[1:], dtype=x.dtype)
    arrays = x.view(x.shape[0], -1).numpy(), weights.to(x.dtype).numpy(), lows.to(x.dtype).numpy()
    if rule.consensus == "elect_plain":
        return reference.elect_plain(x, weights.view(-1, *(1,) * (x.dim() - 1)).to(x.dtype), rule.scale)
    if rule.consensus == "sum":
        compiled.combine_sum(*arrays, out.view(-1).numpy())
    else:
        scale = arrays[0].dtype.type(rule.scale)
        compiled.combine_elect(*arrays, scale, rule.frequency, out.view(-1).numpy())
    return out
