"""Which rows of a step use which adapter slot, sorted once per step for all layers."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from amalgam.engine.cpu.compiler import Indices

TALL_ROWS: Final = 128
"""From this many neighbouring rows of a slot on, units for bfloat16 gain more than calls of torch cost."""

SOLO_ROWS: Final = 16
"""From this many rows on, a slot's rows get products of their own: larger products gain nothing from batching, and one
large group in a batch pads all others to its size."""

FEW_RUNS: Final = 2
"""Up to this many runs of rows, two plain products each are fewer operations than gathering them into one batch."""

GROUP_ROWS: Final = 8
"""So many rows of a slot go through compiled loops in one group. Threads share groups; factors are read once for each.
"""


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
    """Rows of some slots for compiled loops, `GROUP_ROWS` of a slot at a time; the largest groups come first.

    Attributes:
        rows: [n], int64; those of group g from starts[g] to starts[g + 1].
        starts: [groups + 1], int64.
        slots: [groups], int64; a slot with many rows has several groups.
    """

    rows: Indices
    starts: Indices
    slots: Indices

    def scatters(self) -> tuple[Scatter, ...]:
        """The same rows, slot by slot."""
        rows_of: dict[int, list[Indices]] = {}
        for slot, rows in zip(self.slots.tolist(), np.split(self.rows, self.starts[1:-1]), strict=True):
            rows_of.setdefault(slot, []).append(rows)
        return tuple(Scatter(slot, torch.from_numpy(np.concatenate(parts))) for slot, parts in rows_of.items())


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A partition of the rows that have an adapter; rows without one are in no part, so nothing touches them.

    Attributes:
        tall: For units that multiply bfloat16.
        runs, scatters, batches: For plain products.
        groups: For compiled loops.
        spans: [n, 3]: all rows in order, as `one_pass.Multiply` takes them, where some runs are long enough for it.
        beside: Rows that have an adapter and none in the spans, for compiled loops. A layer takes these, or the rest.
    """

    tall: tuple[Run, ...] = ()
    runs: tuple[Run, ...] = ()
    scatters: tuple[Scatter, ...] = ()
    batches: tuple[Batch, ...] = ()
    groups: Groups | None = None
    spans: Indices | None = None
    beside: Groups | None = None

    def __bool__(self) -> bool:
        return bool(self.tall or self.runs or self.scatters or self.batches or self.groups)

    def rows_by_slot(self) -> dict[int, Tensor]:
        """The rows of each slot, ascending; for layers that multiply slot by slot."""
        parts: dict[int, list[Tensor]] = {}
        for run in (*self.tall, *self.runs):
            parts.setdefault(run.slot, []).append(torch.arange(run.start, run.stop))
        for scatter in (*self.scatters, *(self.groups.scatters() if self.groups else ())):
            parts.setdefault(scatter.slot, []).append(scatter.rows)
        for batch in self.batches:
            slots = torch.arange(batch.first, batch.stop).repeat_interleave(len(batch.gather) // _width(batch))
            used = slots if batch.kept is None else slots[batch.kept]
            for slot in range(batch.first, batch.stop):
                parts.setdefault(slot, []).append(batch.rows[used == slot])
        return {slot: torch.cat(rows).sort().values for slot, rows in parts.items()}


def plan_rows(
    slot_of_row: Tensor, *, compiled: bool = False, has_units: bool = False, span_rows: int | None = None
) -> RowPlan:
    """Plan a step.

    Args:
        slot_of_row: [rows], int64; -1 where the row has no adapter.
        compiled: Whether all rows go into `Groups`.
        has_units: Whether `TALL_ROWS` and more do not, where all others do.
        span_rows: So many neighbouring rows of a slot, or more, make a span; without, none do.
    """
    slots = slot_of_row.numpy()
    if not compiled:
        return _plan_products(slots)
    tall = _runs(slots, TALL_ROWS) if has_units else ()
    groups = _groups(_without(slots, tall))
    spans = _spans(slots, span_rows) if span_rows is not None else None
    if spans is None:
        return RowPlan(tall=tall, groups=groups)
    in_spans = np.repeat(spans[:, 0], spans[:, 2] - spans[:, 1]) >= 0
    return RowPlan(tall=tall, groups=groups, spans=spans, beside=_groups(np.where(in_spans, -1, slots)))


def _spans(slots: Indices, least: int) -> Indices | None:
    """All rows in order: runs of so many rows or more of a slot, and with slot -1 what is between them."""
    starts, stops = _edges(slots)
    slot = np.where(stops - starts >= least, slots[starts], -1)
    if not (slot >= 0).any():
        return None
    is_first = np.concatenate(([True], slot[1:] != slot[:-1]))
    begins = starts[is_first]
    return np.stack((slot[is_first], begins, np.append(begins[1:], len(slots))), axis=1)


def _edges(slots: Indices) -> tuple[Indices, Indices]:
    """The first row of each run of one slot or of none, and the row after its last."""
    edges = np.flatnonzero(slots[1:] != slots[:-1]) + 1
    starts = np.concatenate(([0], edges)) if len(slots) else edges
    stops = np.concatenate((edges, [len(slots)])) if len(slots) else edges
    return starts, stops


def _runs(slots: Indices, least: int) -> tuple[Run, ...]:
    """All runs of so many rows or more with an adapter."""
    starts, stops = _edges(slots)
    found = (slots[starts] >= 0) & (stops - starts >= least)
    return tuple(
        Run(int(slots[start]), int(start), int(stop)) for start, stop in zip(starts[found], stops[found], strict=True)
    )


def _without(slots: Indices, runs: tuple[Run, ...]) -> Indices:
    """The same rows, those of the runs without an adapter."""
    if not runs:
        return slots
    loose = slots.copy()
    for run in runs:
        loose[run.start : run.stop] = -1
    return loose


def _groups(slots: Indices) -> Groups | None:
    used = np.unique(slots)
    groups = [
        (int(slot), rows[start : start + GROUP_ROWS])
        for slot in used[used >= 0]
        for rows in (np.flatnonzero(slots == slot),)
        for start in range(0, len(rows), GROUP_ROWS)
    ]
    if not groups:
        return None
    # Threads take groups in turn: with the largest first, none is left with a large one at the end.
    groups.sort(key=lambda group: -len(group[1]))
    starts = np.cumsum([0, *(len(rows) for _, rows in groups)], dtype=np.int64)
    rows = np.concatenate([rows for _, rows in groups])
    return Groups(rows, starts, np.array([slot for slot, _ in groups], dtype=np.int64))


def _plan_products(slots: Indices) -> RowPlan:
    """Runs, scatters and batches, for products in torch."""
    runs = _runs(slots, 1)
    if len(runs) > FEW_RUNS:
        runs = tuple(run for run in runs if run.stop - run.start >= SOLO_ROWS)
    loose = _without(slots, runs)
    rows_of = {int(s): np.flatnonzero(loose == s) for s in np.unique(loose) if s >= 0}
    scatters, batches = _plan_batches(rows_of)
    return RowPlan(runs=runs, scatters=scatters, batches=batches)


def _plan_batches(rows_of: dict[int, Indices]) -> tuple[tuple[Scatter, ...], tuple[Batch, ...]]:
    scatters = [Scatter(s, torch.from_numpy(rows)) for s, rows in rows_of.items() if len(rows) >= SOLO_ROWS]
    batches = []
    for chain in _chains([s for s, rows in rows_of.items() if len(rows) < SOLO_ROWS]):
        if len(chain) == 1:
            scatters.append(Scatter(chain[0], torch.from_numpy(rows_of[chain[0]])))
        else:
            batches.append(_batch(chain[0], [rows_of[s] for s in chain]))
    return tuple(scatters), tuple(batches)


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
