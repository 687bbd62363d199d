"""Delta space on CUDA devices: many modules of one shape in a launch, and the tile operation as the case of one."""

from collections.abc import Sequence
from typing import Final

import torch
import triton
from torch import Tensor

from amalgam.kernels.module_batch import ModuleBatch, batch_of_one
from amalgam.kernels.philox import keep_threshold
from amalgam.kernels.tiles import TileInput, TileRule
from amalgam.kernels.triton_selection import largest_of_batch
from amalgam.kernels.triton_tiles import BLOCK_COLUMNS, BLOCK_ROWS, merge_kernel

SUPPORTED: Final = ("none", "trim", "drop", "breadcrumbs")
"""These of ``TileRule.sparsify`` are implemented; della ranks whole rows, which does not fit a tile."""


def merge_batch(
    batch: ModuleBatch,
    rule: TileRule,
    lows: Tensor | None,
    highs: Tensor | None,
    rows: range,
    gate: Tensor | None = None,
) -> Tensor:
    """Rows of the merged matrices, [n, len(rows), in], float32.

    Args:
        batch: The inputs. rule: What to do.
        lows: [n, T]: smaller magnitudes go, after a drop where there is one; None where none do.
        highs: Likewise for larger ones.
        rows: Which rows, one after the other.
        gate: [n, len(rows), in]; positions where it is False become 0 in every input.
    """
    count, height, width = batch.shape
    device, total = batch.B.device, batch.begins[-1]
    out = torch.empty((count, len(rows), width), dtype=torch.float32, device=device)
    grid = (triton.cdiv(len(rows), BLOCK_ROWS), triton.cdiv(width, BLOCK_COLUMNS), count)
    merge_kernel[grid](
        batch.B, batch.A, torch.tensor(batch.begins, dtype=torch.int32, device=device), batch.weights,
        batch.weights if lows is None else lows, batch.weights if highs is None else highs,
        batch.ids(), batch.keys(), batch.tensors,
        out if gate is None else gate.contiguous().view(torch.uint8), out,
        height, width, total, rows.start, rows.stop, keep_threshold(rule.density), 1.0 / rule.density, rule.scale,
        T=len(batch.adapters), RP=batch.padded, BF16_INPUTS=batch.exact, DROP=rule.sparsify == "drop",
        ELECT=rule.consensus == "elect", FREQUENCY=rule.frequency, GATED=gate is not None,
        LOW=lows is not None, HIGH=highs is not None,
        BM=BLOCK_ROWS, BN=BLOCK_COLUMNS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out


class TritonTiles:
    """One module at a time, for what needs all of it in turn: see ``TileBackend``."""

    name = "triton"

    def merge_rows(
        self, inputs: Sequence[TileInput], rule: TileRule, first: int, last: int, gate: Tensor | None = None
    ) -> Tensor:
        """See ``TileBackend``."""
        lows = _edges([part.low for part in inputs], 0.0, inputs[0].B.device)
        highs = _edges([part.high for part in inputs], float("inf"), inputs[0].B.device)
        return merge_batch(batch_of_one(inputs), rule, lows, highs, range(first, last), _alone(gate))[0]

    def order_statistics(
        self, part: TileInput, rule: TileRule, shape: tuple[int, int], ks: Sequence[int], buffer: Tensor | None
    ) -> list[float]:
        """See ``TileBackend``."""
        batch = batch_of_one([part])
        return [float(largest_of_batch(batch, rule, 0, k)[0]) for k in ks]


def _edges(values: list[float], none: float, device: torch.device) -> Tensor | None:
    """Edges of one module, [1, T]; None where all are ``none``."""
    if all(value == none for value in values):
        return None
    return torch.tensor([values], dtype=torch.float32, device=device)


def _alone(gate: Tensor | None) -> Tensor | None:
    return None if gate is None else gate[None]
