"""Methods that are a linear combination Σ c·Δ: each rule finds c from the weights and the Gram matrix ⟨Δ_i, Δ_j⟩.

The spherical rules therefore cost T x T work and are exact in concat space.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from amalgam.errors.merging import MergeUndefined
from amalgam.merge.methods import Consensus, KarcherParameters, Parameters, SlerpParameters
from amalgam.merge.stack import Stack

NEARLY_PARALLEL: Final = 0.9995
"""Above this cosine an arc is a line to float32 precision, and 1/sin θ loses digits."""

NEARLY_OPPOSITE: Final = 1e-6
"""Below this norm the mean of unit vectors has no direction."""

CoefficientRule = Callable[[Stack, Parameters], Tensor]


def weighted(stack: Stack, parameters: Parameters) -> Tensor:
    """The weights: of sums, normalised sums and picks, as the plan has settled them."""
    return stack.weights


def slerp(stack: Stack, parameters: Parameters) -> Tensor:
    """sin((1-t)θ)/sin θ and sin(tθ)/sin θ, with θ the angle between the deltas; a line where they are nearly parallel.

    A zero delta has no angle: the line is taken there too. Opposite deltas have no arc: MergeUndefined.
    """
    assert isinstance(parameters, SlerpParameters)
    if len(stack.inputs) == 1:
        return torch.ones_like(stack.weights)
    t = stack.weights[:, 1] if parameters.t is None else torch.full_like(stack.weights[:, 1], parameters.t)
    cosine, _ = cosines(stack.gram_delta)
    c = cosine[:, 0, 1].clamp(-1, 1)
    _refuse(stack, "slerp", c < -NEARLY_PARALLEL, "the two deltas point in opposite directions")
    theta = torch.acos(c.clamp(-NEARLY_PARALLEL, NEARLY_PARALLEL))
    arc = torch.stack([torch.sin((1 - t) * theta), torch.sin(t * theta)], dim=1) / torch.sin(theta).unsqueeze(1)
    line = torch.stack([1 - t, t], dim=1)
    norms = torch.diagonal(stack.gram_delta, dim1=1, dim2=2)
    straight = (c > NEARLY_PARALLEL) | (norms <= 0).any(dim=1)
    return torch.where(straight.unsqueeze(1), line, arc)


def multislerp(stack: Stack, parameters: Parameters) -> Tensor:
    """One exponential step from the weighted mean direction, scaled to the weighted mean norm."""
    return _spherical(stack, "multislerp", iterations=1, tolerance=0.0)


def karcher(stack: Stack, parameters: Parameters) -> Tensor:
    """The spherical (Karcher) mean of the directions, scaled to the weighted mean norm."""
    assert isinstance(parameters, KarcherParameters)
    return _spherical(stack, "karcher", parameters.iterations, parameters.tolerance)


def model_stock(stack: Stack, parameters: Parameters) -> Tensor:
    """t·mean(Δ) with t = T·c/(1 + (T-1)c), c the mean pairwise cosine; t is held within [0, 1]."""
    count = len(stack.inputs)
    if count == 1:
        return torch.ones_like(stack.weights)
    cosine, _ = cosines(stack.gram_delta)
    c = (cosine.sum(dim=(1, 2)) - torch.diagonal(cosine, dim1=1, dim2=2).sum(dim=1)) / (count * (count - 1))
    c = c.clamp(0, 1)
    t = count * c / (1 + (count - 1) * c)
    return (t / count).unsqueeze(1).expand(-1, count).contiguous()


def cosines(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines [n, T, T] (0 beside a zero delta) and norms [n, T] from a Gram matrix [n, T, T]."""
    norms = torch.diagonal(gram, dim1=1, dim2=2).clamp_min(0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)
    return gram * inverse.unsqueeze(1) * inverse.unsqueeze(2), norms


def _spherical(stack: Stack, name: str, iterations: int, tolerance: float) -> Tensor:
    """Iterate on coefficients over the unit deltas u; every inner product is one of the T x T cosines."""
    cosine, norms = cosines(stack.gram_delta)
    directed = norms > 0
    weights = torch.where(directed, stack.weights, 0.0)
    share = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    length = _norm(share, cosine)
    _refuse(stack, name, (length < NEARLY_OPPOSITE) & directed.any(dim=1), "the deltas' directions cancel")
    at = share / length.clamp_min(NEARLY_OPPOSITE).unsqueeze(1)
    for _ in range(iterations):
        along = torch.einsum("nij,nj->ni", cosine, at).clamp(-1, 1)
        theta = torch.acos(along)
        # θ/sin θ tends to 1; at θ = π the logarithm has no value, but then the mean's direction cancels as well.
        ratio = torch.where(theta > 1e-7, theta / torch.sin(theta).clamp_min(1e-12), 1.0)
        pull = share * ratio
        tangent = pull - (pull * along).sum(dim=1, keepdim=True) * at
        step = _norm(tangent, cosine).unsqueeze(1)
        shift = torch.where(step > 1e-12, torch.sin(step) / step.clamp_min(1e-12), 1.0)
        at = torch.cos(step) * at + shift * tangent
        at = at / _norm(at, cosine).clamp_min(NEARLY_OPPOSITE).unsqueeze(1)
        if bool((step <= tolerance).all()):
            break
    scale = (stack.weights * norms).sum(dim=1, keepdim=True)
    return torch.where(directed, at * scale / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)


def _norm(coefficients: Tensor, gram: Tensor) -> Tensor:
    return torch.einsum("ni,nij,nj->n", coefficients, gram, coefficients).clamp_min(0).sqrt()


def _refuse(stack: Stack, name: str, wrong: Tensor, reason: str) -> None:
    if bool(wrong.any()):
        raise MergeUndefined(name, stack.modules[int(wrong.nonzero()[0, 0])].name, reason)


COEFFICIENTS: Final[Mapping[Consensus, CoefficientRule]] = {
    Consensus.SUM: weighted,
    Consensus.NORMALIZED_SUM: weighted,
    Consensus.PICK: weighted,
    Consensus.SLERP: slerp,
    Consensus.MULTISLERP: multislerp,
    Consensus.KARCHER: karcher,
    Consensus.MODEL_STOCK: model_stock,
}
"""These rules need nothing but the Gram matrix of the deltas."""
