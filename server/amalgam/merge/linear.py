"""Concat space: Σ c·Δ exactly, as factors side by side, recompressed only where the rank must shrink."""

import torch
from torch import Tensor

from amalgam.merge.coefficients import COEFFICIENTS
from amalgam.merge.lowrank import Factors, balanced_split, product_svd, recompress
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
    limit = stack.modules[0].rank
    if limit < sum(stack.ranks) or energy is not None:
        return recompress(stack.B, stack.A, stack.gram_b, stack.gram_a, coefficients, limit, energy)
    return concatenate(stack, coefficients, spectrum=spectrum)


def concatenate(stack: Stack, coefficients: Tensor, *, spectrum: bool) -> Factors:
    """The factors side by side, each column's coefficient split over its B and its A: lossless, of rank R.

    Args:
        stack: The inputs.
        coefficients: c with the scales in it, [n, R].
        spectrum: Whether to compute the singular values.
    """
    on_b, on_a = balanced_split(coefficients, stack.gram_b, stack.gram_a)
    if spectrum:
        scaled_b = stack.gram_b * on_b.unsqueeze(-1) * on_b.unsqueeze(-2)
        scaled_a = stack.gram_a * on_a.unsqueeze(-1) * on_a.unsqueeze(-2)
        _, values, _ = product_svd(scaled_b, scaled_a)
    else:
        values = torch.zeros((len(stack.modules), 0), dtype=torch.float64, device=stack.B.device)
    B, A = stack.B * on_b.unsqueeze(-2).float(), stack.A * on_a.unsqueeze(-1).float()
    return Factors(B, A, (sum(stack.ranks),) * len(stack.modules), values, values.square().sum(dim=-1))
