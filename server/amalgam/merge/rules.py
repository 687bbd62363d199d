"""Elementwise rules on whole representations [T, n, rows, columns]: sparsify each input, then find a consensus.

KnOTS and core space use these directly; delta space applies the same operations tile by tile.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from amalgam.kernels import cpu_tiles, reference
from amalgam.kernels.philox import Stream
from amalgam.merge.methods import (
    BreadcrumbsParameters,
    Consensus,
    DellaParameters,
    DropElectParameters,
    DropParameters,
    ElectParameters,
    MethodSpec,
    Parameters,
    SceParameters,
    Sparsify,
    TiesParameters,
    TrimParameters,
)


@dataclass(frozen=True, slots=True)
class Randomness:
    """Where the random methods draw from: a stream for each input of each module."""

    seed: int
    adapters: tuple[int, ...]
    """It has a stable id for each of the T inputs."""
    tensors: tuple[int, ...]
    """It has a stable id for each of the n modules."""

    def stream(self, adapter: int, tensor: int) -> Stream:
        """The stream of the adapter-th input in the tensor-th module."""
        return Stream(self.seed, self.adapters[adapter], self.tensors[tensor])


def apply(
    x: Tensor,
    weights: Tensor,
    spec: MethodSpec,
    parameters: Parameters,
    randomness: Randomness,
    thresholds: Sequence[float] | None = None,
) -> Tensor:
    """The method's rule on a batch of representations.

    Args:
        x: [T, n, rows, columns]. weights: [T, n], signed.
        spec: A method that is not a mere linear combination, or one that is. parameters: Its own.
        randomness: For the random methods.
        thresholds: Per input, where one threshold holds for the whole adapter.

    Returns: [n, rows, columns], in x's dtype.
    """
    thinned = sparsify(x, spec, parameters, randomness, thresholds)
    return _CONSENSUS[spec.consensus](thinned, weights[:, :, None, None].to(x.dtype), parameters)


def counts_entries(parameters: Parameters) -> bool:
    """Whether a rule depends on how many entries there are, or in which places: rows of zeros would change it."""
    if isinstance(parameters, DropElectParameters) and parameters.trim_after and parameters.trim_density < 1:
        return True
    return bool(getattr(parameters, "density", 1.0) < 1)


def sparsify(
    x: Tensor,
    spec: MethodSpec,
    parameters: Parameters,
    randomness: Randomness,
    thresholds: Sequence[float] | None = None,
) -> Tensor:
    """Each input thinned out as the method says; arguments as for ``apply``."""
    if spec.sparsify is Sparsify.NONE:
        return x
    return _SPARSIFY[spec.sparsify](x, parameters, randomness, thresholds)


def order_statistic(x: Tensor, k: int) -> Tensor:
    """The k-th largest magnitude of each input's each module: [T, n, rows, columns] -> [T, n, 1, 1]."""
    flat = x.reshape(x.shape[0] * x.shape[1], -1)
    return reference.kth_magnitude(flat, k).view(x.shape[0], x.shape[1], 1, 1)


def _trim(x: Tensor, parameters: Parameters, _: Randomness, thresholds: Sequence[float] | None) -> Tensor:
    assert isinstance(parameters, (TiesParameters, TrimParameters))
    if parameters.density == 1:
        return x
    if thresholds is not None:
        return reference.trim(x, torch.tensor(thresholds, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1))
    return reference.trim(x, order_statistic(x, reference.kept_count(parameters.density, x[0, 0].numel())))


def _drop(x: Tensor, parameters: Parameters, randomness: Randomness, _: Sequence[float] | None) -> Tensor:
    assert isinstance(parameters, (DropParameters, DropElectParameters))
    out = (x * (1.0 / parameters.density)).contiguous()
    for t in range(x.shape[0]):
        for n in range(x.shape[1]):
            _drop_from(out[t, n], parameters.density, randomness.stream(t, n))
    if isinstance(parameters, DropElectParameters) and parameters.trim_after and parameters.trim_density < 1:
        out = reference.trim(out, order_statistic(out, reference.kept_count(parameters.trim_density, x[0, 0].numel())))
    return out


def _drop_from(x: Tensor, density: float, stream: Stream) -> None:
    if x.device.type == "cpu":
        cpu_tiles.drop(x, 0, density, stream)
    else:
        x.mul_(reference.drop_mask((x.shape[0], x.shape[1]), 0, density, stream, x.device))


def _della(x: Tensor, parameters: Parameters, randomness: Randomness, _: Sequence[float] | None) -> Tensor:
    assert isinstance(parameters, DellaParameters)
    out = torch.empty_like(x)
    for t in range(x.shape[0]):
        for n in range(x.shape[1]):
            stream = randomness.stream(t, n)
            out[t, n] = reference.della(x[t, n], 0, parameters.density, parameters.epsilon, stream)
    return out


def _breadcrumbs(x: Tensor, parameters: Parameters, _: Randomness, __: Sequence[float] | None) -> Tensor:
    assert isinstance(parameters, BreadcrumbsParameters)
    top, last = crumb_ranks(parameters, x[0, 0].numel())
    low, high = order_statistic(x, last), order_statistic(x, top + 1)
    return reference.breadcrumbs(x, low, high)


def crumb_ranks(parameters: BreadcrumbsParameters, entries: int) -> tuple[int, int]:
    """How many of the largest magnitudes are dropped, and the magnitude rank of the last entry that is kept.

    The top is at most entries - 1, and a γ that rounds to nothing drops nothing.
    """
    top = min(int(parameters.gamma * entries), entries - 1)
    return top, min(top + reference.kept_count(parameters.density, entries), entries)


def _sum(x: Tensor, weights: Tensor, _: Parameters) -> Tensor:
    return reference.weighted_sum(x, weights)


def _elect(x: Tensor, weights: Tensor, parameters: Parameters) -> Tensor:
    assert isinstance(parameters, ElectParameters)
    return _elected(x, weights, parameters.lambda_, parameters.election == "frequency")


def _elected(x: Tensor, weights: Tensor, scale: float, frequency: bool) -> Tensor:
    """``reference.elect``; on a processor module by module, in one pass each."""
    if x.device.type != "cpu":
        return reference.elect(x, weights, scale, frequency)
    modules = range(x.shape[1])
    return torch.stack([cpu_tiles.elect(x[:, n].clone(), weights[:, n, 0, 0], scale, frequency) for n in modules])


def _sce(x: Tensor, weights: Tensor, parameters: Parameters) -> Tensor:
    assert isinstance(parameters, SceParameters)
    if parameters.density < 1:
        spread = reference.variance(x)
        x = x * (spread >= order_statistic(spread[None], reference.kept_count(parameters.density, x[0, 0].numel()))[0])
    energies = x.square().mean(dim=(2, 3), keepdim=True)
    return reference.sce_combine(x, weights, energies, parameters.lambda_)


_SPARSIFY: Final[Mapping[Sparsify, Callable[[Tensor, Parameters, Randomness, Sequence[float] | None], Tensor]]] = {
    Sparsify.TRIM: _trim,
    Sparsify.DROP: _drop,
    Sparsify.DELLA: _della,
    Sparsify.BREADCRUMBS: _breadcrumbs,
}

_CONSENSUS: Final[Mapping[Consensus, Callable[[Tensor, Tensor, Parameters], Tensor]]] = {
    Consensus.SUM: _sum,
    Consensus.NORMALIZED_SUM: _sum,
    Consensus.ELECT: _elect,
    Consensus.SCE: _sce,
}
