"""KnOTS (arXiv:2410.19735): the inputs in one common left basis, the rule on their right representations.

[Δ_1 … Δ_T] = U·Σ·[W_1ᵀQ_1ᵀ … W_TᵀQ_Tᵀ]; the rule acts on X_t = Σ·W_tᵀ·Q_tᵀ [R, in] and the result is U·rule(X).
No delta is ever formed, and X does not depend on how a delta is split into factors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from amalgam.kernels.eigen import semidefinite_eigh
from amalgam.merge.lowrank import NUMERICAL_RANK, Factors, finish, inverse_where_safe
from amalgam.merge.stack import Stack

HELD_BYTES: Final = 128 << 20
"""At most so many bytes of one module's representations are held at once."""

Rule = Callable[[Tensor, Tensor, Sequence[tuple[int, int]]], Tensor]
"""It takes representations [T, n, rows, columns], weights [T, n], and the rows and columns of each module that are
there, and gives [n, rows, columns]."""


@dataclass(frozen=True, slots=True)
class Knots:
    """The inputs in their common left basis.

    Shapes: ``basis`` [n, R, R], float64, with U = B·basis; ``mix`` T maps [n, R, r_t], float32, with X_t = mix_t·A_t
    and Δ_t = U·X_t, rows in order of their singular value. ``extents`` is how many rows and columns of each module are
    there: the numerical rank of the inputs together, and all columns.
    """

    basis: Tensor
    mix: tuple[Tensor, ...]
    extents: tuple[tuple[int, int], ...]

    def representations(self, stack: Stack) -> Tensor:
        """X, [T, n, R, in], float32."""
        return torch.stack([mix @ a for mix, (_, a) in zip(self.mix, stack.parts(), strict=True)])


def representation_bytes(count: int, total_rank: int, in_features: int) -> int:
    """What X of one module takes: ``count`` inputs, [total_rank, in_features] each."""
    return 4 * count * total_rank * in_features


def is_streamed(count: int, total_rank: int, in_features: int) -> bool:
    """Whether a module's representations are too much to hold at once, and are merged in blocks of rows.

    By the module alone: the workspace must not decide what the last bits of a result are.
    """
    return representation_bytes(count, total_rank, in_features) > HELD_BYTES


def merge(stack: Stack, rule: Rule, *, energy: float | None, spectrum: bool) -> Factors:
    """U · rule(X), cut to the plan's rank."""
    knots = represent(stack)
    merged = rule(knots.representations(stack), stack.weights.T, knots.extents)
    return project(stack, knots, merged, energy=energy, spectrum=spectrum)


def project(stack: Stack, knots: Knots, merged: Tensor, *, energy: float | None, spectrum: bool) -> Factors:
    """U · merged [n, R, in], cut to the plan's rank."""
    wide = merged.double()
    identity = torch.ones(wide.shape[:2], dtype=wide.dtype, device=wide.device)
    return finish(
        stack.B, merged, stack.gram_b, wide @ wide.mT, left=knots.basis, right=identity,
        limit=stack.modules[0].rank, energy=energy, spectrum=spectrum,
    )  # fmt: skip


def represent(stack: Stack) -> Knots:
    """The common basis, and the maps to the representations; R x R work only."""
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
    there = (sigma > sigma.amax(dim=-1, keepdim=True) * NUMERICAL_RANK).sum(dim=-1).tolist()
    return Knots(
        basis,
        maps,
        tuple((int(rows), stack.A.shape[2]) for rows in there),
    )
