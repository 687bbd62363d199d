"""Eigenvectors of many small symmetric matrices on CUDA devices: one program a matrix, all at once.

cuSOLVER solves matrices of up to 32 rows together and larger ones one after the other: 224 of 64 rows take 170 ms on an
H100, all other work of an exact merge of that size 3 ms.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

_TOLERANCE: Final = 1e-12
"""Two columns are orthogonal below this cosine: far below what float32 factors hold, and above rounding."""

_SWEEPS: Final = 40
"""This bound is not met: eight or nine sweeps converge from a Cholesky factor, thirty from a matrix without one."""

_SHIFT: Final = 1e-15
"""Times N and the largest diagonal entry, it is added to the diagonal, so that matrices that miss directions have
Cholesky factors too. Eigenvectors stay what they are, and eigenvalues give it back."""


_SPREAD: Final = 0 if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7) else 1
"""The compiler spreads a warp over this axis where neither has neighbours in memory. With columns along it entries add
up within threads; along the other one every sum goes through exchanges between them, right and ten times slower."""


@triton.jit
def _rotations(own, other, product, first):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """Tell of columns with their partners how near to each other they point, and the cosines and sines that part them.

    Squared lengths, scalar products, and whether a column is the first of its pair, all [NP]; x·cosine - y·sine is the
    new column.
    """
    size = tl.sqrt(own) * tl.sqrt(other)
    near = tl.where(size > 0, tl.abs(product) / tl.where(size > 0, size, 1.0), 0.0)
    turns = near > 1e-16
    zeta = (other - own) / tl.where(turns, 2 * product, 1.0)
    upward = (zeta > 0) | ((zeta == 0) & first)
    tangent = 1.0 / (tl.abs(zeta) + tl.sqrt(1.0 + zeta * zeta))
    tangent = tl.where(turns, tl.where(upward, tangent, -tangent), 0.0)
    cosine = 1.0 / tl.sqrt(1.0 + tangent * tangent)
    return near, cosine, cosine * tangent


@triton.jit  # type: ignore[untyped-decorator]
def jacobi_kernel(G, X, lengths, scratch, N, nothing, tolerance, sweeps, NP: tl.constexpr, AXIS: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
    """Orthogonalise the columns of one G [N, N] by rotations of pairs: X [N, N] of unit columns, and their lengths [N].

    One-sided Jacobi (Hestenes, 1958). In round m of a sweep column i meets column i xor m, so NP - 1 rounds bring every
    pair together once, all pairs of a round at the same time. Both partners compute their rotation for themselves, and
    meet in ``scratch`` [2, NP, NP], whose halves take turns so that one barrier a round is enough.

    Columns of G lie along AXIS here, their entries along the other one. ``nothing`` is 0, which the compiler does not
    know: it sees no neighbours in either axis then, and spreads the threads of a warp over ``_SPREAD``.
    """
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, NP) ^ nothing
    entries = tl.arange(0, NP)
    inside = (tl.expand_dims(columns, 1 - AXIS) < N) & (tl.expand_dims(entries, AXIS) < N)
    place = program * N * N + tl.expand_dims(entries, AXIS) * N + tl.expand_dims(columns, 1 - AXIS)
    x = tl.load(G + place, mask=inside, other=0.0)
    # Squares of squares are formed below: brought to 1, nothing small vanishes in them.
    largest = tl.max(tl.max(tl.abs(x), axis=1 - AXIS), axis=0)
    largest = tl.where(largest > 0, largest, 1.0)
    x = x / largest
    scratch += program * 2 * NP * NP
    half = 0
    worst = tl.max(tl.full((NP,), 1.0, dtype=tl.float64), axis=0)
    sweep = 0
    while (sweep < sweeps) & (worst > tolerance):
        seen = tl.zeros((NP,), dtype=tl.float64)
        for m in range(1, NP):
            partner = columns ^ m
            here = scratch + half * NP * NP + tl.expand_dims(entries, AXIS) * NP
            tl.store(here + tl.expand_dims(columns, 1 - AXIS), x)
            tl.debug_barrier()
            y = tl.load(here + tl.expand_dims(partner, 1 - AXIS))
            half = 1 - half
            own = tl.sum(x * x, axis=1 - AXIS)
            other = tl.sum(y * y, axis=1 - AXIS)
            product = tl.sum(x * y, axis=1 - AXIS)
            near, cosine, sine = _rotations(own, other, product, columns < partner)
            seen = tl.maximum(seen, near)
            x = x * tl.expand_dims(cosine, 1 - AXIS) - y * tl.expand_dims(sine, 1 - AXIS)
        worst = tl.max(seen, axis=0)
        sweep += 1
    length = tl.sqrt(tl.sum(x * x, axis=1 - AXIS))
    # So short a column was compared with the others by squares that vanished: it is 0.
    length = tl.where(length > 1e-150, length, 0.0)
    inverse = tl.expand_dims(tl.where(length > 0, 1.0 / tl.where(length > 0, length, 1.0), 0.0), 1 - AXIS)
    x = x * inverse
    tl.store(X + place, x, mask=inside)
    tl.store(lengths + program * N + columns, length * largest, mask=columns < N)


def jacobi_eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of positive semidefinite matrices.

    The left singular vectors of a Cholesky factor are the eigenvectors, and its columns are nearly orthogonal already
    (Veselić and Hari, 1989); a matrix that has none is taken as it is.

    Args:
        matrices: [n, N, N], float64, on a CUDA device, N at most 128; symmetric.

    Returns:
        [n, N] and, a column each, [n, N, N]: orthonormal to 1e-12, and 0 where the matrix is.
    """
    count, size = matrices.shape[:2]
    diagonal = torch.diagonal(matrices, dim1=1, dim2=2)
    shift = diagonal.amax(dim=1).clamp_min(0) * (_SHIFT * size)
    lifted = matrices + torch.diag_embed(shift.unsqueeze(1).expand_as(diagonal))
    factors, failures = torch.linalg.cholesky_ex(lifted)
    whole = (failures == 0).view(-1, 1)
    start = torch.where(whole.unsqueeze(2), factors, matrices).contiguous()
    vectors, lengths = torch.empty_like(start), torch.empty_like(diagonal)
    padded = max(16, 1 << (size - 1).bit_length())
    scratch = torch.empty((count, 2, padded, padded), dtype=start.dtype, device=start.device)
    jacobi_kernel[(count,)](
        start, vectors, lengths, scratch, size, 0, _TOLERANCE, _SWEEPS,
        NP=padded, AXIS=_SPREAD, num_warps=max(1, padded // 16), enable_fp_fusion=True,
    )  # fmt: skip
    values = torch.where(whole, (lengths.square() - shift.unsqueeze(1)).clamp_min(0), lengths)
    ordered, order = values.sort(dim=1)
    return ordered, vectors.gather(2, order.unsqueeze(1).expand_as(vectors))
