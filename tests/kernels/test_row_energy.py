"""The share of an input in a row space against its plain definition: a projection by the pseudo-inverse."""

import pytest
import torch

from amalgam.kernels.row_energy import row_basis, row_energy

ROUNDING = 1e-5
"""Singular vectors are computed in single precision."""


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rank", "width"), [(1, 1), (1, 7), (4, 33), (16, 64), (5, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_that_of_the_projection(rank: int, width: int, dtype: torch.dtype) -> None:
    a, inputs = drawn(rank, width).to(dtype), drawn(9, width, seed=2)
    rows = a.double()
    inside = inputs.double() @ torch.linalg.pinv(rows) @ rows
    expected = inside.square().sum(1) / inputs.double().square().sum(1)
    found = row_energy(inputs, row_basis(a))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=ROUNDING)
    assert found.dtype == torch.float32


def test_rows_of_zeros_and_rows_that_are_there_twice_add_no_direction() -> None:
    a = drawn(3, 20)
    padded = torch.cat([a, torch.zeros(2, 20), 2 * a[:1]])
    assert row_basis(padded).shape == (20, 3)
    inputs = drawn(6, 20, seed=3)
    torch.testing.assert_close(
        row_energy(inputs, row_basis(padded)), row_energy(inputs, row_basis(a)), rtol=0, atol=ROUNDING
    )


def test_an_adapter_of_zeros_and_an_input_of_zeros_have_nothing() -> None:
    assert row_basis(torch.zeros(4, 6)).shape == (6, 0)
    assert row_energy(drawn(2, 6), row_basis(torch.zeros(4, 6))).tolist() == [0.0, 0.0]
    assert row_energy(torch.zeros(1, 6), row_basis(drawn(2, 6))).tolist() == [0.0]


def test_length_of_input_and_of_rows_makes_no_difference() -> None:
    a, inputs = drawn(3, 12), drawn(4, 12, seed=5)
    found = row_energy(100 * inputs, row_basis(0.01 * a))
    torch.testing.assert_close(found, row_energy(inputs, row_basis(a)), rtol=0, atol=ROUNDING)
