"""Low-rank products over rows that belong to different adapters: compiled, in bfloat16 units, or in plain torch.

Every function changes only rows that its plan names. `GroupedPunicaWrapper` is what vLLM's LoRA layers call.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase

from amalgam.engine.cpu import copies, fused, loops, tall_loops
from amalgam.engine.cpu.compiler import Rows
from amalgam.engine.cpu.factors import FactorCache, ModuleFactors, Occupancy, SlotFactors, Tile
from amalgam.engine.cpu.fused import WeightCopies
from amalgam.engine.cpu.loops import add_low_rank, add_low_rank_together
from amalgam.engine.cpu.plan import Batch, Groups, RowPlan, Run, Scatter, plan_rows
from amalgam.engine.cpu.processor import multiplies_bfloat16, one_pass_units
from amalgam.engine.cpu.room import room_for_copies
from amalgam.engine.cpu.sources import bits_of
from amalgam.settings import Settings

BLOCK_ROWS: Final = 64
"""From this many rows on, slices are multiplied one by one: the zeros of the block matrix then cost more than calls."""

TOGETHER_ROWS: Final = 4
"""Threads take rows in compiled loops together from this many on: for fewer, waking a thread takes as long."""

FEW_RANKS: Final = 32
"""Up to so many ranks of all slices together, loops multiply A with long runs of rows, as a rule faster than units."""

CHUNK_ROWS: Final = 512
"""So many rows are taken at a time where a product needs a buffer as wide as the output, so that it stays in the cache.
"""


def add_low_rank_(y: Tensor, x: Tensor, factors: ModuleFactors, plan: RowPlan, scale: float = 1.0) -> None:
    """y[r] += scale · x[r] @ A[slot of r]ᵀ @ B[slot of r]ᵀ for every row r of the plan.

    Args:
        y: [rows, ≥ out], changed in place. x: [rows, in].
        factors: Of the module, fresh.
    """
    if plan.groups is not None:
        _add_groups_(y, x, factors, plan.groups, scale)
    y = y[:, : factors.width] if y.shape[1] > factors.width else y
    if plan.tall:
        _add_all_tall_(y, x, factors, plan.tall, scale)
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
    if _are_loops_for(y, x, arrays.down):
        operands = _rows(y), _rows(x), groups.rows, groups.starts, groups.slots, *arrays, scale
        threads = torch.get_num_threads()
        if threads > 1 and len(groups.slots) > 1 and len(groups.rows) >= TOGETHER_ROWS:
            add_low_rank_together(*operands, threads)
        else:
            add_low_rank(*operands)
        return
    # Not seen in the models served so far: a layer whose input or output is a view, or of another type than the model.
    for scatter in groups.scatters():
        _add_scatter_(y[:, : factors.width], x, factors, scatter, scale)


def _are_loops_for(y: Tensor, x: Tensor, factors: Rows) -> bool:
    """Loops of float32 rows take factors of either type, those of bfloat16 rows take bfloat16 alone."""
    is_wide = y.dtype is torch.float32
    is_half = y.dtype is torch.bfloat16 and factors.dtype == np.uint16
    return x.dtype is y.dtype and (is_wide or is_half) and y.is_contiguous() and x.is_contiguous()


def _rows(tensor: Tensor) -> Rows:
    """The memory of a contiguous tensor, as the loops take it."""
    if tensor.dtype is torch.bfloat16:
        return bits_of(tensor)
    wide: Rows = tensor.numpy()
    return wide


def _add_all_tall_(y: Tensor, x: Tensor, factors: ModuleFactors, runs: Sequence[Run], scale: float) -> None:
    """Multiply in units for bfloat16, which sum in float32 and round what they return.

    What lies between A and B goes on as two bfloat16 numbers, itself and what its rounding left: 16 bits of it.
    """
    if not (x.dtype is y.dtype is torch.bfloat16):
        for run in runs:
            slot = factors.slot(run.slot)
            if slot is not None:
                _add_run_(y[run.start : run.stop], x[run.start : run.stop], slot, scale)
        return
    few: list[Run] = []
    for run in runs:
        if x.is_contiguous() and 0 < factors.rank(run.slot) <= FEW_RANKS:
            few.append(run)
        else:
            _add_tiles_(y[run.start : run.stop], x[run.start : run.stop], factors.tiles(run.slot), scale)
    if few:
        _add_few_ranks_(y, x, factors, few, scale)


def _add_few_ranks_(y: Tensor, x: Tensor, factors: ModuleFactors, runs: Sequence[Run], scale: float) -> None:
    """Have A multiplied by loops, all runs together, and B by units."""
    table = np.array([(run.slot, run.start, run.stop) for run in runs], np.int64)
    arrays = factors.arrays(table[:, 0])
    hidden = x.new_empty(len(x), 2 * max(factors.rank(run.slot) for run in runs))
    operands = arrays.down, arrays.blocks, arrays.scales, scale, bits_of(hidden), torch.get_num_threads()
    tall_loops.shrink_runs(bits_of(x), table, *operands)
    for run in runs:
        both = factors.twice(run.slot)
        y[run.start : run.stop].addmm_(hidden[run.start : run.stop, : len(both)], both[:, : y.shape[1]])


def _add_tiles_(y: Tensor, x: Tensor, tiles: Sequence[Tile], scale: float) -> None:
    for tile in tiles:
        columns = y[:, tile.columns]
        hidden = torch.addmm(x.new_empty(()), x, tile.down, beta=0, alpha=tile.scale * scale)
        left = torch.addmm(hidden, x, tile.down, beta=-1, alpha=tile.scale * scale)
        up = tile.up[:, : columns.shape[1]]
        columns.addmm_(torch.cat((hidden, left), 1), torch.cat((up, up)))


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


class GroupedPunicaWrapper(PunicaWrapperBase):  # type: ignore[misc]
    """Multiplies each adapter's rows with that adapter's factors; rows without an adapter are not touched.

    Rows are planned once per step, in `update_metadata`; every layer of the step uses the same plan. In float32 and in
    bfloat16 rows go through compiled loops, long runs of bfloat16 through the processor's units where it has them; in
    other types all rows go through torch.

    Attributes:
        token_plan: of the step's tokens.
        sample_plan: of the rows that are sampled from.
    """

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: torch.device | str, *, lora_config: Any, **_: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device)
        dtype = lora_config.lora_dtype
        compiled, in_halves = dtype in (torch.float32, torch.bfloat16), dtype is torch.bfloat16
        has_units = in_halves and multiplies_bfloat16(Settings().engine.cpu_units)
        if compiled:
            loops.warm_up(torch.get_num_threads(), in_halves=in_halves)
            copies.warm_up(in_halves=in_halves)
        units = one_pass_units(Settings().engine.cpu_units) if has_units else None
        if has_units:
            tall_loops.warm_up(torch.get_num_threads())
        if units is not None:
            fused.warm_up(units, torch.get_num_threads())
        logging.getLogger(__name__).info(
            "LoRA on CPU: products of %s rows %s%s",
            str(dtype).removeprefix("torch."),
            "in torch" if not compiled else "in compiled loops" + ", long runs in bfloat16 units" * has_units,
            ", in one pass with the layer's own" * (units is not None),
        )
        self._copies = WeightCopies(room_for_copies(Settings().engine.cpu_copies_gib), units)
        span_rows = fused.LEAST_ROWS[units] if units is not None else None
        self._plan = partial(plan_rows, compiled=compiled, has_units=has_units, span_rows=span_rows)
        self._factors = FactorCache()
        self._occupied = Occupancy()
        self._slot_ids: list[int | None] = []
        self.token_plan = RowPlan()
        self.sample_plan = RowPlan()

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **_: Any
    ) -> None:
        """Plan the step's tokens, and the rows that are sampled from."""
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        self.is_prefill = mapping.is_prefill
        self._slot_ids = list(lora_index_to_id)
        self.token_plan = self._plan(self.token_lora_indices)
        self.sample_plan = self._plan(self.sampler_indices)
        self.no_lora = not self.token_plan

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """y[:, slice i] += scale · x @ A_iᵀ @ B_iᵀ."""
        if self.token_plan:
            factors = self._factors.get(lora_a_stacked, lora_b_stacked, self._slot_ids)
            add_low_rank_(_flat(y), _flat(x), factors, self.token_plan, scale)

    def multiply_fused(self, layer: Any, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """The output of vLLM's LoRA layer in one pass, where that is quicker; None where nothing is done.

        Quicker it is where the step has long runs of an adapter's rows and the layer has a second copy of its weight.
        """
        copy = self._copies.of(layer)
        spans, rows = self.token_plan.spans, _flat(x)
        if copy is None or spans is None or len(rows) != spans[-1, 2]:
            return None
        if rows.dtype is not torch.bfloat16 or not rows.is_contiguous():
            return None
        factors = self._factors.get(layer.lora_a_stacked, layer.lora_b_stacked, self._slot_ids)
        if factors.empty:
            return None
        y = copy(rows, bias, factors.arrays(spans[:, 0]), spans, 1.0)
        if self.token_plan.beside is not None:
            _add_groups_(y, rows, factors, self.token_plan.beside, 1.0)
        return y.view(*x.shape[:-1], -1)

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **_: Any
    ) -> None:
        """Add scale · x @ Aᵀ @ Bᵀ to y over the rows that logits are computed for."""
        if self.token_plan:
            factors = self._factors.get((lora_a_stacked,), (lora_b_stacked,), self._slot_ids)
            if not factors.empty:
                x = _flat(x)
                add_low_rank_(_flat(y), x, factors, self._logits_plan(x), scale)

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **_: Any
    ) -> None:
        """Add x @ Bᵀ to y; x already holds the looked-up rows of A."""
        if self.token_plan and self._occupied(lora_b_stacked):
            expand_(y, x, lora_b_stacked, self.token_plan.rows_by_slot(), add_inputs=add_inputs)

    def add_shrink(
        self, y: tuple[Tensor, ...] | Tensor, x: Tensor, lora_a_stacked: tuple[Tensor, ...], scale: float, **_: Any
    ) -> None:
        """y[i] += scale · x @ A_iᵀ; layers with sharded factors call the halves apart."""
        rows_by_slot = self.token_plan.rows_by_slot()
        for target, factors in zip(y, lora_a_stacked, strict=False):
            shrink_(_flat(target), _flat(x), factors, scale, rows_by_slot)

    def add_expand(
        self,
        y: Tensor,
        x: tuple[Tensor, ...] | Tensor,
        lora_b_stacked: tuple[Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **_: Any,
    ) -> None:
        """y[:, slice i] += x[i] @ B_iᵀ; with add_inputs false the slices of rows with an adapter are replaced."""
        rows_by_slot = self.token_plan.rows_by_slot()
        start = offset_start
        for hidden, factors, width in zip(x, lora_b_stacked, output_slices, strict=True):
            expand_(_flat(y)[:, start : start + width], hidden, factors, rows_by_slot, add_inputs=add_inputs)
            start += width

    def apply_lora_full_linear(
        self, y: Tensor, x: Tensor, weight_stacked: Tensor, bias_stacked: Tensor, module_enabled: Tensor
    ) -> None:
        """Replace y by x @ Wᵀ + bias for the rows whose adapter brings a whole head of its own."""
        rows_by_slot = {slot: rows for slot, rows in self.sample_plan.rows_by_slot().items() if module_enabled[slot]}
        expand_(y, x, weight_stacked, rows_by_slot, add_inputs=False)
        for slot, rows in rows_by_slot.items():
            y[rows] += bias_stacked[slot].to(y.dtype)

    def _logits_plan(self, x: Tensor) -> RowPlan:
        """The plan of the rows of x: those sampled from, or a prompt's.

        For log-probabilities of a prompt vLLM slices its rows out of the step's hidden states; the slice tells which.
        """
        rows_in_memory = x.untyped_storage().nbytes() // (x.shape[1] * x.element_size())
        if len(x) == len(self.sampler_indices) and len(x) == rows_in_memory:
            return self.sample_plan
        first = x.storage_offset() // x.shape[1]
        return self._plan(self.token_lora_indices[first : first + len(x)])


def _flat(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 2 else tensor.view(-1, tensor.shape[-1])
