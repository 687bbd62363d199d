"""Low-rank products over rows that belong to different adapters, in plain torch.

Slots are the engine's places for resident adapters. Factors of all slots come stacked: A is [slots, 1, rank, in],
B is [slots, 1, out, rank]; a slot whose adapter does not have a module holds zeros.
"""

import torch
from torch import Tensor

Groups = tuple[tuple[int, Tensor], ...]
"""(slot, the rows that use it), one pair per slot in use; rows without an adapter are in none."""


def group_rows(slot_of_row: Tensor) -> Groups:
    """Group rows by slot.

    Args:
        slot_of_row: [rows], int64; -1 where the row has no adapter.
    """
    slots = torch.unique(slot_of_row).tolist()
    return tuple((slot, (slot_of_row == slot).nonzero().squeeze(1)) for slot in slots if slot >= 0)


def shrink_(y: Tensor, x: Tensor, factors: Tensor, scale: float, groups: Groups) -> None:
    """y[r, :rank] += scale · x[r] @ A[slot of r]ᵀ, in float32.

    Args:
        y: [rows, ≥ rank], float32. x: [rows, in]. factors: [slots, 1, rank, in].
    """
    rank = factors.shape[-2]
    for slot, rows in groups:
        hidden = x[rows].float() @ factors[slot].view(rank, -1).float().T
        y[:, :rank].index_add_(0, rows, hidden.to(y.dtype), alpha=scale)


def expand_(y: Tensor, x: Tensor, factors: Tensor, groups: Groups, *, add_inputs: bool = True) -> None:
    """y[r] += x[r] @ B[slot of r]ᵀ over the columns that both have; without add_inputs those columns are replaced.

    Args:
        y: [rows, out]. x: [rows, rank]. factors: [slots, 1, out', rank]; out' and out may differ by padding.
    """
    width = min(y.shape[1], factors.shape[-2])
    for slot, rows in groups:
        delta = x[rows].float() @ factors[slot].view(-1, factors.shape[-1])[:width].float().T
        if add_inputs:
            delta += y[rows, :width].float()
        y[rows, :width] = delta.to(y.dtype)
