"""Concat space: Σ c·Δ exactly, as factors side by side, recompressed only where the rank must shrink."""

import torch

from amalgam.merge.coefficients import COEFFICIENTS
from amalgam.merge.lowrank import Factors, finish
from amalgam.merge.methods import MethodSpec, Parameters
from amalgam.merge.stack import Stack


def merge(stack: Stack, spec: MethodSpec, parameters: Parameters, *, energy: float | None, spectrum: bool) -> Factors:
    """Σ c·Δ for the method's coefficients c.

    Args:
        stack: The inputs.
        spec: A method that is a linear combination. parameters: Its own.
        energy: Where set, the smallest rank that keeps this share of the energy.
        spectrum: Whether singular values are wanted even where nothing is cut.
    """
    coefficients = stack.columns(COEFFICIENTS[spec.consensus](stack, parameters) * stack.scaling)
    return finish(
        stack.B, stack.A, stack.gram_b, stack.gram_a, left=coefficients, right=torch.ones_like(coefficients),
        limit=stack.modules[0].rank, energy=energy, spectrum=spectrum,
    )  # fmt: skip
