"""Reads one module's factors out of vLLM's stacked tensors: in plain torch, or compiled where all is float32."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

from amalgam.engine.cpu_lora_compiled import Indices, copy_slice, used_rows
from amalgam.engine.cpu_lora_handed import HandedSource, HandedStack

_NOTHING: Final[Mapping[int, list[int]]] = {}


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
    """Of any type."""

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
    """Of float32, into float32, all contiguous; a call takes a tenth of the operations in torch."""

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


def source_of(a_stacked: tuple[Tensor, ...], b_stacked: tuple[Tensor, ...], dtype: torch.dtype) -> FactorSource:
    """What was handed over, where the tensors only stand for it; else what vLLM wrote to them.

    The latter is read compiled where the tensors and the copy's type are float32, with each slot's factors as one
    matrix.
    """
    if isinstance(a_stacked, HandedStack):
        return HandedSource(a_stacked.hands, len(a_stacked))
    tensors = (*a_stacked, *b_stacked)
    plain = all(t.dtype is torch.float32 and t.is_contiguous() and t.dim() == 4 and t.shape[1] == 1 for t in tensors)
    chosen = CompiledSource if plain and dtype is torch.float32 else TorchSource
    return chosen(a_stacked, b_stacked)
