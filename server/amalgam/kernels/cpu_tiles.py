"""The tile operation for processors: few passes over blocks that stay in the cache; the values of the reference."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from amalgam.kernels import reference
from amalgam.kernels.tiles import TileInput, TileRule, order_statistics_by_rows, thinned_rows

_INTEGERS: Final = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Of the width of a floating type, for its sign bit."""


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
        self, part: TileInput, rule: TileRule, shape: tuple[int, int], ks: Sequence[int], buffer: Tensor | None
    ) -> list[float]:
        """See ``TileBackend``."""
        return order_statistics_by_rows(part, rule, shape, ks, buffer, _thinned)


def _thinned(part: TileInput, rule: TileRule, first: int, last: int) -> Tensor:
    """As ``thinned_rows``, in a tensor of its own; a trim and a drop are one pass each."""
    if rule.sparsify not in ("none", "trim", "drop"):
        return thinned_rows(part, rule, first, last)
    if rule.sparsify == "drop":
        x = (part.B[first:last] * (1.0 / rule.density)) @ part.A
        mask = reference.drop_mask((last - first, x.shape[1]), first, rule.density, part.stream, x.device)
        # torch multiplies by flags at half of numpy's speed.
        np.multiply(x.numpy(), mask.numpy(), out=x.numpy())
    else:
        x = part.B[first:last] @ part.A
    if part.low <= 0:
        return x
    # hardshrink drops |x| <= λ; with λ the float before the threshold that is |x| < threshold.
    return functional.hardshrink(x, float(np.nextafter(np.float32(part.low), np.float32(0))))


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Σ parts, in a tensor of its own."""
    total = parts[0] + parts[1] if len(parts) > 1 else parts[0].clone()
    for part in parts[2:]:
        total += part
    return total


def elect_in_place(weighted: Sequence[Tensor], masses: Sequence[float], scale: float, frequency: bool) -> Tensor:
    """``reference.elect`` of the weighted inputs u, which are overwritten; ``masses`` are the |w|.

    γ is the sign bit of the ballot. Under exclusive or with it an input is positive exactly where it agrees, so a
    rectifier does the masking.
    """
    ballot = _total([part.sign() for part in weighted] if frequency else weighted)
    whole = _INTEGERS[ballot.dtype]
    # A ballot of -0 means that all votes are zeros, and then the sign does not matter.
    elected = ballot.view(whole).bitwise_and_(torch.iinfo(whole).min)
    for part in weighted:
        part.view(whole).bitwise_xor_(elected)
        part.relu_()
    total = _total(weighted)
    mass = weighted[0].sign_().mul_(masses[0])
    for part, weight in zip(weighted[1:], masses[1:], strict=True):
        mass.add_(part.sign_(), alpha=weight)
    # Where nobody agrees the total is 0 and stays it.
    total.div_(mass.clamp_min_(torch.finfo(mass.dtype).tiny)).view(whole).bitwise_xor_(elected)
    return total if scale == 1.0 else total.mul_(scale)
