"""Delta space on CUDA devices: many modules of one shape at a time, so that launches and waits are few.

The thresholds, the merged matrices and their best approximations are those of ``delta``, which goes module by module
and needs less memory. The range finder is the same too, but its bases come from Gram matrices in float64 in the place
of QR decompositions, which a GPU makes one after the other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from amalgam.errors.merging import NonFinite
from amalgam.kernels.eigen import semidefinite_eigh
from amalgam.kernels.module_batch import ModuleBatch
from amalgam.kernels.triton_backend import merge_batch
from amalgam.kernels.triton_selection import largest_of_inputs
from amalgam.merge.delta import DeltaMerge, bytes_together, sketch_of
from amalgam.merge.lowrank import Factors, choose_ranks, inverse_where_safe
from amalgam.merge.rules import Randomness
from amalgam.merge.stack import Stack


def merge_together(stack: Stack, work: DeltaMerge, randomness: Randomness) -> list[Factors]:
    """All modules of a stack, as batches in their order; as many at a time as half the workspace holds.

    Raises:
        NonFinite: the rule produced NaN or infinity.
    """
    first = stack.modules[0]
    size = max(1, work.max_workspace_bytes // 2 // bytes_together(first.out_features, first.in_features))
    batch = batch_of(stack, randomness)
    done = []
    for start in range(0, len(stack.modules), size):
        part = slice(start, start + size)
        modules = stack.modules[part]
        lows, highs = _band(batch.rows(part), work, stack.inputs)
        merged = merge_batch(batch.rows(part), work.rule, lows, highs, range(first.out_features))
        factors = truncate_held(merged, first.rank, work.energy)
        finite = torch.isfinite(factors.total)
        if not bool(finite.all()):
            raise NonFinite("The result", modules[int((~finite).nonzero()[0])].name)
        done.append(factors)
    return done


def batch_of(stack: Stack, randomness: Randomness) -> ModuleBatch:
    """A stack as the kernels take it, its scales in B."""
    begins = [0]
    for rank in stack.ranks:
        begins.append(begins[-1] + rank)
    return ModuleBatch(
        B=(stack.B * stack.columns(stack.scaling).float().unsqueeze(1)).contiguous(),
        A=stack.A.contiguous(),
        begins=tuple(begins),
        weights=stack.weights.float().contiguous(),
        tensors=torch.tensor(randomness.tensors, dtype=torch.int64, device=stack.B.device),
        adapters=randomness.adapters,
        seed=randomness.seed,
    ).checked()


def _band(batch: ModuleBatch, work: DeltaMerge, positions: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
    """The magnitudes between which an entry stays: lows and highs, [n, T]; None where there is no such edge."""
    if work.thresholds is not None:
        lows = torch.tensor([work.thresholds[at] for at in positions], device=batch.B.device)
        return lows.expand(batch.shape[0], -1).contiguous(), None
    wanted = work.selection(batch.shape[1] * batch.shape[2])
    if wanted is None:
        return None, None
    rule, ks = wanted
    edges = [largest_of_inputs(batch, rule, k) for k in ks]
    return edges[0], edges[1] if len(edges) > 1 else None


def truncate_held(matrices: Tensor, limit: int, energy: float | None) -> Factors:
    """What ``delta.truncate`` finds, for matrices that are held.

    Args:
        matrices: [n, out, in], float32. limit: Largest rank. energy: Share of Σσ² to keep, where set.
    """
    sketch = sketch_of((matrices.shape[1], matrices.shape[2]), limit, matrices.device)
    # Squared in float64: the sum of squares of a matrix can be beyond float32 where its norm is not.
    total = torch.linalg.vector_norm(matrices, dim=(1, 2)).double().square()
    columns = _orthonormal(sketch @ matrices.mT)
    rows = _orthonormal(columns @ matrices)
    basis = _orthonormal(rows @ matrices.mT)
    back = basis @ matrices
    wide = back.double()
    squares, U = semidefinite_eigh(wide @ wide.mT)
    squares, U = squares.flip(-1).clamp_min(0), U.flip(-1)
    values = squares.sqrt()
    ranks = choose_ranks(values, limit, energy, total)
    q = max(ranks)
    root, inverse = values[:, :q].sqrt(), inverse_where_safe(squares)[:, :q]
    B = basis.mT @ (U[:, :, :q] * root.unsqueeze(1)).float()
    # The right singular vectors are backᵀ·U/σ, and A holds them times √σ.
    A = ((root * inverse).unsqueeze(-1) * U[:, :, :q].mT).float() @ back
    return Factors(B, A, ranks, values, torch.maximum(total, squares.sum(dim=1)))


def _orthonormal(vectors: Tensor) -> Tensor:
    """Orthonormal bases of the spans of the rows, as rows, [n, width, m]; rows that repeat others become 0."""
    wide = vectors.double()
    values, U = semidefinite_eigh(wide @ wide.mT)
    basis: Tensor = ((inverse_where_safe(values).unsqueeze(-2) * U).mT @ wide).float()
    return basis
