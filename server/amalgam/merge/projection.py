"""Adapters that act on what is their own: each Δ is fitted to what its module is given on that adapter's prompts.

The merge Δ* of a module minimises Σ_t s_t ‖Δ* Y_t - Δ_t X_t‖² + α ‖Δ* - Δ̄‖², over what the module is given while
adapter t's own prompts are read: X_t by the base model with adapter t in it, Y_t by the base model with a merge in it,
token by token the same columns. Δ̄ is the mean of all n adapters, which the merge is where no prompt says anything else.
With s_t = in_features / ‖Y_t‖² and G_t = s_t Y_t Y_tᵀ that is

    Δ* = Σ_t Δ_t P_t,    P_t = (s_t X_t Y_tᵀ + αI/n) (Σ_s G_s + αI)⁻¹,

so each adapter keeps its B, and A_t becomes A_t P_t: a sum of adapters of the ranks that they had, and exact. α is
``RIDGE`` times the mean of the diagonal of Σ G_s. In a first round there is no merge yet and Y_t is X_t, which is
RegMean (Jin et al. 2022, arXiv:2212.09849) for low-rank changes; in a second one Y_t is what the merge of the first is
given. It is the iteration of IterIS (Chen et al. 2024, arXiv:2411.15231).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from amalgam.domain.adapter import AdapterHeader
from amalgam.errors.merging import NonFinite
from amalgam.merge.sources import TensorSource

RIDGE: Final = 0.05
"""It is α over the mean of the diagonal of Σ G: what keeps directions that no prompt has at the mean of the inputs."""


class Projection:
    """What one input of a layer tells: the modules that are given it, and G of one adapter after the other.

    Args:
        down: adapter -> module -> A [rank, in_features], of the modules that are given this input.
        in_features: of them all.
        device: where it is computed.
    """

    def __init__(self, down: Mapping[str, Mapping[str, Tensor]], in_features: int, device: torch.device) -> None:
        self._down = {
            adapter: {module: a.to(device, torch.float32) for module, a in modules.items()}
            for adapter, modules in down.items()
        }
        self._size = in_features
        self._device = device
        self._all = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)
        self._one: Tensor | None = None
        self._read: dict[str, dict[str, Tensor]] = {}

    def observe(self, adapter: str, own: Tensor, given: Tensor | None = None) -> None:
        """More tokens of a prompt of the adapter's, which come one adapter after the other.

        Args:
            adapter: whose prompt it is.
            own: what the layer is given with the adapter in the base model: [tokens, in_features].
            given: what it is given with a merge in it, of the same tokens; in a first round there is none.
        """
        rows = own.to(self._device, torch.float32)
        met = rows if given is None else given.to(self._device, torch.float32)
        if self._one is None:
            self._one = torch.zeros_like(self._all)
        self._one.addmm_(met.mT, met)
        for module, sums in self._sums(adapter).items():
            sums.addmm_(self._down[adapter][module] @ rows.mT, met)

    def end_of(self, adapter: str) -> None:
        """The adapter has read all of its prompts; prompts of another follow."""
        gram, self._one = self._one, None
        energy = 0.0 if gram is None else float(torch.diagonal(gram).sum())
        sums = self._sums(adapter)
        if gram is None or energy == 0:
            # No token came here, of an expert say.
            return
        self._all.add_(gram, alpha=self._size / energy)
        for one in sums.values():
            one *= self._size / energy

    def _sums(self, adapter: str) -> Mapping[str, Tensor]:
        """A X Yᵀ of each module of the adapter's, of what was observed so far."""
        if adapter not in self._read:
            mine = self._down.get(adapter, {})
            self._read[adapter] = {module: torch.zeros_like(a) for module, a in mine.items()}
        return self._read[adapter]

    def projected(self) -> Mapping[str, Mapping[str, Tensor]]:
        """A_t P_t [rank, in_features] by adapter and module, float32 on the CPU; nothing where no token came here.

        Raises:
            NonFinite: what the layer was given is not finite.
        """
        diagonal = torch.diagonal(self._all)
        mean = float(diagonal.mean())
        if mean == 0:
            return {}
        if not bool(torch.isfinite(diagonal).all()):
            raise NonFinite("What the base model computes", next(iter(next(iter(self._down.values())))))
        whole, ridge = self._all.double(), RIDGE * mean
        torch.diagonal(whole).add_(ridge)
        lower = torch.linalg.cholesky(whole)
        return {
            adapter: {module: self._solved(adapter, module, ridge, lower) for module in by_module}
            for adapter, by_module in self._read.items()
        }

    def _solved(self, adapter: str, module: str, ridge: float, lower: Tensor) -> Tensor:
        """A (s X Yᵀ + αI/n) M⁻¹; ``lower`` is Cholesky's factor of M, α is ``ridge``."""
        own = self._down[adapter][module].double()
        aimed = self._read[adapter][module].double() + ridge / len(self._down) * own
        # M is symmetric: S M⁻¹ = (M⁻¹ Sᵀ)ᵀ.
        return torch.cholesky_solve(aimed.mT, lower).mT.float().contiguous().cpu()


@dataclass(frozen=True, slots=True)
class ProjectedSource:
    """An adapter some of whose A are others; besides as the one that it is of."""

    source: TensorSource
    down: Mapping[str, Tensor]
    """It maps a module to A P [rank, in_features]; modules that it lacks stay as they are."""

    @property
    def header(self) -> AdapterHeader:
        """The adapter's own: ranks and scales are the same."""
        return self.source.header

    @property
    def digest(self) -> str:
        """The adapter's own."""
        return self.source.digest

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """A P [rank, in_features] and B [out_features, rank]."""
        a, b = self.source.factors(module)
        return self.down.get(module, a), b
