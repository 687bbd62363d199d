"""KnOTS (arXiv:2410.19735): the inputs in one common left basis, the rule on their right representations.

[Δ_1 … Δ_T] = U·Σ·[W_1ᵀQ_1ᵀ … W_TᵀQ_Tᵀ]; the rule acts on X_t = Σ·W_tᵀ·Q_tᵀ [R, in] and the result is U·rule(X).
No delta is ever formed, and X does not depend on how a delta is split into factors.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from amalgam.kernels.eigen import semidefinite_eigh
from amalgam.merge.lowrank import Factors, finish, inverse_where_safe
from amalgam.merge.stack import Stack

Rule = Callable[[Tensor, Tensor], Tensor]
"""(representations [T, n, rows, columns], weights [T, n]) -> [n, rows, columns]."""


def merge(stack: Stack, rule: Rule, *, energy: float | None, spectrum: bool) -> Factors:
    """U · rule(X), cut to the plan's rank."""
    basis, representations = represent(stack)
    merged = rule(representations, stack.weights.T)
    wide = merged.double()
    identity = torch.ones(wide.shape[:2], dtype=wide.dtype, device=wide.device)
    return finish(
        stack.B, merged, stack.gram_b, wide @ wide.mT, left=basis, right=identity,
        limit=stack.modules[0].rank, energy=energy, spectrum=spectrum,
    )  # fmt: skip


def represent(stack: Stack) -> tuple[Tensor, Tensor]:
    """The common basis and the representations.

    Returns:
        basis [n, R, R], float64, with U = B·basis; X [T, n, R, in], float32, with Δ_t = U·X_t.
    """
    n, total = stack.gram_b.shape[0], sum(stack.ranks)
    roots = torch.zeros((n, total, total), dtype=torch.float64, device=stack.B.device)
    inverses = torch.zeros_like(roots)
    at = 0
    for t, rank in enumerate(stack.ranks):
        block = slice(at, at + rank)
        eigenvalues, V = semidefinite_eigh(stack.gram_a[:, block, block])
        inverse = inverse_where_safe(eigenvalues)
        root = torch.where(inverse > 0, eigenvalues.clamp_min(0).sqrt(), 0.0)
        # A_t = V·root·Q_tᵀ with Q_tᵀ = inverse·Vᵀ·A_t orthonormal; the scale belongs to the product.
        roots[:, block, block] = V * root.unsqueeze(-2) * stack.scaling[:, t, None, None]
        inverses[:, block, block] = inverse.unsqueeze(-1) * V.mT
        at += rank
    squares, W = semidefinite_eigh(roots.mT @ stack.gram_b @ roots)
    squares, W = squares.flip(-1), W.flip(-1)
    inverse = inverse_where_safe(squares)
    sigma = torch.where(inverse > 0, squares.clamp_min(0).sqrt(), 0.0)
    basis = roots @ (W * inverse.unsqueeze(-2))
    mix = sigma.unsqueeze(-1) * (W.mT @ inverses)
    maps = torch.split(mix.float(), list(stack.ranks), dim=2)
    return basis, torch.stack([m @ a for m, (_, a) in zip(maps, stack.parts(), strict=True)])
