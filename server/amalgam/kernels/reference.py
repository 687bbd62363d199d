"""Every operation in plain torch: this file is what the operations mean. Other backends change speed only.

Inputs are stacked in dimension 0 (T of them), weights broadcast against the rest, everything is float32 unless said
otherwise. A sparsified entry is 0.
"""

import numpy as np
import torch
from torch import Tensor

from amalgam.kernels.philox import Stream, keep_threshold, words


def delta_tile(B_rows: Tensor, A: Tensor) -> Tensor:
    """B_rows · A for a block of rows, the scale already in B: [rows, r], [r, in] -> [rows, in], float32."""
    return B_rows @ A


def kept_count(density: float, entries: int) -> int:
    """⌊density · entries⌋, but at least 1: a density above 0 keeps something."""
    return max(1, int(density * entries))


def kth_magnitude(x: Tensor, k: int) -> Tensor:
    """The k-th largest |x| of each row, exactly: [n, m] -> [n]; 1 <= k <= m."""
    magnitudes = x.abs()
    if magnitudes.device.type == "cpu":
        # numpy selects with vector instructions; torch's selection is several times slower on a CPU.
        rows = magnitudes.numpy()
        return torch.from_numpy(np.partition(rows, rows.shape[1] - k, axis=1)[:, rows.shape[1] - k].copy())
    return torch.kthvalue(magnitudes, magnitudes.shape[1] - k + 1, dim=1).values


def trim(x: Tensor, threshold: Tensor | float) -> Tensor:
    """X where |x| >= threshold, else 0; entries that equal the threshold stay."""
    return x * (x.abs() >= threshold)


def breadcrumbs(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """X where low <= |x| <= high, else 0."""
    magnitude = x.abs()
    return x * ((magnitude >= low) & (magnitude <= high))


def drop_mask(shape: tuple[int, int], first_row: int, density: float, stream: Stream, device: torch.device) -> Tensor:
    """Which entries DARE keeps in rows first_row .. of a matrix: [rows, columns], bool."""
    rows, columns = shape
    drawn = words(stream, first_row * columns, rows * columns, device)
    return (drawn < keep_threshold(density)).view(rows, columns)


def drop(x: Tensor, mask: Tensor, density: float) -> Tensor:
    """X / density where the mask keeps it, else 0 (DARE, arXiv:2311.03099)."""
    return x * mask * (1.0 / density)


def della_probabilities(x: Tensor, density: float, epsilon: float) -> Tensor:
    """Keep probability by magnitude rank within the row (DELLA, arXiv:2406.11617): [..., columns], float64.

    density - ε for a row's smallest magnitude, density + ε for its largest, linear in the rank between; equal
    magnitudes are ranked by column.
    """
    columns = x.shape[-1]
    if columns == 1:
        return torch.full_like(x, density, dtype=torch.float64)
    order = x.abs().argsort(dim=-1, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(-1, order, torch.arange(columns, device=x.device).expand_as(order).contiguous())
    return density - epsilon + 2 * epsilon * ranks.double() / (columns - 1)


def della(x: Tensor, first_row: int, density: float, epsilon: float, stream: Stream) -> Tensor:
    """X / p with probability p = ``della_probabilities``, else 0; x is [rows, columns]."""
    p = della_probabilities(x, density, epsilon)
    drawn = words(stream, first_row * x.shape[-1], x.numel(), x.device).view_as(x)
    return torch.where(drawn < (p * (1 << 32)).long(), x / p.float(), 0.0)


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Σ_t w_t x_t: [T, ...] -> [...]."""
    return (x * weights).sum(dim=0)


def elect(x: Tensor, weights: Tensor, scale: float, frequency: bool) -> Tensor:
    """Sign election and disjoint mean (TIES, arXiv:2306.01708), with signed weights.

    u = w·x; γ = sign of Σu, or of Σ sign(u) by ``frequency``, a tie counting as +; the result is
    scale · Σ m·u / Σ m·|w| over the inputs whose u has the sign γ, and 0 where there is none. An exact 0 never agrees.

    Args:
        x: [T, ...]. weights: broadcastable to x, signed.
    """
    u = x * weights
    ballot = u.sign().sum(dim=0) if frequency else u.sum(dim=0)
    agree = torch.where(ballot >= 0, u > 0, u < 0)
    mass = (agree * weights.abs()).sum(dim=0)
    total = (u * agree).sum(dim=0)
    return torch.where(mass > 0, total * scale / torch.where(mass > 0, mass, 1.0), 0.0)


def variance(x: Tensor) -> Tensor:
    """Population variance over the inputs: [T, ...] -> [...]."""
    return x.var(dim=0, correction=0)


def sce_combine(x: Tensor, weights: Tensor, energies: Tensor, scale: float) -> Tensor:
    """Elect on the values as they are, then average with weights by energy (SCE, arXiv:2408.07990).

    Args:
        x: [T, ...], positions that were not selected are 0.
        weights: signed, of the user; their signs turn values before the election, their sizes count in the mean alone.
        energies: mean of x_t² of each input, broadcastable like weights.
    """
    total = energies.sum(dim=0, keepdim=True)
    # Where every input is zero the shares do not matter.
    return elect_plain(x, weights * energies / torch.where(total > 0, total, 1.0), scale)


def elect_plain(x: Tensor, weights: Tensor, scale: float) -> Tensor:
    """``elect`` with an election that weights do not sway: γ = sign of Σ sgn(w)·x.

    Args:
        x: [T, ...]. weights: broadcastable to x, signed.
    """
    turned = x * weights.sign()
    agree = torch.where(turned.sum(dim=0) >= 0, turned > 0, turned < 0)
    mass = (agree * weights.abs()).sum(dim=0)
    total = (turned * weights.abs() * agree).sum(dim=0)
    return torch.where(mass > 0, total * scale / torch.where(mass > 0, mass, 1.0), 0.0)
