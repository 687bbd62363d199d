"""How much of a module's input lies where an adapter reads: in the span of the rows of its `lora_A`."""

from typing import Final

import torch
from torch import Tensor

_LEAST: Final = 1e-4
"""It is relative to the largest singular value: what is smaller is a row of zeros, or one that is there before, in half
precision."""


def row_basis(a: Tensor) -> Tensor:
    """An orthonormal basis of the span of the rows of ``a``.

    Args:
        a: [rank, in], any float type.

    Returns:
        [in, r], float32, with r at most rank: rows that add nothing to the others have no direction of their own.
    """
    _, sizes, rows = torch.linalg.svd(a.float(), full_matrices=False)
    found: Tensor = rows[sizes > _LEAST * sizes.max()].T.contiguous()
    return found


def row_energy(inputs: Tensor, basis: Tensor) -> Tensor:
    """The share of each input's squared length that lies in the span of ``basis``, 0 to 1; 0 for an input of zeros.

    Args:
        inputs: [n, in], any float type.
        basis: [in, r], orthonormal, float32.

    Returns:
        [n], float32.
    """
    found = inputs.float()
    inside, whole = (found @ basis).square().sum(dim=1), found.square().sum(dim=1)
    return torch.where(whole > 0, inside / whole, torch.zeros_like(whole))
