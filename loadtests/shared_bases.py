"""Compress, then merge (CTM, arXiv:2606.03723): inputs become small matrices in bases that all share, and meet there.

In each module the bases are the first singular vectors of all deltas side by side and one below the other, as many as
the largest rank of an input. What an input does outside of them is lost, and the result has that rank.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from amalgam.kernels.reference import elect, kept_count, kth_magnitude, trim
from amalgam.merge.sources import TensorSource

DENSITY: Final = 0.2
"""What `ties` keeps of each input, as in the server."""

Rule = Callable[[Tensor], Tensor]
"""Of all inputs [T, r, r] to one [r, r]."""


def compressed(sources: Mapping[str, TensorSource], rule: Rule) -> dict[str, tuple[Tensor, Tensor]]:
    """The merge by this rule: module -> A [r, in], B [out, r], float32."""
    found = {}
    for module in dict.fromkeys(name for one in sources.values() for name in one.header.modules):
        down, up = [], []
        for one in sources.values():
            if (header := one.header.modules.get(module)) is not None:
                a, b = one.factors(module)
                down.append(a.float())
                up.append(b.float() * header.scaling)
        rank = max(a.shape[0] for a in down)
        left = leading(up, down, rank)
        right = leading([a.mT for a in down], [b.mT for b in up], rank)
        inputs = torch.stack([(left.mT @ b) @ (a @ right) for a, b in zip(down, up, strict=True)])
        found[module] = (rule(inputs) @ right.mT, left)
    return found


def leading(columns: Sequence[Tensor], rows: Sequence[Tensor], rank: int) -> Tensor:
    """The first left singular vectors of [C_1 R_1 … C_T R_T].

    Args:
        columns: C_t [n, r_t].
        rows: R_t [r_t, m_t]; of each its triangular factor is enough.
        rank: how many vectors.

    Returns: [n, rank].
    """
    parts = [c @ torch.linalg.qr(r.mT).R.mT for c, r in zip(columns, rows, strict=True)]
    found: Tensor = torch.linalg.svd(torch.cat(parts, dim=1), full_matrices=False).U
    return found[:, :rank]


def summed(inputs: Tensor) -> Tensor:
    """Σ of the inputs."""
    return inputs.sum(dim=0)


def averaged(inputs: Tensor) -> Tensor:
    """Their mean."""
    return inputs.mean(dim=0)


def elected(inputs: Tensor) -> Tensor:
    """Trim each, elect signs, average what agrees (TIES, arXiv:2306.01708)."""
    flat = inputs.flatten(1)
    thresholds = kth_magnitude(flat, kept_count(DENSITY, flat.shape[1]))
    kept = trim(flat, thresholds[:, None]).view_as(inputs)
    return elect(kept, torch.ones(len(kept), 1, 1), 1.0, False)


RULES: Final[Mapping[str, Rule]] = {
    "ctm: task_arithmetic({})": summed,
    "ctm: linear({})": averaged,
    "ctm: ties({})": elected,
}
"""By how a row names them."""
