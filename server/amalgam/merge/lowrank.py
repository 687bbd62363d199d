"""The best approximation of a product of factors at a rank, without ever forming the product."""

from dataclasses import dataclass

import torch
from torch import Tensor

TINY_EIGENVALUE = 1e-13
"""Relative to the largest. Gram matrices are kept in float64, so this drops only directions below 3e-7 of the norm,
which float32 factors cannot hold."""


@dataclass(frozen=True, slots=True)
class Factors:
    """A batch of results: Δ ≈ B · A.

    Shapes: ``B`` [n, out, q], ``A`` [n, q, in], float32; ``spectrum`` [n, s], float64, descending, the singular values
    that were seen; ``total`` [n], float64, Σσ² of the whole; ``ranks`` one int per module, at most q, beyond which the
    factors are to be cut.
    """

    B: Tensor
    A: Tensor
    ranks: tuple[int, ...]
    spectrum: Tensor
    total: Tensor

    @property
    def kept(self) -> Tensor:
        """Σσ² of what was kept, [n], float64."""
        squares = self.spectrum.square()
        return torch.stack([row[:rank].sum() for row, rank in zip(squares, self.ranks, strict=True)])


def inverse_where_safe(eigenvalues: Tensor) -> Tensor:
    """1/√λ, and 0 where λ is negligible beside the largest; [n, R] -> [n, R]."""
    floor = eigenvalues.amax(dim=-1, keepdim=True).clamp_min(0) * TINY_EIGENVALUE
    safe = eigenvalues > floor
    return torch.where(safe, eigenvalues.clamp_min(torch.finfo(eigenvalues.dtype).tiny).rsqrt(), 0.0)


def product_svd(gram_b: Tensor, gram_a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compact SVD of B·A from BᵀB and AAᵀ: left = B·P is orthonormal, right = W·A is diag(σ)·Vᵀ, and B·A = B·P·W·A.

    With BᵀB = VDVᵀ, Q = BVD^-½ is an orthonormal basis of B's columns and B·A = Q·(D^½VᵀA); the left singular vectors X
    of the second factor come from its own Gram matrix D^½Vᵀ(AAᵀ)VD^½. X is orthogonal to working precision whatever the
    accuracy of the small singular values, so the product is exact even where they are not.

    Args:
        gram_b: [n, R, R], float64.
        gram_a: [n, R, R], float64.

    Returns:
        P [n, R, R], σ [n, R] descending, W [n, R, R], float64.
    """
    eigenvalues, V = torch.linalg.eigh(gram_b)
    inverse_root = inverse_where_safe(eigenvalues)
    root = torch.where(inverse_root > 0, eigenvalues.clamp_min(0).sqrt(), 0.0)
    half = root.unsqueeze(-1) * V.mT
    squares, X = torch.linalg.eigh(half @ gram_a @ half.mT)
    squares, X = squares.flip(-1).clamp_min(0), X.flip(-1)
    P = (V * inverse_root.unsqueeze(-2)) @ X
    return P, squares.sqrt(), X.mT @ half


def choose_ranks(spectrum: Tensor, limit: int, energy: float | None) -> tuple[int, ...]:
    """Per module, ``limit``, or the smallest rank at most ``limit`` that keeps ``energy`` of Σσ²; at least 1."""
    limit = min(limit, spectrum.shape[-1])
    if energy is None:
        return (limit,) * spectrum.shape[0]
    squares = spectrum.square()
    # The slack of 1e-12 keeps energy=1 from asking for directions that are rounding noise.
    wanted = squares.sum(dim=-1, keepdim=True) * (energy - 1e-12)
    needed = (squares.cumsum(dim=-1) < wanted).sum(dim=-1) + 1
    return tuple(int(rank) for rank in needed.clamp(max=limit))


def recompress(
    B: Tensor, A: Tensor, gram_b: Tensor, gram_a: Tensor, coefficients: Tensor, limit: int, energy: float | None = None
) -> Factors:
    """The best approximation of B·diag(c)·A at a rank, its singular values split evenly over both factors.

    Args:
        B: [n, out, R], float32. A: [n, R, in], float32.
        gram_b: BᵀB and gram_a: AAᵀ, [n, R, R], float64.
        coefficients: c, [n, R], signed.
        limit: Largest rank. energy: Per module the smallest rank that keeps this share, at most ``limit``.
    """
    on_b, on_a = balanced_split(coefficients, gram_b, gram_a)
    scaled_b = gram_b * on_b.unsqueeze(-1) * on_b.unsqueeze(-2)
    scaled_a = gram_a * on_a.unsqueeze(-1) * on_a.unsqueeze(-2)
    P, spectrum, W = product_svd(scaled_b, scaled_a)
    ranks = choose_ranks(spectrum, limit, energy)
    q = max(ranks)
    balance = spectrum[:, :q].sqrt()
    # W's rows carry σ; where σ vanishes the row does too, and stays zero.
    unbalance = torch.where(balance > 0, 1 / balance.clamp_min(torch.finfo(balance.dtype).tiny), 0.0)
    left = on_b.unsqueeze(-1) * P[:, :, :q] * balance.unsqueeze(-2)
    right = unbalance.unsqueeze(-1) * W[:, :q] * on_a.unsqueeze(-2)
    return Factors(B @ left.float(), right.float() @ A, ranks, spectrum, spectrum.square().sum(dim=-1))


def balanced_split(coefficients: Tensor, gram_b: Tensor, gram_a: Tensor) -> tuple[Tensor, Tensor]:
    """Split each column's coefficient over B and A so that both columns get nearly the same norm.

    A's part is a power of two, so that A passes unrounded through any storage type and B is rounded once.

    Args:
        coefficients: c, [n, R], signed. gram_b, gram_a: [n, R, R].

    Returns:
        (on_b, on_a), [n, R]; on_b * on_a = c.
    """
    norm_b = torch.diagonal(gram_b, dim1=1, dim2=2).sqrt()
    norm_a = torch.diagonal(gram_a, dim1=1, dim2=2).sqrt()
    ratio = coefficients.abs() * norm_b / norm_a.clamp_min(torch.finfo(norm_a.dtype).tiny)
    usable = (ratio > 0) & (norm_a > 0) & torch.isfinite(ratio)
    on_a = torch.exp2(torch.round(torch.log2(torch.where(usable, ratio, 1.0)) / 2))
    return coefficients / on_a, on_a
