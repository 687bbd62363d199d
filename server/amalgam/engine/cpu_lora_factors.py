"""One module's factors, laid out for few and plain products.

vLLM keeps each slice (q, k, v; gate, up) of a module apart and pads every adapter to ``max_lora_rank``. Here the A
factors of all slices are stacked, their B factors form one block matrix, and an adapter takes the rank it really has.
"""

from collections.abc import Sequence
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
        self._ids: list[int | None] = []
        self._slots: list[SlotFactors | None] = []
        self._down = torch.empty(0)
        self._up = torch.empty(0)

    def refresh(self, slot_ids: Sequence[int | None]) -> None:
        """Copy again what vLLM wrote since the last call; cheap where it wrote nothing.

        Args:
            slot_ids: The adapter in each slot, by its id; None where a slot is free.
        """
        # Every write, also through a view and in inference mode, advances the counter of the tensor it changes.
        version = sum(tensor._version for tensor in self._a) + sum(tensor._version for tensor in self._b)
        if version == self._version:
            return
        changed = [
            slot for slot, (old, new) in enumerate(zip(self._ids, slot_ids, strict=False)) if new not in (old, None)
        ]
        if not self._copy_changed(changed, version - self._version):
            self._copy_all()
        self._version = version
        self._ids = list(slot_ids)

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

    def _copy_all(self) -> None:
        slots = self._a[0].shape[0]
        ranks = [[_rank(a[slot]) for a in self._a] for slot in range(slots)]
        largest = max(sum(row) for row in ranks)
        self._down = torch.zeros((slots, largest, self._a[0].shape[-1]), dtype=self._dtype)
        self._up = torch.zeros((slots, largest, self.width), dtype=self._dtype)
        self._slots = [self._copy_slot(slot, row) for slot, row in enumerate(ranks)]

    def _copy_changed(self, changed: list[int], writes: int) -> bool:
        """Copy the slots that got another adapter, if these account for every write; False otherwise.

        vLLM activates an adapter with one write per tensor that zeroes the slot, and one more for factors it has. More
        writes than that mean that weights changed under an id that stayed.
        """
        ranks = {slot: [_rank(a[slot]) for a in self._a] for slot in changed}
        expected = sum(2 + 2 * (rank > 0) for row in ranks.values() for rank in row)
        if expected != writes or any(sum(row) > self._down.shape[1] for row in ranks.values()):
            return False
        for slot, row in ranks.items():
            self._down[slot].zero_()
            self._up[slot].zero_()
            self._slots[slot] = self._copy_slot(slot, row)
        return True

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
