"""Pre-steps, for any method: what is done to the inputs before they are merged."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from amalgam.domain.recipe import Recipe
from amalgam.kernels.eigen import semidefinite_eigh
from amalgam.merge.core import balanced_gauge
from amalgam.merge.lowrank import inverse_where_safe
from amalgam.merge.stack import Stack

_ROUNDING: Final = torch.finfo(torch.float32).eps
"""It is a share of a column's length. Factors are stored in float32 at most: less of one is not told by them."""


def prepare(stack: Stack, recipe: Recipe, references: Mapping[str, Tensor] | None) -> Stack:
    """The stack after the recipe's pre-steps: orthogonalise, balance norms, calibrate, in this order.

    Args:
        stack: The inputs.
        recipe: Says which steps.
        references: ``B`` [n, out, r] and ``A`` [n, r, in] of the adapters to stay orthogonal to; None without any.
    """
    if references is not None:
        stack = orthogonalize(stack, references["B"])
        if recipe.orthogonalize_rows:
            stack = orthogonalize_rows(stack, references["A"])
    if recipe.norm_balance:
        stack = balance_norms(stack)
    if recipe.calibrate == "pico":
        stack = calibrate_pico(stack)
    return stack


def orthogonalize(stack: Stack, reference: Tensor) -> Stack:
    """B ← B - QQᵀB with Q an orthonormal basis of the reference's columns (O-LoRA, arXiv:2310.14152).

    Args:
        reference: All old B side by side, [n, out, r].
    """
    return stack.with_b(_cleared(stack.B, reference))


def orthogonalize_rows(stack: Stack, reference: Tensor) -> Stack:
    """A ← A - AQQᵀ with Q an orthonormal basis of the reference's rows.

    Args:
        reference: All old A, one below the other, [n, r, in].
    """
    return stack.with_a(_cleared(stack.A.mT, reference.mT).mT.contiguous())


def _cleared(columns: Tensor, reference: Tensor) -> Tensor:
    """The columns less their part in the span of the reference's columns, computed in float64.

    What is left of a column that lies in the span is rounding. It becomes zero, so that nothing makes it large again.
    """
    wide = reference.double()
    eigenvalues, V = semidefinite_eigh(wide.mT @ wide)
    Q = wide @ (V * inverse_where_safe(eigenvalues).unsqueeze(-2))
    exact = columns.double()
    cleared: Tensor = exact - Q @ (Q.mT @ exact)
    told = cleared.norm(dim=-2, keepdim=True) > _ROUNDING * exact.norm(dim=-2, keepdim=True)
    return torch.where(told, cleared, 0.0).float()


def balance_norms(stack: Stack) -> Stack:
    """Every Δ_t is scaled to the mean norm of the inputs; a zero delta stays zero."""
    norms = torch.diagonal(stack.gram_delta, dim1=1, dim2=2).clamp_min(0).sqrt()
    ratio = norms.mean(dim=1, keepdim=True) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return stack.with_scaling(stack.scaling * torch.where(norms > 0, ratio, 0.0))


def calibrate_pico(stack: Stack) -> Stack:
    """Damp the output directions that the inputs share.

    With U, σ the left singular vectors and values of the balanced [B_1 … B_T] and a_j = 1/(1 + (T-1)·σ_j²/Σσ²), every
    delta becomes (I + U(diag a - 1)Uᵀ)·Δ_t, and all are then scaled alike so that their mean norm is what it was.
    """
    count = len(stack.ranks)
    before = torch.diagonal(stack.gram_delta, dim1=1, dim2=2).clamp_min(0).sqrt().mean(dim=1, keepdim=True)
    to_b, _, _ = balanced_gauge(stack)
    squares, W = semidefinite_eigh(to_b.mT @ stack.gram_b @ to_b)
    squares = squares.clamp_min(0)
    total = squares.sum(dim=-1, keepdim=True)
    damping = 1 / (1 + (count - 1) * squares / torch.where(total > 0, total, 1.0))
    basis = to_b @ (W * inverse_where_safe(squares).unsqueeze(-2))
    # B + U(a - 1)UᵀB with U = B·basis, so the correction is B times an R x R matrix.
    correction = basis @ ((damping - 1).unsqueeze(-1) * (basis.mT @ stack.gram_b))
    damped = stack.with_b(stack.B + stack.B @ correction.float())
    after = torch.diagonal(damped.gram_delta, dim1=1, dim2=2).clamp_min(0).sqrt().mean(dim=1, keepdim=True)
    return damped.with_scaling(
        damped.scaling * torch.where(after > 0, before / torch.where(after > 0, after, 1.0), 1.0)
    )
