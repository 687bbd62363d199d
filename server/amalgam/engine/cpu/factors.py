"""One module's factors, laid out for few and plain products.

vLLM keeps each slice (q, k, v; gate, up) of a module apart and pads every adapter to ``max_lora_rank``. Here the A
factors of all slices are stacked, their B factors form one block matrix, and an adapter takes the rank it really has.
All kinds of products read the same copy. It is bfloat16 where the model is, and in a float32 model while all adapters
are stored as bfloat16: compiled products widen it as they read, plain ones find what was widened for the first of them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amalgam.engine.cpu.compiler import Factors, Floats, Indices
from amalgam.engine.cpu.sources import StoredSource, bits_of, source_of

_LINE_BYTES: Final = 64
"""A line of the cache is so long: vectors that begin with one never cross into the next."""

_JOINED_RANKS: Final = 64
"""The zeros of the block matrix are cheaper than a product for each slice, up to so many ranks of all slices together.
"""


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


class Tile(NamedTuple):
    """One slot's factors, or those of some of its slices, as they are kept: y[:, columns] += scale · x @ down @ up.

    Attributes:
        down: [in, rank], bfloat16. up: [rank, width], bfloat16.
    """

    down: Tensor
    up: Tensor
    columns: slice
    scale: float


class FactorArrays(NamedTuple):
    """All slots' factors as `loops.add_low_rank` takes them.

    Attributes:
        down: [slots, rank, in].
        up: [slots, rank, out].
        blocks: [slots, slices, 4].
        scales: [slots, rank].
    """

    down: Factors
    up: Factors
    blocks: Indices
    scales: Floats


class ModuleFactors:
    """Factors of all slots of one module, copied when they are first asked for.

    Args:
        a_stacked: Per slice [slots, 1, max rank, in].
        b_stacked: Per slice [slots, 1, width, max rank].
        dtype: bfloat16 where the model is, and else float32.

    Attributes:
        width: Output columns of all slices together.
    """

    def __init__(self, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._source = source_of(a_stacked, b_stacked, dtype)
        # Compiled products read halves; where vLLM computes in a third type, there are none.
        alike = a_stacked[0].dtype is dtype
        self._halves = self._source if alike and isinstance(self._source, StoredSource) else None
        self._kept = dtype if self._halves is None else torch.bfloat16
        self._slots, self._parts, self._in = a_stacked[0].shape[0], len(a_stacked), a_stacked[0].shape[-1]
        # By slot and slice: as the source has them, and as they are copied.
        self._ranks = self._nothing()
        self._copied = self._nothing()
        self._behind: set[int] = set()
        # Of each slot and slice: first rank, rank after the last, first column, column after the last.
        self._blocks = np.zeros((self._slots, self._parts, 4), dtype=np.int64)
        self._blocks[:, :, 3] = np.cumsum([b.shape[-2] for b in b_stacked])
        self._blocks[:, 1:, 2] = self._blocks[:, :-1, 3]
        self.width = int(self._blocks[0, -1, 3])
        self._views: dict[int, SlotFactors] = {}
        self._tiles: dict[int, tuple[Tile, ...]] = {}
        self._twice: dict[int, Tensor] = {}
        self._down = torch.empty(0, 0)
        self._up = torch.empty(0, 0)
        self._scales: Floats = np.ones((0, 0), np.float32)
        self._arrays = FactorArrays(*(np.zeros((0, 0), np.float32),) * 2, self._blocks, self._scales)

    def refresh(self, slot_ids: Sequence[int | None]) -> None:
        """Notice what vLLM changed since the last call; cheap where it changed nothing.

        Args:
            slot_ids: The adapter in each slot, by its id; None where a slot is free.
        """
        changes = self._source.changes(slot_ids)
        if changes is None:
            self._start_over()
        elif changes:
            for slot, ranks in changes.items():
                self._ranks[slot] = ranks
            self._behind.update(changes)
            largest = max(map(sum, changes.values()))
            if largest > self._down.shape[1]:
                self._make_room(largest)

    @property
    def empty(self) -> bool:
        """Whether no slot changes this module."""
        return not any(map(any, self._ranks))

    def slot(self, slot: int) -> SlotFactors | None:
        """Factors of one slot for plain products, in float32; None where its adapter does not change this module."""
        self._catch_up((slot,))
        if slot not in self._views and any(self._ranks[slot]):
            self._views[slot] = self._views_of(slot)
        return self._views.get(slot)

    def tiles(self, slot: int) -> tuple[Tile, ...]:
        """Factors of one slot as they are kept, in a module of bfloat16; none where its adapter does not change it."""
        self._catch_up((slot,))
        if slot not in self._tiles:
            self._tiles[slot] = self._tiles_of(slot)
        return self._tiles[slot]

    def rank(self, slot: int) -> int:
        """Ranks of all slices of a slot together; 0 where its adapter does not change this module."""
        return sum(self._ranks[slot])

    def twice(self, slot: int) -> Tensor:
        """B of all slices of a slot that is up to date, and the same once more: [2 · rank, width], as it is kept."""
        if slot not in self._twice:
            up = self._up[slot, : self.rank(slot)]
            self._twice[slot] = torch.cat((up, up))
        return self._twice[slot]

    def batch(self, first: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """Factors of slots first ≤ s < stop: [slots, in, rank] and [slots, rank, out]; None where all are zero.

        The rank is the module's largest; smaller adapters are filled with zeros.
        """
        self._catch_up(range(first, stop))
        if not any(map(any, self._ranks[first:stop])):
            return None
        down, up = self._products(slice(first, stop), slice(None))
        return down.transpose(1, 2), up

    def arrays(self, slots: Indices) -> FactorArrays:
        """Factors in memory, those of these slots up to date."""
        if self._behind:
            self._catch_up(slots.tolist())
        return self._arrays

    def _start_over(self) -> None:
        """Make it anew with the largest rank there is now; nothing is copied yet."""
        self._ranks = [[self._source.rank(part, slot) for part in range(self._parts)] for slot in range(self._slots)]
        self._copied = self._nothing()
        self._blocks[:, :, :2] = 0
        self._make_room(max(map(sum, self._ranks)))
        self._behind = set(range(self._slots))

    def _nothing(self) -> list[list[int]]:
        return [[0] * self._parts for _ in range(self._slots)]

    def _make_room(self, rank: int) -> None:
        """Make room for adapters of so large a rank; what is copied stays."""
        down, up = (_zeros((self._slots, rank, width), self._kept) for width in (self._in, self.width))
        scales = np.ones((self._slots, rank), np.float32)
        for slot, used in enumerate(map(sum, self._copied)):
            if not used:
                continue
            if self._kept is self._down.dtype:
                down[slot, :used], up[slot, :used] = self._down[slot, :used], self._up[slot, :used]
                scales[slot, :used] = self._scales[slot, :used]
            else:
                down[slot, :used], up[slot, :used] = self._products(slot, slice(used))
        self._down, self._up, self._scales = down, up, scales
        self._views.clear()
        self._tiles.clear()
        self._twice.clear()
        a, b = (bits_of(copy) if copy.dtype is torch.bfloat16 else copy.numpy() for copy in (down, up))
        self._arrays = FactorArrays(a, b, self._blocks, scales)

    def _products(self, slots: int | slice, ranks: slice) -> tuple[Tensor, Tensor]:
        """What plain products multiply: the copy itself, or widened and with its scale."""
        down, up = self._down[slots, ranks], self._up[slots, ranks]
        if down.dtype is torch.float32:
            return down, up
        scales = torch.from_numpy(self._scales[slots, ranks, None])
        return down.float(), up.float().mul_(scales)

    def _catch_up(self, slots: Iterable[int]) -> None:
        """Copy those of the slots that are behind.

        Not all that are: somebody else's adapter, just loaded, is copied in the step that its first request begins in.
        """
        for slot in self._behind.intersection(slots):
            if self._dtype is torch.float32 and self._halves is not None and not self._halves.is_half(slot):
                # One adapter of another type, and the module's copies are float32 for good.
                self._halves, self._kept = None, self._dtype
                self._make_room(self._down.shape[1])
            self._clear(slot)
            self._copy(slot)
            self._behind.remove(slot)

    def _clear(self, slot: int) -> None:
        """Zero what the slot's last adapter used and the next one will not overwrite."""
        copied, ranks = self._copied[slot], self._ranks[slot]
        if copied != ranks:
            used = sum(copied)
            self._down[slot, sum(ranks) : used].zero_()
            self._up[slot, :used].zero_()

    def _copy(self, slot: int) -> None:
        self._views.pop(slot, None)
        self._tiles.pop(slot, None)
        self._twice.pop(slot, None)
        ranks, blocks = self._ranks[slot], self._blocks[slot]
        stops = list(accumulate(ranks))
        if ranks != self._copied[slot]:
            blocks[:, :2] = list(zip((0, *stops), stops, strict=False))
        for part, rank in enumerate(ranks):
            if not rank:
                continue
            if self._halves is None:
                self._source.copy(part, slot, blocks[part], self._down, self._up)
                continue
            scale = self._halves.copy_half(part, slot, blocks[part], self._arrays.down, self._arrays.up)
            self._scales[slot, stops[part] - rank : stops[part]] = scale
        self._copied[slot] = ranks
        self._source.release(slot)

    def _views_of(self, slot: int) -> SlotFactors:
        down, up = self._products(slot, slice(sum(self._ranks[slot])))
        blocks = []
        for first, stop, column, end in self._blocks[slot].tolist():
            if stop > first:
                ranks, columns = slice(first, stop), slice(column, end)
                blocks.append(Block(ranks, columns, up[ranks, columns]))
        return SlotFactors(down.T, up, tuple(blocks))

    def _tiles_of(self, slot: int) -> tuple[Tile, ...]:
        """One for all slices where they share a scale and few ranks; else one for each that the adapter changes."""
        parts = [part for part in self._blocks[slot].tolist() if part[1] > part[0]]
        scales = [float(self._scales[slot, part[0]]) for part in parts]
        if len(set(scales)) == 1 and parts[-1][1] <= _JOINED_RANKS:
            parts, scales = [[0, parts[-1][1], 0, self.width]], scales[:1]
        return tuple(
            Tile(self._down[slot, first:stop].T, self._up[slot, first:stop, column:end], slice(column, end), scale)
            for (first, stop, column, end), scale in zip(parts, scales, strict=True)
        )


class FactorCache:
    """`ModuleFactors` of every module met so far; modules live as long as the engine."""

    def __init__(self) -> None:
        self._modules: dict[int, tuple[Tensor, ModuleFactors]] = {}

    def get(
        self, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], slot_ids: Sequence[int | None]
    ) -> ModuleFactors:
        """Up-to-date factors of the module whose stacked tensors these are; see `ModuleFactors` for the arguments."""
        first = a_stacked[0]
        known = self._modules.get(id(first))
        if known is None:
            # The tensor is kept with its copy, so that no other object can take its identity.
            dtype = first.dtype if first.dtype is torch.bfloat16 else torch.float32
            known = (first, ModuleFactors(a_stacked, b_stacked, dtype))
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


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that the system allocates as it is written to; torch's own zeros are written at once, for every slot."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.zeros(size + _LINE_BYTES, dtype=np.uint8)
    start = -buffer.ctypes.data % _LINE_BYTES
    return torch.from_numpy(buffer[start : start + size]).view(dtype).view(shape)
