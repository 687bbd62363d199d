"""The tile operation for processors: few passes over blocks that stay in the cache; the values of the reference."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from amalgam.kernels.tiles import TileInput, TileRule, order_statistics_by_rows, thinned_rows


class CpuTiles:
    """Each input once through the cache, then one election per tile."""

    name = "cpu"

    def merge_rows(
        self, inputs: Sequence[TileInput], rule: TileRule, first: int, last: int, gate: Tensor | None = None
    ) -> Tensor:
        """See ``TileBackend``."""
        weighted = []
        for part in inputs:
            x = _thinned(part, rule, first, last)
            if gate is not None:
                x = x * gate
            weighted.append(x if part.weight == 1.0 else x.mul_(part.weight))
        if rule.consensus == "sum":
            return _total(weighted)
        return elect_in_place(weighted, [abs(part.weight) for part in inputs], rule.scale, rule.frequency)

    def order_statistics(
        self, part: TileInput, rule: TileRule, shape: tuple[int, int], ks: Sequence[int], buffered: bool
    ) -> list[float]:
        """See ``TileBackend``."""
        return order_statistics_by_rows(part, rule, shape, ks, buffered)


def _thinned(part: TileInput, rule: TileRule, first: int, last: int) -> Tensor:
    """As ``thinned_rows``; a trim is one pass."""
    if rule.sparsify not in ("none", "trim"):
        return thinned_rows(part, rule, first, last)
    x = part.B[first:last] @ part.A
    if part.low <= 0:
        return x
    # hardshrink drops |x| <= λ; with λ the float before the threshold that is |x| < threshold.
    return functional.hardshrink(x, float(np.nextafter(np.float32(part.low), np.float32(0))))


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def elect_in_place(weighted: Sequence[Tensor], masses: Sequence[float], scale: float, frequency: bool) -> Tensor:
    """``reference.elect`` of the weighted inputs u, which are overwritten; ``masses`` are the |w|.

    γ first; then γ·u is positive exactly where an input agrees, so a rectifier does the masking.
    """
    ballot = _total([part.sign() for part in weighted] if frequency else weighted)
    # A ballot of -0 means that all votes are zeros, and then the sign does not matter.
    elected = torch.copysign(torch.ones(()), ballot)
    total, mass = torch.zeros_like(ballot), torch.zeros_like(ballot)
    for part, weight in zip(weighted, masses, strict=True):
        agreeing = part.mul_(elected).relu_()
        total += agreeing
        mass.add_(agreeing.sign_(), alpha=weight)
    # Where nobody agrees the total is 0 and stays it.
    total.mul_(elected).div_(mass.clamp_min_(torch.finfo(mass.dtype).tiny))
    return total if scale == 1.0 else total.mul_(scale)
