"""Low-rank products over rows that belong to different adapters, in plain torch or compiled.

Every function changes only rows that its plan names.
"""

from typing import Final

import torch
from torch import Tensor

from amalgam.engine.cpu_lora_compiled import add_low_rank, add_low_rank_together
from amalgam.engine.cpu_lora_factors import ModuleFactors, SlotFactors
from amalgam.engine.cpu_lora_plan import Batch, Groups, RowPlan, Scatter

BLOCK_ROWS: Final = 64
"""From this many rows on, slices are multiplied one by one: the zeros of the block matrix then cost more than calls."""

TOGETHER_ROWS: Final = 4
"""From this many rows in compiled loops on, threads share them: for fewer, waking a thread takes as long."""

CHUNK_ROWS: Final = 512
"""Rows at a time where a product needs a buffer as wide as the output, so that it stays in the cache."""


def add_low_rank_(y: Tensor, x: Tensor, factors: ModuleFactors, plan: RowPlan, scale: float = 1.0) -> None:
    """y[r] += scale · x[r] @ A[slot of r]ᵀ @ B[slot of r]ᵀ for every row r of the plan.

    Args:
        y: [rows, ≥ out], changed in place. x: [rows, in].
        factors: Of the module, fresh.
    """
    if plan.groups is not None:
        _add_groups_(y, x, factors, plan.groups, scale)
    y = y[:, : factors.width] if y.shape[1] > factors.width else y
    for run in plan.runs:
        slot = factors.slot(run.slot)
        if slot is not None:
            _add_run_(y[run.start : run.stop], x[run.start : run.stop], slot, scale)
    for scatter in plan.scatters:
        _add_scatter_(y, x, factors, scatter, scale)
    for batch in plan.batches:
        _add_batch_(y, x, factors, batch, scale)


def _add_groups_(y: Tensor, x: Tensor, factors: ModuleFactors, groups: Groups, scale: float) -> None:
    arrays = factors.arrays(groups.slots)
    if arrays is not None and _is_plain(y) and _is_plain(x):
        operands = y.numpy(), x.numpy(), groups.rows, groups.starts, groups.slots, *arrays, scale
        threads = torch.get_num_threads()
        if threads > 1 and len(groups.slots) > 1 and len(groups.rows) >= TOGETHER_ROWS:
            add_low_rank_together(*operands, threads)
        else:
            add_low_rank(*operands)
        return
    # Not seen in the models served so far: a layer whose input or output is a view, or of another type than the model.
    for scatter in groups.scatters():
        _add_scatter_(y[:, : factors.width], x, factors, scatter, scale)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.is_contiguous()


def _add_scatter_(y: Tensor, x: Tensor, factors: ModuleFactors, scatter: Scatter, scale: float) -> None:
    slot = factors.slot(scatter.slot)
    if slot is not None:
        rows = x.index_select(0, scatter.rows).to(slot.down.dtype)
        delta = rows.mm(slot.down).mm(slot.up[:, : y.shape[1]])
        y.index_add_(0, scatter.rows, delta.to(y.dtype), alpha=scale)


def _add_run_(y: Tensor, x: Tensor, slot: SlotFactors, scale: float) -> None:
    if y.dtype == slot.down.dtype and x.dtype == slot.down.dtype:
        hidden = x.mm(slot.down)
        if len(y) < BLOCK_ROWS or len(slot.blocks) == 1:
            y.addmm_(hidden, slot.up[:, : y.shape[1]], alpha=scale)
            return
        for block in slot.blocks:
            y[:, block.columns].addmm_(hidden[:, block.ranks], block.up, alpha=scale)
        return
    for start in range(0, len(y), CHUNK_ROWS):
        target = y[start : start + CHUNK_ROWS]
        hidden = x[start : start + CHUNK_ROWS].to(slot.down.dtype).mm(slot.down)
        if len(y) < BLOCK_ROWS or len(slot.blocks) == 1:
            target.add_(hidden.mm(slot.up[:, : y.shape[1]]), alpha=scale)
            continue
        for block in slot.blocks:
            target[:, block.columns].add_(hidden[:, block.ranks].mm(block.up), alpha=scale)


def _add_batch_(y: Tensor, x: Tensor, factors: ModuleFactors, batch: Batch, scale: float) -> None:
    pair = factors.batch(batch.first, batch.stop)
    if pair is None:
        return
    down, up = pair
    rows = x.index_select(0, batch.gather).to(down.dtype).view(len(down), -1, x.shape[1])
    delta = rows.bmm(down).bmm(up).view(-1, up.shape[2])
    if batch.kept is not None:
        delta = delta.index_select(0, batch.kept)
    y.index_add_(0, batch.rows, delta[:, : y.shape[1]].to(y.dtype), alpha=scale)


def shrink_(y: Tensor, x: Tensor, factors: Tensor, scale: float, rows_by_slot: dict[int, Tensor]) -> None:
    """y[r, :rank] += scale · x[r] @ A[slot of r]ᵀ, multiplied in float32.

    Args:
        y: [rows, ≥ rank]. x: [rows, in]. factors: [slots, 1, rank, in].
    """
    rank = factors.shape[-2]
    for slot, rows in rows_by_slot.items():
        hidden = x[rows].float() @ factors[slot].view(rank, -1).float().T
        y[:, :rank].index_add_(0, rows, hidden.to(y.dtype), alpha=scale)


def expand_(y: Tensor, x: Tensor, factors: Tensor, rows_by_slot: dict[int, Tensor], *, add_inputs: bool = True) -> None:
    """y[r] += x[r] @ B[slot of r]ᵀ over the columns that both have; without add_inputs those columns are replaced.

    Args:
        y: [rows, out]. x: [rows, rank]. factors: [slots, 1, out', rank]; out' and out may differ by padding.
    """
    width = min(y.shape[1], factors.shape[-2])
    for slot, rows in rows_by_slot.items():
        delta = x[rows].float() @ factors[slot].view(-1, factors.shape[-1])[:width].float().T
        if add_inputs:
            delta += y[rows, :width].float()
        y[rows, :width] = delta.to(y.dtype)
