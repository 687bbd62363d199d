"""What is kept between steps: each module's factors, whether a tensor holds weights, the type to multiply in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from amalgam.engine.cpu_lora_factors import ModuleFactors


class FactorCache:
    """`ModuleFactors` of every module met so far; modules live as long as the engine."""

    def __init__(self, dtype_of: "ProductDtype") -> None:
        self._dtype_of = dtype_of
        self._modules: dict[int, tuple[Tensor, ModuleFactors]] = {}

    def get(
        self, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], slot_ids: Sequence[int | None]
    ) -> ModuleFactors:
        """Up-to-date factors of the module whose stacked tensors these are; see `ModuleFactors` for the arguments."""
        first = a_stacked[0]
        known = self._modules.get(id(first))
        if known is None:
            # The tensor is kept with its copy, so that no other object can take its identity.
            known = (first, ModuleFactors(a_stacked, b_stacked, self._dtype_of(first.dtype)))
            self._modules[id(first)] = known
        known[1].refresh(slot_ids)
        return known[1]


class Occupancy:
    """Whether any slot of a stacked tensor holds weights, looked up again only after vLLM wrote to it."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, bool]] = {}

    def __call__(self, stacked: Tensor) -> bool:
        """Stacked: [slots, …]."""
        known = self._known.get(id(stacked))
        if known is None or known[1] != stacked._version:
            known = (stacked, stacked._version, bool(torch.any(stacked)))
            self._known[id(stacked)] = known
        return known[2]


class ProductDtype:
    """Chooses the type to multiply in, once per engine.

    Args:
        native_bfloat16: Whether this CPU multiplies bfloat16 in hardware.
    """

    def __init__(self, *, native_bfloat16: bool) -> None:
        self.native_bfloat16 = native_bfloat16

    @classmethod
    def of_this_cpu(cls) -> "ProductDtype":
        """By the CPU's capabilities."""
        has = torch.cpu.get_capabilities()
        return cls(native_bfloat16=bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16")))

    def __call__(self, factors: torch.dtype) -> torch.dtype:
        """float32, but bfloat16 factors as they are where the CPU has instructions for them.

        Without these, products in bfloat16 take up to ten times as long as in float32.
        """
        return factors if factors == torch.bfloat16 and self.native_bfloat16 else torch.float32
