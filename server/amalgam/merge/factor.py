"""Factor space: the rule on A and on B separately, as PEFT's ``add_weighted_adapter`` does it.

The product of merged factors is not the merged delta: cross terms make it wrong by about the size of the answer. It is
here for people who want PEFT's numbers. PEFT elects signs on unweighted entries and divides by their count.
"""

import torch
from torch import Tensor

from amalgam.kernels import reference
from amalgam.merge.lowrank import Factors, finish
from amalgam.merge.methods import Consensus, ElectParameters, MethodSpec, Parameters
from amalgam.merge.rules import Randomness, sparsify
from amalgam.merge.stack import Stack


def merge(
    stack: Stack,
    spec: MethodSpec,
    parameters: Parameters,
    randomness: tuple[Randomness, Randomness],
    *,
    energy: float | None,
    spectrum: bool,
) -> Factors:
    """PEFT's ``linear``, ``ties``, ``dare_linear``, ``dare_ties`` or ``magnitude_prune``.

    Args:
        stack: Inputs of equal ranks.
        spec: The method. parameters: Its own.
        randomness: Of the A and of the B factors.
        energy: As for every space. spectrum: As for every space.
    """
    factor = (stack.weights * stack.scaling).T
    root = factor.abs().sqrt()
    signed = root * torch.where(factor >= 0, 1.0, -1.0)
    parts = stack.parts()
    A = _combine(torch.stack([a for _, a in parts]), signed, spec, parameters, randomness[0])
    B = _combine(torch.stack([b for b, _ in parts]), root, spec, parameters, randomness[1])
    wide_a, wide_b = A.double(), B.double()
    identity = torch.ones(wide_a.shape[:2], dtype=torch.float64, device=A.device)
    return finish(
        B, A, wide_b.mT @ wide_b, wide_a @ wide_a.mT, left=identity, right=identity,
        limit=stack.modules[0].rank, energy=energy, spectrum=spectrum,
    )  # fmt: skip


def _combine(x: Tensor, weights: Tensor, spec: MethodSpec, parameters: Parameters, randomness: Randomness) -> Tensor:
    """[T, n, rows, columns], [T, n] -> [n, rows, columns]."""
    thinned = sparsify(x, spec, parameters, randomness)
    broad = weights[:, :, None, None].float()
    if spec.consensus is not Consensus.ELECT:
        return reference.weighted_sum(thinned, broad)
    assert isinstance(parameters, ElectParameters)
    return parameters.lambda_ * _counted_mean(thinned, broad, parameters.election == "frequency")


def _counted_mean(x: Tensor, weights: Tensor, frequency: bool) -> Tensor:
    """Σ m·w·x / Σ m, with m the inputs whose unweighted sign is the majority's; a tie counts as +."""
    sign = x.sign()
    ballot = sign.sum(dim=0) if frequency else x.sum(dim=0)
    agree = sign == torch.where(ballot >= 0, 1.0, -1.0)
    return (x * weights * agree).sum(dim=0) / agree.sum(dim=0).clamp_min(1)
