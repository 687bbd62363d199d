"""Reads one module's factors out of vLLM's stacked tensors: in plain torch, or compiled where all is float32."""

from typing import Protocol

import torch
from torch import Tensor

from amalgam.engine.cpu_lora_compiled import Indices, copy_slice, used_rows


class FactorSource(Protocol):
    """The stacked tensors of one module."""

    def rank(self, part: int, slot: int) -> int:
        """Rows of A of one slice up to the last that is not zero."""

    def copy(self, part: int, slot: int, block: Indices, down: Tensor, up: Tensor) -> None:
        """Copy one slice's factors of one slot: down[slot, ranks] = A, up[slot, ranks, columns] = Bᵀ.

        Args:
            block: First rank, rank after the last, first column, column after the last.
            down: [slots, rank, in]. up: [slots, rank, out].
        """


class TorchSource:
    """Of any type.

    Args:
        a_stacked: Per slice [slots, 1, max rank, in].
        b_stacked: Per slice [slots, 1, width, max rank].
    """

    def __init__(self, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...]) -> None:
        self._a = a_stacked
        self._b = b_stacked

    def rank(self, part: int, slot: int) -> int:
        """See `FactorSource`."""
        used = self._a[part][slot].flatten(0, -2).any(dim=1).nonzero()
        return int(used[-1]) + 1 if len(used) else 0

    def copy(self, part: int, slot: int, block: Indices, down: Tensor, up: Tensor) -> None:
        """See `FactorSource`."""
        first, stop, column, end = block.tolist()
        down[slot, first:stop].copy_(self._a[part][slot].flatten(0, -2)[: stop - first])
        up[slot, first:stop, column:end].copy_(self._b[part][slot].flatten(0, -2)[:, : stop - first].T)


class CompiledSource:
    """Of float32, into float32, all contiguous; a call takes a tenth of the operations in torch. Arguments as above."""

    def __init__(self, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...]) -> None:
        self._a = [a.numpy() for a in a_stacked]
        self._b = [b.numpy() for b in b_stacked]

    def rank(self, part: int, slot: int) -> int:
        """See `FactorSource`."""
        return int(used_rows(self._a[part], slot))

    def copy(self, part: int, slot: int, block: Indices, down: Tensor, up: Tensor) -> None:
        """See `FactorSource`."""
        copy_slice(self._a[part], self._b[part], slot, block, down.numpy(), up.numpy())


def source_of(a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], dtype: torch.dtype) -> FactorSource:
    """Compiled where the tensors and the copy's type are float32, with each slot's factors as one matrix."""
    tensors = (*a_stacked, *b_stacked)
    plain = all(t.dtype is torch.float32 and t.is_contiguous() and t.dim() == 4 and t.shape[1] == 1 for t in tensors)
    chosen = CompiledSource if plain and dtype is torch.float32 else TorchSource
    return chosen(a_stacked, b_stacked)
