"""The methods written a second time, densely and in float64: slow, plain, and independent of the code under test."""

import functools
import math
import operator
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from amalgam.kernels.philox import philox_numpy


def trim(x: Tensor, density: float) -> Tensor:
    k = max(1, math.floor(density * x.numel()))
    threshold = x.abs().flatten().sort(descending=True).values[k - 1]
    return torch.where(x.abs() >= threshold, x, 0.0)


def elect(xs: list[Tensor], weights: list[float], lam: float = 1.0, frequency: bool = False) -> Tensor:
    out = torch.zeros(xs[0].shape, dtype=xs[0].dtype)
    flat = [x.flatten() for x in xs]
    for i in range(out.numel()):
        u = [w * float(x[i]) for w, x in zip(weights, flat, strict=True)]
        ballot = sum(np.sign(v) for v in u) if frequency else sum(u)
        gamma = 1.0 if ballot >= 0 else -1.0
        agree = [np.sign(v) == gamma for v in u]
        mass = sum(abs(w) for w, m in zip(weights, agree, strict=True) if m)
        if mass > 0:
            out.view(-1)[i] = lam * sum(v for v, m in zip(u, agree, strict=True) if m) / mass
    return out


def uniforms(shape: tuple[int, int], seed: int, adapter_id: int, tensor_id: int) -> np.ndarray:
    """The random words of a matrix, straight from the definition."""
    element = np.arange(shape[0] * shape[1], dtype=np.uint64)
    block = element >> np.uint64(2)
    counter = np.stack([
        block & np.uint64(0xFFFFFFFF), block >> np.uint64(32),
        np.full_like(block, adapter_id), np.full_like(block, tensor_id),
    ])  # fmt: skip
    drawn = philox_numpy(counter, (seed & 0xFFFFFFFF, seed >> 32))
    words: np.ndarray = drawn[(element & np.uint64(3)).astype(int), np.arange(element.size)].reshape(shape)
    return words


def drop(x: Tensor, density: float, drawn: np.ndarray) -> Tensor:
    keep = torch.from_numpy(drawn < np.uint64(math.floor(density * 2**32)))
    return torch.where(keep, x / density, 0.0)


def della(x: Tensor, density: float, epsilon: float, drawn: np.ndarray) -> Tensor:
    out = torch.zeros_like(x)
    for i, row in enumerate(x):
        order = sorted(range(row.numel()), key=lambda j: (abs(float(row[j])), j))
        for rank, j in enumerate(order):
            p = density - epsilon + 2 * epsilon * rank / (row.numel() - 1)
            if int(drawn[i, j]) < math.floor(p * 2**32):
                out[i, j] = row[j] / p
    return out


def breadcrumbs(x: Tensor, density: float, gamma: float) -> Tensor:
    order = x.abs().flatten().argsort(descending=True, stable=True)
    top = math.floor(gamma * x.numel())
    kept = order[top : top + max(1, math.floor(density * x.numel()))]
    mask = torch.zeros(x.numel(), dtype=torch.bool)
    mask[kept] = True
    return torch.where(mask.view_as(x), x, 0.0)


def sce(xs: list[Tensor], weights: list[float], density: float, lam: float = 1.0) -> Tensor:
    spread = torch.stack(xs).var(dim=0, correction=0)
    k = max(1, math.floor(density * spread.numel()))
    gate = spread >= spread.flatten().sort(descending=True).values[k - 1]
    xs = [x * gate for x in xs]
    energies = [float(x.square().mean()) for x in xs]
    shares = [abs(w) * e / sum(energies) for w, e in zip(weights, energies, strict=True)]
    turned = [x if w >= 0 else -x for w, x in zip(weights, xs, strict=True)]
    sign = torch.where(summed(turned) >= 0, 1.0, -1.0)
    mass = summed(share * (x.sign() == sign) for share, x in zip(shares, turned, strict=True))
    total = summed(share * x * (x.sign() == sign) for share, x in zip(shares, turned, strict=True))
    return torch.where(mass > 0, lam * total / mass.clamp_min(1e-300), 0.0)


def summed(terms: Iterable[Tensor]) -> Tensor:
    """At least one term; in the order they come."""
    return functools.reduce(operator.add, terms)


def best_rank(x: Tensor, rank: int) -> Tensor:
    U, S, V = torch.linalg.svd(x, full_matrices=False)
    best: Tensor = (U[:, :rank] * S[:rank]) @ V[:rank]
    return best


def knots(deltas: list[Tensor], rank: int) -> tuple[Tensor, list[Tensor]]:
    """U and the right representations of the side-by-side deltas."""
    U, S, V = torch.linalg.svd(torch.cat(deltas, dim=1), full_matrices=False)
    X = S[:rank, None] * V[:rank]
    return U[:, :rank], list(X.split(deltas[0].shape[1], dim=1))


def core(deltas: list[Tensor], ranks: list[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """U, V and the core matrices after the balanced gauge."""
    bs, as_ = [], []
    for delta, r in zip(deltas, ranks, strict=True):
        U, S, V = torch.linalg.svd(delta, full_matrices=False)
        bs.append(U[:, :r] * S[:r].sqrt())
        as_.append(S[:r, None].sqrt() * V[:r])
    total = sum(ranks)
    U = torch.linalg.svd(torch.cat(bs, dim=1), full_matrices=False)[0][:, :total]
    V = torch.linalg.svd(torch.cat(as_, dim=0), full_matrices=False)[2][:total].mT
    return U, V, [U.mT @ delta @ V for delta in deltas]


def polar(x: Tensor) -> Tensor:
    U, S, V = torch.linalg.svd(x, full_matrices=False)
    keep = 1e-6 * S.max() < S
    rotation: Tensor = U[:, keep] @ V[keep]
    return rotation


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    theta = math.acos(cosine)
    return (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)


def karcher(xs: list[Tensor], shares: list[float], iterations: int) -> Tensor:
    units = [x / x.norm() for x in xs]
    at = summed(s * u for s, u in zip(shares, units, strict=True))
    at = at / at.norm()
    for _ in range(iterations):
        tangent = torch.zeros_like(at)
        for share, unit in zip(shares, units, strict=True):
            along = float((at * unit).sum())
            theta = math.acos(min(1.0, along))
            if theta > 1e-12:
                tangent += share * theta / math.sin(theta) * (unit - along * at)
        step = float(tangent.norm())
        if step > 0:
            at = math.cos(step) * at + math.sin(step) / step * tangent
    size = sum(s * float(x.norm()) for s, x in zip(shares, xs, strict=True))
    mean: Tensor = at * size
    return mean
