"""Eigenvectors of batches of Gram matrices, by whatever is fast on their device."""

import importlib.util

import torch
from torch import Tensor

LARGEST_FUSED = 128
"""One program of a GPU holds a matrix of up to so many rows."""


def semidefinite_eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [n, N], ascending, and eigenvectors [n, N, N], a column each, of positive semidefinite matrices.

    On CUDA devices an eigenvector whose eigenvalue is exactly 0 may be 0 there; what is negligible is dropped anyway.

    Args:
        matrices: [n, N, N], float64, symmetric up to rounding, no negative eigenvalue beyond rounding.
    """
    if matrices.is_cuda and matrices.shape[-1] <= LARGEST_FUSED and importlib.util.find_spec("triton") is not None:
        from amalgam.kernels.triton_eigen import jacobi_eigh

        return jacobi_eigh(matrices)
    values, vectors = torch.linalg.eigh(matrices)
    return values, vectors
