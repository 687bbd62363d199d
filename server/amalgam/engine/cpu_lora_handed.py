"""Factors that go from an adapter's file straight to where they are multiplied, without vLLM's stacked tensors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amalgam.engine.cpu_lora_compiled import HALF_BITS, Factors, Halves, Indices, copy_slice, take_slice


class StoredBits(NamedTuple):
    """A tensor's entries as bits, and how many more a float32 has, of which they are the upper part."""

    bits: NDArray[np.unsignedinteger[Any]]
    shift: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
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
        """As a tensor's."""
        return torch.device("cpu")

    @classmethod
    def of(cls, a: Tensor, b: Tensor, scale: float) -> "StoredPair":
        """Of two matrices of any type that float32 holds."""
        return cls(_bits(a), _bits(b), scale)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """A, and B with its scale, rounded once to float32."""
        a, b = (_values(stored) for stored in self[:2])
        return a, b * self.scale


def bits_of(tensor: Tensor) -> Halves:
    """The memory of a contiguous bfloat16 tensor."""
    bits: Halves = tensor.view(torch.int16).numpy().view(np.uint16)
    return bits


def _bits(tensor: Tensor) -> StoredBits:
    matrix = tensor if tensor.is_contiguous() else tensor.contiguous()
    if matrix.dtype is torch.bfloat16:
        return StoredBits(bits_of(matrix), HALF_BITS)
    return StoredBits(matrix.float().numpy().view(np.uint32), 0)


def _values(stored: StoredBits) -> Tensor:
    wide = np.left_shift(stored.bits, stored.shift, dtype=np.uint32, casting="unsafe")
    return torch.from_numpy(wide.view(np.float32))


@dataclass(slots=True)
class Hands:
    """What vLLM has put into the slots of one module.

    Attributes:
        pairs: By slot and slice; what has been copied is here no longer. None: a slice that the adapter leaves alone.
        ranks: By slot, for those that changed since they were last asked for.
    """

    pairs: dict[int, list[StoredPair | None]] = field(default_factory=dict)
    ranks: dict[int, list[int]] = field(default_factory=dict)

    def give(self, slot: int, pairs: Iterable[StoredPair | None]) -> None:
        """Put an adapter's factors into a slot, by slice."""
        kept = self.pairs[slot] = list(pairs)
        self.ranks[slot] = [0 if pair is None else len(pair.a.bits) for pair in kept]


class HandedStack(tuple[Tensor, ...]):
    """Stands where vLLM has the stacked tensors of a module: their shapes without their memory.

    Args:
        stacked: Per slice [1, …], as vLLM makes them for one slot.
        slots: How many the module has.
        hands: What is in them, shared by the A and the B factors.
    """

    hands: Hands

    def __new__(cls, stacked: Iterable[Tensor], slots: int, hands: Hands) -> "HandedStack":
        """One zero, expanded to each shape."""
        made = super().__new__(cls, [one.new_zeros(()).expand(slots, *one.shape[1:]) for one in stacked])
        made.hands = hands
        return made


class HandedSource:
    """The factors of one module as vLLM handed them over; a `FactorSource`."""

    def __init__(self, hands: Hands, parts: int) -> None:
        self._hands = hands
        self._parts = parts
        self._asked = False

    def changes(self, slot_ids: Sequence[int | None]) -> Mapping[int, list[int]] | None:
        """See `FactorSource`; who hands over says so, whatever the ids are."""
        if not self._asked:
            self._asked = True
            self._hands.ranks = {}
            return None
        changed = self._hands.ranks
        if changed:
            self._hands.ranks = {}
        return changed

    def rank(self, part: int, slot: int) -> int:
        """See `FactorSource`; it is the stored one, also where its last rows are zero."""
        pair = self._hands.pairs.get(slot, [None] * self._parts)[part]
        return 0 if pair is None else len(pair.a.bits)

    def is_half(self, slot: int) -> bool:
        """Whether all factors in the slot are stored as bfloat16."""
        pairs = self._hands.pairs.get(slot, ())
        return all(stored.bits.dtype == np.uint16 for pair in pairs if pair for stored in pair[:2])

    def copy(self, part: int, slot: int, block: Indices, down: Tensor, up: Tensor) -> None:
        """See `FactorSource`."""
        pair = self._hands.pairs[slot][part]
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
        """As `copy`, of a slot that `is_half`, bit for bit.

        Returns: what the product of the two is still to be multiplied by.
        """
        pair = self._hands.pairs[slot][part]
        assert pair is not None
        copy_slice(pair.a.bits, pair.b.bits, slot, block, down, up)
        return pair.scale

    def release(self, slot: int) -> None:
        """Let go of the adapter's file."""
        self._hands.pairs.pop(slot, None)
