"""One module's factors, laid out for few and plain products.

vLLM keeps each slice (q, k, v; gate, up) of a module apart and pads every adapter to ``max_lora_rank``. Here the A
factors of all slices are stacked, their B factors form one block matrix, and an adapter takes the rank it really has.
Both kinds of products, plain and compiled, read the same copy.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amalgam.engine.cpu_lora_compiled import Floats, Indices
from amalgam.engine.cpu_lora_source import source_of

_LINE_BYTES: Final = 64
"""Of the cache: vectors that begin with one never cross into the next."""


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


class FactorArrays(NamedTuple):
    """All slots' factors as `cpu_lora_compiled.add_low_rank` takes them.

    Attributes:
        down: [slots, rank, in].
        up: [slots, rank, out].
        blocks: [slots, slices, 4].
    """

    down: Floats
    up: Floats
    blocks: Indices


class ModuleFactors:
    """Factors of all slots of one module, copied from vLLM's stacked tensors when they are first asked for.

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
        self._source = source_of(a_stacked, b_stacked, dtype)
        self._version = -1
        self._ids: list[int | None] = []
        # By slot and slice, as vLLM has them; what is copied of the slots that are not behind stands in the blocks.
        self._ranks: list[list[int]] = []
        self._behind: set[int] = set()
        # Of each slot and slice: first rank, rank after the last, first column, column after the last.
        self._blocks = np.zeros((a_stacked[0].shape[0], len(a_stacked), 4), dtype=np.int64)
        self._blocks[:, :, 3] = np.cumsum([b.shape[-2] for b in b_stacked])
        self._blocks[:, 1:, 2] = self._blocks[:, :-1, 3]
        self.width = int(self._blocks[0, -1, 3])
        self._views: dict[int, SlotFactors] = {}
        self._down = torch.empty(0)
        self._up = torch.empty(0)
        self._arrays: FactorArrays | None = None

    def refresh(self, slot_ids: Sequence[int | None]) -> None:
        """Notice what vLLM wrote since the last call; cheap where it wrote nothing.

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
        if not self._note_changed(changed, version - self._version):
            self._start_over()
        self._version = version
        self._ids = list(slot_ids)

    @property
    def empty(self) -> bool:
        """Whether no slot changes this module."""
        return not any(map(any, self._ranks))

    def slot(self, slot: int) -> SlotFactors | None:
        """Factors of one slot; None where its adapter does not change this module."""
        self._catch_up((slot,))
        if slot not in self._views and any(self._ranks[slot]):
            self._views[slot] = self._views_of(slot)
        return self._views.get(slot)

    def batch(self, first: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """Factors of slots first ≤ s < stop: [slots, in, rank] and [slots, rank, out]; None where all are zero.

        The rank is the module's largest; smaller adapters are filled with zeros.
        """
        self._catch_up(range(first, stop))
        if not any(map(any, self._ranks[first:stop])):
            return None
        return self._down[first:stop].transpose(1, 2), self._up[first:stop]

    def arrays(self, slots: Indices) -> FactorArrays | None:
        """Factors in memory, those of these slots up to date; None where they are not float32."""
        if self._behind:
            self._catch_up(slots.tolist())
        return self._arrays

    def _start_over(self) -> None:
        """With the largest rank there is now; nothing is copied yet."""
        self._ranks = [self._source_ranks(slot) for slot in range(len(self._blocks))]
        largest = max(map(sum, self._ranks))
        self._down = _zeros((len(self._ranks), largest, self._a[0].shape[-1]), self._dtype)
        self._up = _zeros((len(self._ranks), largest, self.width), self._dtype)
        if self._dtype is torch.float32:
            self._arrays = FactorArrays(self._down.numpy(), self._up.numpy(), self._blocks)
        self._blocks[:, :, :2] = 0
        self._behind = set(range(len(self._ranks)))

    def _note_changed(self, changed: list[int], writes: int) -> bool:
        """Let the slots that got another adapter be behind, if these account for every write; False otherwise.

        vLLM activates an adapter with one write per tensor that zeroes the slot, and one more for factors it has. More
        writes than that mean that weights changed under an id that stayed.
        """
        parts = len(self._a)
        if writes == 2 * parts * len(changed):
            # Zeroed and no more: adapters that do not change this module, which is known without reading it.
            ranks = {slot: [0] * parts for slot in changed}
        else:
            ranks = {slot: self._source_ranks(slot) for slot in changed}
        expected = sum(2 + 2 * (rank > 0) for row in ranks.values() for rank in row)
        if expected != writes or any(sum(row) > self._down.shape[1] for row in ranks.values()):
            return False
        for slot, row in ranks.items():
            self._ranks[slot] = row
        self._behind.update(ranks)
        return True

    def _catch_up(self, slots: Iterable[int]) -> None:
        """Copy those of the slots that are behind.

        Not all that are: somebody else's adapter, just loaded, is copied in the step that its first request begins in.
        """
        for slot in self._behind.intersection(slots):
            self._clear(slot)
            self._copy(slot)
            self._behind.remove(slot)

    def _clear(self, slot: int) -> None:
        """Zero what the slot's last adapter used and the next one will not overwrite."""
        first, stop = self._blocks[slot, :, 0], self._blocks[slot, :, 1]
        if (stop - first).tolist() != self._ranks[slot]:
            self._down[slot, sum(self._ranks[slot]) : stop[-1]].zero_()
            self._up[slot, : stop[-1]].zero_()

    def _copy(self, slot: int) -> None:
        self._views.pop(slot, None)
        blocks, ranks = self._blocks[slot], self._ranks[slot]
        blocks[:, 1] = np.cumsum(ranks)
        blocks[:, 0] = blocks[:, 1] - ranks
        for part, rank in enumerate(ranks):
            if rank:
                self._source.copy(part, slot, blocks[part], self._down, self._up)

    def _views_of(self, slot: int) -> SlotFactors:
        down, up, rank = self._down[slot], self._up[slot], sum(self._ranks[slot])
        blocks = []
        for first, stop, column, end in self._blocks[slot].tolist():
            if stop > first:
                ranks, columns = slice(first, stop), slice(column, end)
                blocks.append(Block(ranks, columns, up[ranks, columns]))
        return SlotFactors(down[:rank].T, up[:rank], tuple(blocks))

    def _source_ranks(self, slot: int) -> list[int]:
        return [self._source.rank(part, slot) for part in range(len(self._a))]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that the system hands out as it is written to; torch's own zeros are written at once, for every slot."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.zeros(size + _LINE_BYTES, dtype=np.uint8)
    start = -buffer.ctypes.data % _LINE_BYTES
    return torch.from_numpy(buffer[start : start + size]).view(dtype).view(shape)
