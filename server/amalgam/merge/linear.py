"""Concat space: Σ c·Δ exactly, as factors side by side, recompressed only where the rank must shrink."""

from typing import Final

import torch
from torch import Tensor

from amalgam.merge.coefficients import COEFFICIENTS
from amalgam.merge.lowrank import Factors, finish
from amalgam.merge.methods import MethodSpec, Parameters
from amalgam.merge.stack import Stack

AMPLIFIED: Final = 2.0
"""The rounding of inputs side by side may be so much larger than that of their sum, before they are recompressed:
√Σ|cΔ|² / ‖Σ cΔ‖, which is 1 for inputs that have nothing in common."""


def merge(stack: Stack, spec: MethodSpec, parameters: Parameters, *, energy: float | None, spectrum: bool) -> Factors:
    """Σ c·Δ for the method's coefficients c.

    Args:
        stack: The inputs.
        spec: A method that is a linear combination. parameters: Its own.
        energy: Where set, the smallest rank that keeps this share of the energy.
        spectrum: Whether singular values are wanted even where nothing is cut.
    """
    weights = COEFFICIENTS[spec.consensus](stack, parameters)
    coefficients = stack.columns(weights * stack.scaling)
    return finish(
        stack.B, stack.A, stack.gram_b, stack.gram_a, left=coefficients, right=torch.ones_like(coefficients),
        limit=stack.modules[0].rank, energy=energy, spectrum=spectrum, cancels=_cancels(stack, weights),
    )  # fmt: skip


def _cancels(stack: Stack, weights: Tensor) -> Tensor:
    """Tell in which modules the inputs cancel, [n]: factors side by side would be rounded at the inputs' size."""
    gram = stack.gram_delta
    apart = (weights.square() * torch.diagonal(gram, dim1=1, dim2=2)).sum(dim=1)
    together = torch.einsum("ni,nij,nj->n", weights, gram, weights).clamp_min(0)
    return apart > AMPLIFIED**2 * together
