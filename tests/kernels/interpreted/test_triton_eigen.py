"""The batched eigendecomposition against LAPACK, over odd sizes and the spectra that Gram matrices have."""

import importlib
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def jacobi_eigh() -> Any:
    pytest.importorskip("triton")
    return importlib.import_module("amalgam.kernels.triton_eigen").jacobi_eigh


def gram(rows: Any, rank: Any, decay: Any, count: int = 2, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(count, rows, rank, generator=generator, dtype=torch.float64)
    factor = factor * torch.logspace(0, -decay, rank, dtype=torch.float64)
    return factor @ factor.mT


@pytest.mark.parametrize(("rows", "rank", "decay"), [(1, 1, 0), (5, 9, 0), (16, 16, 4), (17, 7, 5)])
def test_eigenvalues_and_vectors(jacobi_eigh: Any, rows: int, rank: int, decay: int) -> None:
    matrices = gram(rows, rank, decay)
    values, vectors = jacobi_eigh(matrices)
    expected = torch.linalg.eigvalsh(matrices)
    largest = expected[:, -1:]
    assert float(((values - expected) / largest).abs().max()) < 1e-13
    rebuilt = vectors @ (values.unsqueeze(-1) * vectors.mT)
    assert float((rebuilt - matrices).norm() / matrices.norm()) < 1e-13
    overlap = vectors.mT @ vectors - torch.eye(rows, dtype=torch.float64)
    # Directions that the matrix does not have are told by rounding alone, or are 0.
    real = (values > 1e-14 * largest).double()
    assert float((overlap * real.unsqueeze(1) * real.unsqueeze(2)).abs().max()) < 1e-11


@pytest.mark.parametrize("size", [1e-120, 1e120])
def test_size_does_not_matter(jacobi_eigh: Any, size: float) -> None:
    matrices = gram(8, 8, 2)
    values, _ = jacobi_eigh(matrices * size)
    expected = torch.linalg.eigvalsh(matrices) * size
    assert float(((values - expected) / expected[:, -1:]).abs().max()) < 1e-13


def test_equal_eigenvalues_and_none(jacobi_eigh: Any) -> None:
    same = torch.eye(9, dtype=torch.float64)[None] * 3
    values, vectors = jacobi_eigh(same)
    torch.testing.assert_close(values, torch.full((1, 9), 3.0, dtype=torch.float64), rtol=1e-13, atol=0)
    torch.testing.assert_close(vectors @ vectors.mT, torch.eye(9, dtype=torch.float64)[None], rtol=0, atol=1e-13)
    nothing = torch.zeros((1, 4, 4), dtype=torch.float64)
    assert all(not bool(found.any()) for found in jacobi_eigh(nothing))
    ones = torch.ones((1, 6, 6), dtype=torch.float64)
    values, vectors = jacobi_eigh(ones)
    torch.testing.assert_close(values[0, -1], torch.tensor(6.0, dtype=torch.float64))
    assert float(values[0, :-1].max()) < 1e-13
    torch.testing.assert_close(vectors[0, :, -1].abs(), torch.full((6,), 6**-0.5, dtype=torch.float64))
