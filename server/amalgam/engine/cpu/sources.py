"""Where one module's factors come from: as an adapter's file stores them, or out of vLLM's stacked tensors.

Stored factors go straight to where they are multiplied: vLLM's layers then have placeholders in the place of their
stacked tensors. Where vLLM writes to stacked tensors, these are read in plain torch, or compiled where all is float32.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amalgam.engine.cpu.compiler import HALF_BITS, Factors, Halves, Indices
from amalgam.engine.cpu.copies import copy_slice, take_slice, used_rows

_NOTHING: Final[Mapping[int, list[int]]] = {}


class StoredBits(NamedTuple):
    """A tensor's entries as bits, and how many more a float32 has, of which they are the upper part."""

    bits: NDArray[np.unsignedinteger[Any]]
    shift: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return self.bits.shape


class StoredPair(NamedTuple):
    """One module's factors as they are stored; no tensor, so that nobody takes B for what it is without its scale.

    vLLM, which carries it about in the place of either factor, asks it for its device.

    Attributes:
        a: [rank, in]. b: [width, rank].
        scale: What B is to be multiplied by.
    """

    a: StoredBits
    b: StoredBits
    scale: float

    @property
    def device(self) -> torch.device:
        """The device, as a tensor has it."""
        return torch.device("cpu")

    @classmethod
    def of(cls, a: Tensor, b: Tensor, scale: float) -> "StoredPair":
        """Make it of two matrices of any type that float32 holds."""
        return cls(_bits(a), _bits(b), scale)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """A, and B with its scale, rounded once to float32."""
        a, b = (_values(stored) for stored in self[:2])
        return a, b * self.scale


def bits_of(tensor: Tensor) -> Halves:
    """The memory of a contiguous bfloat16 tensor."""
    bits: Halves = tensor.view(torch.uint16).numpy()
    return bits


def _bits(tensor: Tensor) -> StoredBits:
    matrix = tensor if tensor.is_contiguous() else tensor.contiguous()
    if matrix.dtype is torch.bfloat16:
        return StoredBits(bits_of(matrix), HALF_BITS)
    return StoredBits(matrix.float().numpy().view(np.uint32), 0)


def _halves(stored: StoredBits) -> Halves:
    """The factors as bfloat16: the stored bits, or rounded."""
    if stored.bits.dtype == np.uint16:
        return stored.bits
    return bits_of(_values(stored).bfloat16())


def _values(stored: StoredBits) -> Tensor:
    wide = np.left_shift(stored.bits, stored.shift, dtype=np.uint32, casting="unsafe")
    return torch.from_numpy(wide.view(np.float32))


@dataclass(slots=True)
class SlotContents:
    """What vLLM has put into the slots of one module.

    Attributes:
        pairs: By slot and slice; what has been copied is here no longer. None: a slice that the adapter leaves alone.
        ranks: By slot, for those that changed since they were last asked for.
    """

    pairs: dict[int, list[StoredPair | None]] = field(default_factory=dict)
    ranks: dict[int, list[int]] = field(default_factory=dict)

    def put(self, slot: int, pairs: Iterable[StoredPair | None]) -> None:
        """Put an adapter's factors into a slot, by slice."""
        kept = self.pairs[slot] = list(pairs)
        self.ranks[slot] = [0 if pair is None else len(pair.a.bits) for pair in kept]


class PlaceholderStack(tuple[Tensor, ...]):
    """Stands where vLLM has the stacked tensors of a module: their shapes without their memory.

    Args:
        stacked: Per slice [1, …], as vLLM makes them for one slot.
        slots: How many the module has.
        contents: What is in them, shared by the A and the B factors.
    """

    contents: SlotContents

    def __new__(cls, stacked: Iterable[Tensor], slots: int, contents: SlotContents) -> "PlaceholderStack":
        """One zero, expanded to each shape."""
        made = super().__new__(cls, [one.new_zeros(()).expand(slots, *one.shape[1:]) for one in stacked])
        made.contents = contents
        return made


class FactorSource(Protocol):
    """Where the factors of one module's slots come from."""

    def changes(self, slot_ids: Sequence[int | None]) -> Mapping[int, list[int]] | None:
        """Slots that got other factors since the last call, each with its ranks by slice; cheap where none did.

        Args:
            slot_ids: The adapter in each slot, by its id; None where a slot is free.

        Returns: None where any slot may have changed, as at the first call.
        """

    def rank(self, part: int, slot: int) -> int:
        """Rank of one slice in one slot; 0 where its adapter does not change it."""

    def copy(self, part: int, slot: int, block: Indices, down: Tensor, up: Tensor) -> None:
        """Copy one slice's factors of one slot: down[slot, ranks] = A, up[slot, ranks, columns] = Bᵀ.

        Args:
            block: First rank, rank after the last, first column, column after the last.
            down: [slots, rank, in]. up: [slots, rank, out].
        """

    def release(self, slot: int) -> None:
        """All slices of the slot are copied, and not asked for again before they change."""


class _StackedSource(FactorSource):
    """Notices what vLLM writes to its stacked tensors.

    Args:
        a_stacked: Per slice [slots, 1, max rank, in].
        b_stacked: Per slice [slots, 1, width, max rank].
    """

    def __init__(self, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...]) -> None:
        self._tensors = (*a_stacked, *b_stacked)
        self._parts = len(a_stacked)
        self._version: int | None = None
        self._ids: list[int | None] = []

    def changes(self, slot_ids: Sequence[int | None]) -> Mapping[int, list[int]] | None:
        """See `FactorSource`."""
        # Every write, also through a view and in inference mode, advances the counter of the tensor it changes.
        last, version = self._version, sum(tensor._version for tensor in self._tensors)
        if version == last:
            return _NOTHING
        changed = [
            slot for slot, (old, new) in enumerate(zip(self._ids, slot_ids, strict=False)) if new not in (old, None)
        ]
        self._version, self._ids = version, list(slot_ids)
        return None if last is None else self._explained(changed, version - last)

    def _explained(self, changed: Iterable[int], writes: int) -> Mapping[int, list[int]] | None:
        """The ranks of the slots that got another adapter, if these account for every write; None otherwise.

        vLLM activates an adapter with one write per tensor that zeroes the slot, and one more for factors it has. More
        writes than that mean that weights changed under an id that stayed.
        """
        slots = list(changed)
        if writes == 2 * self._parts * len(slots):
            # Zeroed and no more: adapters that do not change this module, which is known without reading it.
            return {slot: [0] * self._parts for slot in slots}
        ranks = {slot: [self.rank(part, slot) for part in range(self._parts)] for slot in slots}
        expected = sum(2 + 2 * (rank > 0) for row in ranks.values() for rank in row)
        return ranks if expected == writes else None

    def release(self, slot: int) -> None:
        """The stacked tensors stay vLLM's."""


class TorchSource(_StackedSource):
    """A source of factors of any type."""

    def __init__(self, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...]) -> None:
        super().__init__(a_stacked, b_stacked)
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


class CompiledSource(_StackedSource):
    """A source of float32, into float32, all contiguous; a call takes a tenth of the operations in torch."""

    def __init__(self, a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...]) -> None:
        super().__init__(a_stacked, b_stacked)
        self._a = [a.numpy() for a in a_stacked]
        self._b = [b.numpy() for b in b_stacked]

    def rank(self, part: int, slot: int) -> int:
        """See `FactorSource`."""
        return int(used_rows(self._a[part], slot))

    def copy(self, part: int, slot: int, block: Indices, down: Tensor, up: Tensor) -> None:
        """See `FactorSource`."""
        copy_slice(self._a[part][slot, 0], self._b[part][slot, 0], slot, block, down.numpy(), up.numpy())


class StoredSource:
    """The factors of one module as they were put into its slots; a `FactorSource`."""

    def __init__(self, contents: SlotContents, parts: int) -> None:
        self._contents = contents
        self._parts = parts
        self._asked = False

    def changes(self, slot_ids: Sequence[int | None]) -> Mapping[int, list[int]] | None:
        """See `FactorSource`; what is put into a slot is noted there, whatever the ids are."""
        if not self._asked:
            self._asked = True
            self._contents.ranks = {}
            return None
        changed = self._contents.ranks
        if changed:
            self._contents.ranks = {}
        return changed

    def rank(self, part: int, slot: int) -> int:
        """See `FactorSource`; it is the stored one, also where its last rows are zero."""
        pair = self._contents.pairs.get(slot, [None] * self._parts)[part]
        return 0 if pair is None else len(pair.a.bits)

    def is_half(self, slot: int) -> bool:
        """Whether all factors in the slot are stored as bfloat16."""
        pairs = self._contents.pairs.get(slot, ())
        return all(stored.bits.dtype == np.uint16 for pair in pairs if pair for stored in pair[:2])

    def copy(self, part: int, slot: int, block: Indices, down: Tensor, up: Tensor) -> None:
        """See `FactorSource`."""
        pair = self._contents.pairs[slot][part]
        assert pair is not None
        if down.dtype is torch.float32:
            (a, left_a), (b, left_b), scale = pair
            take_slice(a, b, (left_a, left_b), scale, slot, block, down.numpy(), up.numpy())
            return
        first, stop, column, end = block.tolist()
        a_wide, b_wide = pair.tensors()
        down[slot, first:stop].copy_(a_wide)
        up[slot, first:stop, column:end].copy_(b_wide.T)

    def copy_half(self, part: int, slot: int, block: Indices, down: Factors, up: Factors) -> float:
        """Copies as `copy` does, but what is stored: bit for bit of a slot that `is_half`, else rounded to bfloat16.

        Returns: what the product of the two is still to be multiplied by.
        """
        pair = self._contents.pairs[slot][part]
        assert pair is not None
        copy_slice(_halves(pair.a), _halves(pair.b), slot, block, down, up)
        return pair.scale

    def release(self, slot: int) -> None:
        """Let go of the adapter's file."""
        self._contents.pairs.pop(slot, None)


def source_of(a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], dtype: torch.dtype) -> FactorSource:
    """What was put into the slots, where the tensors are placeholders; else what vLLM wrote to them.

    The latter is read compiled where the tensors and the copy's type are float32, with each slot's factors as one
    matrix.
    """
    if isinstance(a_stacked, PlaceholderStack):
        return StoredSource(a_stacked.contents, len(a_stacked))
    tensors = (*a_stacked, *b_stacked)
    plain = all(t.dtype is torch.float32 and t.is_contiguous() and t.dim() == 4 and t.shape[1] == 1 for t in tensors)
    chosen = CompiledSource if plain and dtype is torch.float32 else TorchSource
    return chosen(a_stacked, b_stacked)
