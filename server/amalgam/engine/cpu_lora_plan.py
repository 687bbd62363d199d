"""Which rows of a step use which adapter slot, sorted once per step for all layers."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from amalgam.engine.cpu_lora_compiled import Indices

SOLO_ROWS: Final = 16
"""From this many rows on, a slot's rows get products of their own: larger products gain nothing from batching, and one
large group in a batch pads all others to its size."""

FEW_RUNS: Final = 2
"""Up to this many runs of rows, two plain products each are fewer operations than gathering them into one batch."""

COMPILED_ROWS: Final = 16
"""Up to this many rows of a slot go through compiled loops, where there are any. In one thread these take half as long
as plain products with rank 8 and three quarters with rank 64; at twice as many rows half and as long. More threads
share plain products, and not the loops."""


@dataclass(frozen=True, slots=True)
class Run:
    """Rows start ≤ r < stop, neighbours that all use slot: products work on views of them."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Scatter:
    """Rows that use slot, anywhere in the batch. rows: [n], int64."""

    slot: int
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """A few rows each of neighbouring slots first ≤ s < stop, multiplied together.

    Attributes:
        gather: [(stop - first) · width], int64: rows to read, slot after slot, filled up to width per slot.
        kept: [n], int64: places in gather that are rows and not filling; None where all are.
        rows: [n], int64: the row of each kept place.
    """

    first: int
    stop: int
    gather: Tensor
    kept: Tensor | None
    rows: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """A few rows each of some slots, for compiled loops.

    Attributes:
        rows: [n], int64; those of group g from starts[g] to starts[g + 1].
        starts: [groups + 1], int64.
        slots: [groups], int64, each once.
    """

    rows: Indices
    starts: Indices
    slots: Indices

    def scatters(self) -> tuple[Scatter, ...]:
        """The same rows, slot by slot."""
        parts = np.split(self.rows, self.starts[1:-1])
        return tuple(Scatter(int(slot), torch.from_numpy(rows)) for slot, rows in zip(self.slots, parts, strict=True))


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A partition of the rows that have an adapter; rows without one are in no part, so nothing touches them."""

    runs: tuple[Run, ...] = ()
    scatters: tuple[Scatter, ...] = ()
    batches: tuple[Batch, ...] = ()
    groups: Groups | None = None

    def __bool__(self) -> bool:
        return bool(self.runs or self.scatters or self.batches or self.groups)

    def rows_by_slot(self) -> dict[int, Tensor]:
        """The rows of each slot, ascending; for layers that multiply slot by slot."""
        parts: dict[int, list[Tensor]] = {}
        for run in self.runs:
            parts.setdefault(run.slot, []).append(torch.arange(run.start, run.stop))
        for scatter in (*self.scatters, *(self.groups.scatters() if self.groups else ())):
            parts.setdefault(scatter.slot, []).append(scatter.rows)
        for batch in self.batches:
            slots = torch.arange(batch.first, batch.stop).repeat_interleave(len(batch.gather) // _width(batch))
            used = slots if batch.kept is None else slots[batch.kept]
            for slot in range(batch.first, batch.stop):
                parts.setdefault(slot, []).append(batch.rows[used == slot])
        return {slot: torch.cat(rows).sort().values for slot, rows in parts.items()}


def plan_rows(slot_of_row: Tensor, *, compiled: bool = False) -> RowPlan:
    """Plan a step.

    Args:
        slot_of_row: [rows], int64; -1 where the row has no adapter.
        compiled: Whether a few rows of a slot go into `Groups`, instead of batches.
    """
    slots = slot_of_row.numpy()
    edges = np.flatnonzero(slots[1:] != slots[:-1]) + 1
    starts = np.concatenate(([0], edges)) if len(slots) else edges
    stops = np.concatenate((edges, [len(slots)])) if len(slots) else edges
    used = slots[starts] >= 0
    starts, stops = starts[used], stops[used]
    least_batched = 1 if len(starts) <= FEW_RUNS else SOLO_ROWS
    long = stops - starts >= (COMPILED_ROWS + 1 if compiled else least_batched)
    runs = tuple(
        Run(int(slots[start]), int(start), int(stop)) for start, stop in zip(starts[long], stops[long], strict=True)
    )
    loose = slots.copy()
    for run in runs:
        loose[run.start : run.stop] = -1
    rows_of = {int(s): np.flatnonzero(loose == s) for s in np.unique(loose) if s >= 0}
    return _plan_groups(runs, rows_of) if compiled else _plan_batches(runs, rows_of)


def _plan_groups(runs: tuple[Run, ...], rows_of: dict[int, Indices]) -> RowPlan:
    scatters = (Scatter(s, torch.from_numpy(rows)) for s, rows in rows_of.items() if len(rows) > COMPILED_ROWS)
    few = {s: rows for s, rows in rows_of.items() if len(rows) <= COMPILED_ROWS}
    if not few:
        return RowPlan(runs, tuple(scatters))
    starts = np.cumsum([0, *map(len, few.values())], dtype=np.int64)
    groups = Groups(np.concatenate([*few.values()]), starts, np.array([*few], dtype=np.int64))
    return RowPlan(runs, tuple(scatters), groups=groups)


def _plan_batches(runs: tuple[Run, ...], rows_of: dict[int, Indices]) -> RowPlan:
    scatters = [Scatter(s, torch.from_numpy(rows)) for s, rows in rows_of.items() if len(rows) >= SOLO_ROWS]
    batches = []
    for chain in _chains([s for s, rows in rows_of.items() if len(rows) < SOLO_ROWS]):
        if len(chain) == 1:
            scatters.append(Scatter(chain[0], torch.from_numpy(rows_of[chain[0]])))
        else:
            batches.append(_batch(chain[0], [rows_of[s] for s in chain]))
    return RowPlan(runs, tuple(scatters), tuple(batches))


def _chains(slots: list[int]) -> list[list[int]]:
    """Split ascending slots where a number is missing: factors of neighbours lie side by side and need no copy."""
    chains: list[list[int]] = []
    for slot in slots:
        if chains and chains[-1][-1] == slot - 1:
            chains[-1].append(slot)
        else:
            chains.append([slot])
    return chains


def _batch(first: int, parts: list[Indices]) -> Batch:
    width = max(len(rows) for rows in parts)
    # Filling repeats a row of the same slot; its result is dropped.
    gather = np.concatenate([np.pad(rows, (0, width - len(rows)), mode="edge") for rows in parts])
    kept = np.concatenate([np.arange(len(rows)) + i * width for i, rows in enumerate(parts)])
    return Batch(
        first,
        first + len(parts),
        torch.from_numpy(gather),
        torch.from_numpy(kept) if len(kept) < len(gather) else None,
        torch.from_numpy(np.concatenate(parts)),
    )


def _width(batch: Batch) -> int:
    return batch.stop - batch.first
