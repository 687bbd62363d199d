"""Core space (arXiv:2509.17786): every input as a small matrix M_t [R, R] in common left and right bases.

First each input is brought to its balanced gauge, B_t = U_t√S_t and A_t = √S_tV_tᵀ, without which the common bases,
and so every elementwise rule, would depend on how the delta happens to be split into factors.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amalgam.kernels.eigen import semidefinite_eigh
from amalgam.merge.lowrank import Factors, choose_ranks, finish, inverse_where_safe, product_svd
from amalgam.merge.stack import Stack

SAME_DIRECTION = 1e-10
"""Stacked singular vectors are taken for repeated below this eigenvalue, relative to the largest: directions that
differ by less than 1e-5. Orthogonalising such a pair would blow up rounding noise."""


@dataclass(frozen=True, slots=True)
class Core:
    """The inputs in core space.

    Shapes, float64: ``left`` [n, R, R] with U = B·left; ``right`` [n, R, R] with Vᵀ = right·A; ``columns`` and
    ``rows`` [n, R, R] with M_t = columns[:, :, t]·rows[:, t, :] over the indices of input t; ``sigma`` [n, R] the
    singular values of each input, side by side; ``extents`` how many rows and columns of M are there in each module:
    the numerical ranks of the two common bases.
    """

    left: Tensor
    right: Tensor
    columns: Tensor
    rows: Tensor
    sigma: Tensor
    extents: tuple[tuple[int, int], ...]

    def matrices(self, ranks: tuple[int, ...]) -> Tensor:
        """M, [T, n, R, R]."""
        sizes = list(ranks)
        pairs = zip(torch.split(self.columns, sizes, dim=2), torch.split(self.rows, sizes, dim=1), strict=True)
        return torch.stack([columns @ rows for columns, rows in pairs])


@dataclass(frozen=True, slots=True)
class MergedCore:
    """A rule's result: ``M`` [n, R, R], float64.

    ``kept`` [n] is the share of Σσ² that the rule itself has kept where it cuts to the output's rank; None elsewhere.
    """

    M: Tensor
    kept: Tensor | None = None


CoreRule = Callable[[Core, Stack], MergedCore]


def merge(stack: Stack, rule: CoreRule, *, floor: float, energy: float | None, spectrum: bool) -> Factors:
    """U · rule(M) · Vᵀ, cut to the plan's rank; ``floor`` as for `represent`."""
    core = represent(stack, floor)
    merged = rule(core, stack)
    factors = finish(
        stack.B, stack.A, stack.gram_b, stack.gram_a, left=core.left, right=merged.M @ core.right,
        # What a rule has cut already holds nothing beyond its rank.
        limit=stack.modules[0].rank, energy=energy if merged.kept is None else 1.0, spectrum=spectrum,
    )  # fmt: skip
    return factors if merged.kept is None else replace(factors, total=factors.total / merged.kept)


def represent(stack: Stack, floor: float = 0.0) -> Core:
    """Balance every input, then find the common bases; R x R work only.

    Args:
        stack: The inputs.
        floor: Directions of an input whose singular value is below this share of its largest are taken for noise and
            left out, in bases and matrices alike; for rules that count entries.
    """
    to_b, to_a, sigma = balanced_gauge(stack, floor)
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
        extents=tuple(zip(_count(values_b), _count(values_a), strict=True)),
    )


def _count(values: Tensor) -> list[int]:
    """How many eigenvalues of each Gram matrix [n, R], descending, are more than noise."""
    return [int(count) for count in (values > values[:, :1].clamp_min(0) * SAME_DIRECTION).sum(dim=-1).tolist()]


def balanced_gauge(stack: Stack, floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
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
            sigma = torch.where(sigma >= sigma[:, :1] * floor, sigma, 0.0)
            scale = stack.scaling[:, t, None]
            root = (scale.abs() * sigma).sqrt()
            per_row = torch.where(sigma > 0, root / sigma.clamp_min(torch.finfo(sigma.dtype).tiny), 0.0)
            to_b[:, at, at] = P * (root * scale.sign()).unsqueeze(-2)
            to_a[:, at, at] = per_row.unsqueeze(-1) * W
            sigmas[:, at] = root.square()
    return to_b, to_a, sigmas


def tsv(core: Core, stack: Stack, scale: float, energy: float | None) -> MergedCore:
    """Task singular vectors (arXiv:2412.00081), rank-limited: U⊥ · diag(w·σ) · V⊥ with both stacks orthogonalised.

    Weights are relative: their mean magnitude is brought to 1, so that one adapter given twice counts once.
    """
    mean = stack.weights.abs().mean(dim=1, keepdim=True)
    sigma = core.sigma * stack.columns(stack.weights / mean)
    root = core.sigma.sqrt()
    inverse = torch.where(root > 0, 1 / root.clamp_min(torch.finfo(root.dtype).tiny), 0.0)
    U = _polar(core.columns * inverse.unsqueeze(-2))
    V = _polar((inverse.unsqueeze(-1) * core.rows).mT)
    return MergedCore(scale * (U * sigma.unsqueeze(-2)) @ V.mT)


def iso_c(core: Core, stack: Stack, scale: float, energy: float | None) -> MergedCore:
    """Isotropic merging (arXiv:2502.04959): Σ w·M cut to the output's rank, then all its singular values their mean.

    The cut comes first: of equal values no cut could say which to keep.
    """
    weights = stack.columns(stack.weights)
    summed = (core.columns * weights.unsqueeze(-2)) @ core.rows
    squares, Y = semidefinite_eigh(summed.mT @ summed)
    squares, Y = squares.flip(-1).clamp_min(0), Y.flip(-1)
    inverse = inverse_where_safe(squares)
    sigma = torch.where(inverse > 0, squares.sqrt(), 0.0)
    ranks = choose_ranks(sigma, stack.modules[0].rank, energy)
    places = torch.arange(sigma.shape[1], device=sigma.device)
    kept = (places < torch.tensor(ranks, device=sigma.device)[:, None]) & (inverse > 0)
    mean = torch.where(kept, sigma, 0.0).sum(dim=-1) / kept.sum(dim=-1).clamp_min(1)
    inverse = torch.where(kept, inverse, 0.0)
    merged = scale * mean[:, None, None] * (summed @ (Y * inverse.unsqueeze(-2)) @ Y.mT)
    total = squares.sum(dim=-1)
    share = torch.where(total > 0, torch.where(kept, squares, 0.0).sum(dim=-1) / total.clamp_min(1e-300), 1.0)
    return MergedCore(merged, share)


def _polar(X: Tensor) -> Tensor:
    """The nearest partial isometry to X [n, R, m], repeated directions taken once."""
    eigenvalues, Q = semidefinite_eigh(X.mT @ X)
    safe = eigenvalues > eigenvalues.amax(dim=-1, keepdim=True) * SAME_DIRECTION
    inverse = torch.where(safe, eigenvalues.clamp_min(torch.finfo(eigenvalues.dtype).tiny).rsqrt(), 0.0)
    isometry: Tensor = X @ (Q * inverse.unsqueeze(-2)) @ Q.mT
    return isometry
