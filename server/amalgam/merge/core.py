"""Core space (arXiv:2509.17786): every input as a small matrix M_t [R, R] in common left and right bases.

First each input is brought to its balanced gauge, B_t = U_t√S_t and A_t = √S_tV_tᵀ, without which the common bases,
and so every elementwise rule, would depend on how the delta happens to be split into factors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from amalgam.kernels.eigen import semidefinite_eigh
from amalgam.merge.lowrank import Factors, finish, inverse_where_safe, product_svd
from amalgam.merge.stack import Stack

SAME_DIRECTION = 1e-10
"""Eigenvalue, relative to the largest, below which stacked singular vectors count as repeated: directions that differ
by less than 1e-5. Orthogonalising such a pair would blow up rounding noise."""


@dataclass(frozen=True, slots=True)
class Core:
    """The inputs in core space.

    Shapes, float64: ``left`` [n, R, R] with U = B·left; ``right`` [n, R, R] with Vᵀ = right·A; ``columns`` and
    ``rows`` [n, R, R] with M_t = columns[:, :, t]·rows[:, t, :] over the indices of input t; ``sigma`` [n, R] the
    singular values of each input, side by side.
    """

    left: Tensor
    right: Tensor
    columns: Tensor
    rows: Tensor
    sigma: Tensor

    def matrices(self, ranks: tuple[int, ...]) -> Tensor:
        """M, [T, n, R, R]."""
        sizes = list(ranks)
        pairs = zip(torch.split(self.columns, sizes, dim=2), torch.split(self.rows, sizes, dim=1), strict=True)
        return torch.stack([columns @ rows for columns, rows in pairs])


CoreRule = Callable[[Core, Stack], Tensor]
"""(inputs in core space, the stack) -> merged M [n, R, R]."""


def merge(stack: Stack, rule: CoreRule, *, energy: float | None, spectrum: bool) -> Factors:
    """U · rule(M) · Vᵀ, cut to the plan's rank."""
    core = represent(stack)
    merged = rule(core, stack)
    return finish(
        stack.B, stack.A, stack.gram_b, stack.gram_a, left=core.left, right=merged @ core.right,
        limit=stack.modules[0].rank, energy=energy, spectrum=spectrum,
    )  # fmt: skip


def represent(stack: Stack) -> Core:
    """Balance every input, then find the common bases; R x R work only."""
    to_b, to_a, sigma = balanced_gauge(stack)
    values_b, W = semidefinite_eigh(to_b.mT @ stack.gram_b @ to_b)
    values_a, Z = semidefinite_eigh(to_a @ stack.gram_a @ to_a.mT)
    values_b, W, values_a, Z = values_b.flip(-1), W.flip(-1), values_a.flip(-1), Z.flip(-1)
    inverse_b, inverse_a = inverse_where_safe(values_b), inverse_where_safe(values_a)
    root_b = torch.where(inverse_b > 0, values_b.clamp_min(0).sqrt(), 0.0)
    root_a = torch.where(inverse_a > 0, values_a.clamp_min(0).sqrt(), 0.0)
    return Core(
        left=to_b @ (W * inverse_b.unsqueeze(-2)),
        right=inverse_a.unsqueeze(-1) * (Z.mT @ to_a),
        columns=root_b.unsqueeze(-1) * W.mT,
        rows=Z * root_a.unsqueeze(-2),
        sigma=sigma,
    )


def balanced_gauge(stack: Stack) -> tuple[Tensor, Tensor, Tensor]:
    """Maps with B̂ = B·to_b, Â = to_a·A, block by block B̂_t = U_t√S_t and Â_t = √S_tV_tᵀ; and all S_t, [n, R]."""
    n, total = stack.gram_b.shape[0], sum(stack.ranks)
    to_b = torch.zeros((n, total, total), dtype=torch.float64, device=stack.B.device)
    to_a = torch.zeros_like(to_b)
    sigmas = torch.zeros(to_b.shape[:2], dtype=torch.float64, device=stack.B.device)
    starts = [sum(stack.ranks[:t]) for t in range(len(stack.ranks))]
    for rank in sorted(set(stack.ranks)):
        # Inputs of one rank together: on a GPU a decomposition of many takes as long as one.
        alike = [t for t, one in enumerate(stack.ranks) if one == rank]
        blocks = [slice(starts[t], starts[t] + rank) for t in alike]
        found = product_svd(
            torch.cat([stack.gram_b[:, at, at] for at in blocks]), torch.cat([stack.gram_a[:, at, at] for at in blocks])
        )
        for t, at, P, sigma, W in zip(alike, blocks, *(torch.split(part, n) for part in found), strict=True):
            scale = stack.scaling[:, t, None]
            root = (scale.abs() * sigma).sqrt()
            per_row = torch.where(sigma > 0, root / sigma.clamp_min(torch.finfo(sigma.dtype).tiny), 0.0)
            to_b[:, at, at] = P * (root * scale.sign()).unsqueeze(-2)
            to_a[:, at, at] = per_row.unsqueeze(-1) * W
            sigmas[:, at] = root.square()
    return to_b, to_a, sigmas


def tsv(core: Core, stack: Stack, scale: float) -> Tensor:
    """Task singular vectors (arXiv:2412.00081), rank-limited: U⊥ · diag(w·σ) · V⊥ with both stacks orthogonalised.

    Weights are relative: their mean magnitude is brought to 1, so that one adapter given twice counts once.
    """
    mean = stack.weights.abs().mean(dim=1, keepdim=True)
    sigma = core.sigma * stack.columns(stack.weights / mean)
    root = core.sigma.sqrt()
    inverse = torch.where(root > 0, 1 / root.clamp_min(torch.finfo(root.dtype).tiny), 0.0)
    U = _polar(core.columns * inverse.unsqueeze(-2))
    V = _polar((inverse.unsqueeze(-1) * core.rows).mT)
    merged: Tensor = scale * (U * sigma.unsqueeze(-2)) @ V.mT
    return merged


def iso_c(core: Core, stack: Stack, scale: float) -> Tensor:
    """Isotropic merging (arXiv:2502.04959): Σ w·M with its non-zero singular values all set to their mean."""
    weights = stack.columns(stack.weights)
    summed = (core.columns * weights.unsqueeze(-2)) @ core.rows
    squares, Y = semidefinite_eigh(summed.mT @ summed)
    inverse = inverse_where_safe(squares)
    alive = inverse > 0
    sigma = torch.where(alive, squares.clamp_min(0).sqrt(), 0.0)
    mean = sigma.sum(dim=-1) / alive.sum(dim=-1).clamp_min(1)
    merged: Tensor = scale * mean[:, None, None] * (summed @ (Y * inverse.unsqueeze(-2)) @ Y.mT)
    return merged


def _polar(X: Tensor) -> Tensor:
    """The nearest partial isometry to X [n, R, m], repeated directions taken once."""
    eigenvalues, Q = semidefinite_eigh(X.mT @ X)
    safe = eigenvalues > eigenvalues.amax(dim=-1, keepdim=True) * SAME_DIRECTION
    inverse = torch.where(safe, eigenvalues.clamp_min(torch.finfo(eigenvalues.dtype).tiny).rsqrt(), 0.0)
    isometry: Tensor = X @ (Q * inverse.unsqueeze(-2)) @ Q.mT
    return isometry
