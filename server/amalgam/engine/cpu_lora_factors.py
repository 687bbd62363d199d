"""One module's factors, laid out for few and plain products.

vLLM keeps each slice (q, k, v; gate, up) of a module apart and pads every adapter to ``max_lora_rank``. Here the A
factors of all slices are stacked, their B factors form one block matrix, and an adapter takes the rank it really has.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """B of one slice: hidden columns ``ranks`` give output columns ``columns``. up: [rank, width]."""

    ranks: slice
    columns: slice
    up: Tensor


@dataclass(frozen=True, slots=True)
class SlotFactors:
    """One adapter in one module.

    Attributes:
        down: [in, rank], all slices' Aᵀ side by side.
        up: [rank, out], block matrix of all slices' Bᵀ.
        blocks: The parts of up that are not zero.
    """

    down: Tensor
    up: Tensor
    blocks: tuple[Block, ...]


class ModuleFactors:
    """Factors of all slots of one module, copied from vLLM's stacked tensors when these change.

    Args:
        a_stacked: Per slice [slots, 1, max rank, in].
        b_stacked: Per slice [slots, 1, width, max rank].
        dtype: Type to multiply in.

    Attributes:
        width: Output columns of all slices together.
    """

    def __init__(self, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        self._a = a_stacked
        self._b = b_stacked
        self._dtype = dtype
        self._columns = _column_slices(b_stacked)
        self.width = self._columns[-1].stop
        self._version = -1
        self._slots: list[SlotFactors | None] = []
        self._down = torch.empty(0)
        self._up = torch.empty(0)

    def refresh(self) -> None:
        """Copy again if vLLM wrote to its tensors since the last call; cheap otherwise."""
        # Every write, also through a view and in inference mode, advances the counter of the tensor it changes.
        version = sum(tensor._version for tensor in self._a) + sum(tensor._version for tensor in self._b)
        if version != self._version:
            self._copy()
            self._version = version

    @property
    def empty(self) -> bool:
        """Whether no slot changes this module."""
        return not any(self._slots)

    def slot(self, slot: int) -> SlotFactors | None:
        """Factors of one slot; None where its adapter does not change this module."""
        return self._slots[slot]

    def batch(self, first: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """Factors of slots first ≤ s < stop: [slots, in, rank] and [slots, rank, out]; None where all are zero.

        The rank is the module's largest; smaller adapters are filled with zeros.
        """
        if not any(self._slots[first:stop]):
            return None
        return self._down[first:stop].transpose(1, 2), self._up[first:stop]

    def _copy(self) -> None:
        slots = self._a[0].shape[0]
        ranks = [[_rank(a[slot]) for a in self._a] for slot in range(slots)]
        largest = max(sum(row) for row in ranks)
        self._down = torch.zeros((slots, largest, self._a[0].shape[-1]), dtype=self._dtype)
        self._up = torch.zeros((slots, largest, self.width), dtype=self._dtype)
        self._slots = [self._copy_slot(slot, row) for slot, row in enumerate(ranks)]

    def _copy_slot(self, slot: int, ranks: list[int]) -> SlotFactors | None:
        total = sum(ranks)
        if total == 0:
            return None
        down, up = self._down[slot], self._up[slot]
        blocks = []
        start = 0
        for a, b, rank, columns in zip(self._a, self._b, ranks, self._columns, strict=True):
            rows = slice(start, start + rank)
            down[rows].copy_(a[slot].flatten(0, -2)[:rank])
            up[rows, columns].copy_(b[slot].flatten(0, -2)[:, :rank].T)
            if rank:
                blocks.append(Block(rows, columns, up[rows, columns]))
            start += rank
        return SlotFactors(down[:total].T, up[:total], tuple(blocks))


class FactorCache:
    """`ModuleFactors` of every module met so far; modules live as long as the engine."""

    def __init__(self, dtype_of: "ProductDtype") -> None:
        self._dtype_of = dtype_of
        self._modules: dict[int, tuple[Tensor, ModuleFactors]] = {}

    def get(self, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...]) -> ModuleFactors:
        """Up-to-date factors of the module whose stacked tensors these are; see `ModuleFactors` for the shapes."""
        first = a_stacked[0]
        known = self._modules.get(id(first))
        if known is None:
            # The tensor is kept with its copy, so that no other object can take its identity.
            known = (first, ModuleFactors(a_stacked, b_stacked, self._dtype_of(first.dtype)))
            self._modules[id(first)] = known
        known[1].refresh()
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


def _column_slices(b_stacked: tuple[Tensor, ...]) -> tuple[slice, ...]:
    columns = []
    start = 0
    for b in b_stacked:
        columns.append(slice(start, start + b.shape[-2]))
        start += b.shape[-2]
    return tuple(columns)


def _rank(a: Tensor) -> int:
    """Rows of A up to the last that is not zero."""
    used = a.flatten(0, -2).any(dim=1).nonzero()
    return int(used[-1]) + 1 if len(used) else 0
