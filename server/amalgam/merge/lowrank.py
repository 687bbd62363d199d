"""The best approximation of a product of factors at a rank, without ever forming the product."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amalgam.errors.merging import NonFinite
from amalgam.kernels.eigen import semidefinite_eigh

TINY_EIGENVALUE = 1e-13
"""It is relative to the largest. Gram matrices are kept in float64, so this drops only directions below 3e-7 of the
norm, which float32 factors cannot hold."""


NUMERICAL_RANK = 1e-5
"""A direction is not there below this singular value, relative to the largest: a factor in float32 that has lost a rank
keeps rounding noise in its place, up to this where it was written through other factors."""


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
        places = torch.arange(self.spectrum.shape[1], device=self.spectrum.device)
        ranks = torch.tensor(self.ranks, device=self.spectrum.device)
        return torch.where(places < ranks[:, None], self.spectrum.square(), 0.0).sum(dim=1)


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
    eigenvalues, V = semidefinite_eigh(gram_b)
    inverse_root = inverse_where_safe(eigenvalues)
    root = torch.where(inverse_root > 0, eigenvalues.clamp_min(0).sqrt(), 0.0)
    half = root.unsqueeze(-1) * V.mT
    squares, X = semidefinite_eigh(half @ gram_a @ half.mT)
    squares, X = squares.flip(-1).clamp_min(0), X.flip(-1)
    P = (V * inverse_root.unsqueeze(-2)) @ X
    return P, squares.sqrt(), X.mT @ half


def choose_ranks(spectrum: Tensor, limit: int, energy: float | None, total: Tensor | None = None) -> tuple[int, ...]:
    """Per module, ``limit``, or the smallest rank at most ``limit`` that keeps ``energy`` of Σσ²; at least 1.

    Args:
        spectrum: [n, s], descending. limit: Largest rank. energy: Share to keep.
        total: Σσ² [n], where the spectrum does not show all of it.
    """
    limit = min(limit, spectrum.shape[-1])
    if energy is None:
        return (limit,) * spectrum.shape[0]
    squares = spectrum.square()
    whole = squares.sum(dim=-1) if total is None else total
    # The slack of 1e-12 keeps energy=1 from asking for directions that are rounding noise.
    needed = (squares.cumsum(dim=-1) < whole.unsqueeze(-1) * (energy - 1e-12)).sum(dim=-1) + 1
    return tuple(int(rank) for rank in needed.clamp(max=limit))


def finish(
    B: Tensor,
    A: Tensor,
    gram_b: Tensor,
    gram_a: Tensor,
    *,
    left: Tensor,
    right: Tensor,
    limit: int,
    energy: float | None,
    spectrum: bool,
    cancels: Tensor | None = None,
) -> Factors:
    """B·left·right·A as factors of at most ``limit`` columns.

    Where nothing has to be cut the factors pass on, each column balanced against its row; else they are recompressed
    into the best approximation at that rank, singular values split evenly.

    Args:
        B: [n, out, R]. A: [n, S, in]; float32.
        gram_b: BᵀB. gram_a: AAᵀ; float64.
        left: [n, R, p], or [n, R] for a diagonal; float64.
        right: [n, p, S], or [n, S] for a diagonal; float64.
        limit: Largest rank.
        energy: Where set, per module the smallest rank that keeps this share, at most ``limit``.
        spectrum: Whether singular values are wanted even where nothing is cut.
        cancels: [n], modules whose columns nearly cancel: they are recompressed although nothing is cut, so that what
            is rounded later has the size of the result.

    Raises:
        NonFinite: the product has overflowed.
    """
    mapped_b, mapped_a = _congruent(gram_b, left), _congruent(gram_a, right.mT if right.dim() == 3 else right)
    if not bool(torch.isfinite(mapped_a.sum() + mapped_b.sum())):
        raise NonFinite("The result", "the modules of one shape")
    on_b, on_a = balanced_split(mapped_b, mapped_a)
    mapped_b = mapped_b * on_b.unsqueeze(-1) * on_b.unsqueeze(-2)
    mapped_a = mapped_a * on_a.unsqueeze(-1) * on_a.unsqueeze(-2)
    left = left * (on_b if left.dim() == 2 else on_b.unsqueeze(-2))
    right = right * (on_a if right.dim() == 2 else on_a.unsqueeze(-1))
    count, width = mapped_b.shape[:2]
    whole = limit >= width and energy is None
    if whole and cancels is not None and bool(cancels.any()):
        return _recompressed_where(cancels, B, A, (mapped_b, mapped_a), (left, right))
    if whole:
        values = product_svd(mapped_b, mapped_a)[1] if spectrum else mapped_b.new_zeros((count, 0))
        return Factors(_right_of(B, left), _left_of(right, A), (width,) * count, values, values.square().sum(dim=-1))
    P, values, W = product_svd(mapped_b, mapped_a)
    ranks = choose_ranks(values, limit, energy)
    balance = values[:, : max(ranks)].sqrt()
    # W's rows carry σ; where σ vanishes the row does too, and stays zero.
    unbalance = torch.where(balance > 0, 1 / balance.clamp_min(torch.finfo(balance.dtype).tiny), 0.0)
    cut_left = _right_of(left.diag_embed() if left.dim() == 2 else left, P[:, :, : max(ranks)] * balance.unsqueeze(-2))
    cut_right = unbalance.unsqueeze(-1) * W[:, : max(ranks)]
    cut_right = cut_right * right.unsqueeze(-2) if right.dim() == 2 else cut_right @ right
    return Factors(_right_of(B, cut_left), _left_of(cut_right, A), ranks, values, values.square().sum(dim=-1))


def _recompressed_where(
    cancels: Tensor, B: Tensor, A: Tensor, grams: tuple[Tensor, Tensor], maps: tuple[Tensor, Tensor]
) -> Factors:
    """B·left·right·A whole; the modules of ``cancels`` as balanced singular vectors, computed in float64."""
    left, right = maps
    P, values, W = product_svd(*grams)
    width = values.shape[1]
    out_b, out_a = _right_of(B, left), _left_of(right, A)
    root = values.sqrt()
    inverse = torch.where(root > 0, 1 / root.clamp_min(torch.finfo(root.dtype).tiny), 0.0)
    for row in cancels.nonzero().flatten().tolist():
        whole_left = left[row].diag_embed() if left.dim() == 2 else left[row]
        whole_right = right[row].diag_embed() if right.dim() == 2 else right[row]
        out_b[row] = (B[row].double() @ (whole_left @ (P[row] * root[row]))).to(B.dtype)
        out_a[row] = ((inverse[row].unsqueeze(-1) * W[row] @ whole_right) @ A[row].double()).to(A.dtype)
    return Factors(out_b, out_a, (width,) * B.shape[0], values, values.square().sum(dim=-1))


def balanced_split(gram_b: Tensor, gram_a: Tensor) -> tuple[Tensor, Tensor]:
    """Scales (on_b, on_a) [n, p], on_b · on_a = 1, that bring each column of B and row of A near one norm.

    They are powers of two, so that nothing is rounded.
    """
    norm_b = torch.diagonal(gram_b, dim1=1, dim2=2).clamp_min(0).sqrt()
    norm_a = torch.diagonal(gram_a, dim1=1, dim2=2).clamp_min(0).sqrt()
    usable = (norm_b > 0) & (norm_a > 0)
    ratio = torch.where(usable, norm_b, 1.0) / torch.where(usable, norm_a, 1.0)
    on_a = torch.exp2(torch.round(torch.log2(ratio) / 2))
    return 1 / on_a, on_a


def _congruent(gram: Tensor, matrix: Tensor) -> Tensor:
    """MᵀGM, for a matrix M [n, R, p] or a diagonal [n, R]."""
    if matrix.dim() == 2:
        return gram * matrix.unsqueeze(-1) * matrix.unsqueeze(-2)
    return matrix.mT @ gram @ matrix


def _right_of(B: Tensor, matrix: Tensor) -> Tensor:
    """B·M in B's dtype, for a matrix or a diagonal M."""
    matrix = matrix.to(B.dtype)
    return B * matrix.unsqueeze(-2) if matrix.dim() == 2 else B @ matrix


def _left_of(matrix: Tensor, A: Tensor) -> Tensor:
    """M·A in A's dtype, for a matrix or a diagonal M."""
    matrix = matrix.to(A.dtype)
    return matrix.unsqueeze(-1) * A if matrix.dim() == 2 else matrix @ A
