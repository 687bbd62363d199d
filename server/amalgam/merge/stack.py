"""Modules of one shape, read and laid side by side: what every space starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from amalgam.errors.merging import NonFinite, ShapeMismatch
from amalgam.merge.plan import ModulePlan
from amalgam.merge.sources import TensorSource


@dataclass(frozen=True)
class Stack:
    """n modules of one shape with the same T inputs; Δ_t = scaling_t · B_t · A_t for the columns of input t.

    Shapes: ``B`` [n, out, R] and ``A`` [n, R, in], float32; ``scaling`` and ``weights`` [n, T], float64.
    """

    modules: tuple[ModulePlan, ...]
    B: Tensor
    A: Tensor
    ranks: tuple[int, ...]
    """They are those of the T inputs, and add up to R."""
    scaling: Tensor
    weights: Tensor

    @property
    def inputs(self) -> tuple[int, ...]:
        """Positions of the T inputs in the recipe."""
        return tuple(part.index for part in self.modules[0].inputs)

    @cached_property
    def gram_b(self) -> Tensor:
        """BᵀB, [n, R, R], float64."""
        wide = self.B.double()
        return wide.mT @ wide

    @cached_property
    def gram_a(self) -> Tensor:
        """AAᵀ, [n, R, R], float64."""
        wide = self.A.double()
        return wide @ wide.mT

    @cached_property
    def gram_delta(self) -> Tensor:
        """K[n, i, j] = ⟨Δ_i, Δ_j⟩ = s_i s_j Σ (B_iᵀB_j ∘ A_iA_jᵀ), [n, T, T], float64, from the factors alone."""
        membership = self.columns(torch.eye(len(self.ranks), dtype=torch.float64, device=self.B.device))
        raw = membership @ (self.gram_b * self.gram_a) @ membership.mT
        return raw * self.scaling.unsqueeze(2) * self.scaling.unsqueeze(1)

    def columns(self, values: Tensor) -> Tensor:
        """[n, T] -> [n, R]: each input's value at each of its columns."""
        repeats = torch.tensor(self.ranks, device=values.device)
        return values.repeat_interleave(repeats, dim=1)

    def parts(self) -> list[tuple[Tensor, Tensor]]:
        """Per input (B_t [n, out, r_t], A_t [n, r_t, in]); views, without the scaling."""
        sizes = list(self.ranks)
        return list(zip(torch.split(self.B, sizes, dim=2), torch.split(self.A, sizes, dim=1), strict=True))

    def with_b(self, B: Tensor) -> "Stack":
        """The same stack with other B factors."""
        return self._carry(replace(self, B=B), "gram_a")

    def with_a(self, A: Tensor) -> "Stack":
        """The same stack with other A factors."""
        return self._carry(replace(self, A=A), "gram_b")

    def with_scaling(self, scaling: Tensor) -> "Stack":
        """The same stack with other scales."""
        return self._carry(replace(self, scaling=scaling), "gram_a", "gram_b")

    def _carry(self, other: "Stack", *names: str) -> "Stack":
        """``other`` with the Gram matrices that it shares with this stack, where they are known already."""
        other.__dict__.update({name: self.__dict__[name] for name in names if name in self.__dict__})
        return other

    def check_finite(self, names: Sequence[str]) -> None:
        """Raise NonFinite for the first module and input that holds NaN or infinity; ``names`` are the recipe's."""
        energy = torch.diagonal(self.gram_b, dim1=1, dim2=2) + torch.diagonal(self.gram_a, dim1=1, dim2=2)
        if bool(torch.isfinite(energy).all()):
            return
        for module, row in zip(self.modules, energy, strict=True):
            for part, columns in zip(module.inputs, torch.split(row, list(self.ranks)), strict=True):
                if not bool(torch.isfinite(columns).all()):
                    raise NonFinite(names[part.index], module.name)


def load(
    modules: Sequence[ModulePlan], sources: Sequence[TensorSource], device: torch.device, *, names: Sequence[str]
) -> Stack:
    """Read the factors of ``modules``, all of one shape key, into a stack in float32.

    Args:
        modules: At least one.
        sources: By position in the recipe.
        device: Where to compute.
        names: The recipe's own names of the inputs, for errors.

    Raises:
        ShapeMismatch: a tensor differs from its header.
        NonFinite: an input holds NaN or infinity.
    """
    first = modules[0]
    ranks = tuple(part.header.rank for part in first.inputs)
    n, total = len(modules), sum(ranks)
    B = torch.empty((n, first.out_features, total), dtype=torch.float32, device=device)
    A = torch.empty((n, total, first.in_features), dtype=torch.float32, device=device)
    at = 0
    for part in first.inputs:
        end = at + part.header.rank
        found = [sources[part.index].factors(module.name) for module in modules]
        for module, (a, b) in zip(modules, found, strict=True):
            if a.shape != (part.header.rank, first.in_features) or b.shape != (first.out_features, part.header.rank):
                raise ShapeMismatch(module.name, [(names[part.index], b.shape[0], a.shape[-1])])
        A[:, at:end] = torch.stack([a for a, _ in found])
        B[:, :, at:end] = torch.stack([b for _, b in found])
        at = end
    scaling = [[part.header.scaling for part in module.inputs] for module in modules]
    weights = [[part.weight for part in module.inputs] for module in modules]
    stack = Stack(
        tuple(modules),
        B,
        A,
        ranks,
        torch.tensor(scaling, dtype=torch.float64, device=device),
        torch.tensor(weights, dtype=torch.float64, device=device),
    )
    stack.check_finite(names)
    return stack


def load_references(
    modules: Sequence[ModulePlan], sources: Sequence[TensorSource], device: torch.device
) -> Mapping[str, Tensor] | None:
    """The factors of the adapters to stay orthogonal to: ``B`` [n, out, r] and ``A`` [n, r, in]; None without any."""
    headers = [header for header in modules[0].references if header is not None]
    if not headers:
        return None
    B, A = [], []
    for module in modules:
        pairs = [
            source.factors(module.name)
            for source, header in zip(sources, module.references, strict=True)
            if header is not None
        ]
        A.append(torch.cat([a.to(device, torch.float32) for a, _ in pairs], dim=0))
        B.append(torch.cat([b.to(device, torch.float32) for _, b in pairs], dim=1))
    return {"B": torch.stack(B), "A": torch.stack(A)}
