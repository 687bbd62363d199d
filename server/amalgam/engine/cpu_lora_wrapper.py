"""Our punica wrapper: what vLLM's LoRA layers call on CPU."""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase

from amalgam.engine.cpu_lora_cache import FactorCache, Occupancy, ProductDtype
from amalgam.engine.cpu_lora_compiled import warm_up
from amalgam.engine.cpu_lora_ops import add_low_rank_, expand_, shrink_
from amalgam.engine.cpu_lora_plan import RowPlan, plan_rows


class GroupedPunicaWrapper(PunicaWrapperBase):  # type: ignore[misc]
    """Multiplies each adapter's rows with that adapter's factors; rows without an adapter are not touched.

    Rows are planned once per step, in `update_metadata`; every layer of the step uses the same plan. In float32 rows go
    through compiled loops, in other types through torch.
    """

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: torch.device | str, *, lora_config: Any, **_: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device)
        dtype_of = ProductDtype.of_this_cpu()
        compiled = lora_config.lora_dtype == torch.float32
        if compiled:
            warm_up(torch.get_num_threads())
        logging.getLogger(__name__).info(
            "LoRA on CPU: grouped products %s; bfloat16 factors multiplied in %s",
            "in compiled loops" if compiled else "in torch",
            dtype_of(torch.bfloat16),
        )
        self._plan = partial(plan_rows, compiled=compiled)
        self._factors = FactorCache(dtype_of)
        self._occupied = Occupancy()
        self._slot_ids: list[int | None] = []
        self._tokens = RowPlan()
        self._samples = RowPlan()

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **_: Any
    ) -> None:
        """Plan the step's tokens, and the rows that are sampled from."""
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        self.is_prefill = mapping.is_prefill
        self._slot_ids = list(lora_index_to_id)
        self._tokens = self._plan(self.token_lora_indices)
        self._samples = self._plan(self.sampler_indices)
        self.no_lora = not self._tokens

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
        if self._tokens:
            factors = self._factors.get(lora_a_stacked, lora_b_stacked, self._slot_ids)
            add_low_rank_(_flat(y), _flat(x), factors, self._tokens, scale)

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **_: Any
    ) -> None:
        """Add scale · x @ Aᵀ @ Bᵀ to y over the rows that logits are computed for."""
        if self._tokens:
            factors = self._factors.get((lora_a_stacked,), (lora_b_stacked,), self._slot_ids)
            if not factors.empty:
                x = _flat(x)
                add_low_rank_(_flat(y), x, factors, self._logits_plan(x), scale)

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **_: Any
    ) -> None:
        """Add x @ Bᵀ to y; x already holds the looked-up rows of A."""
        if self._tokens and self._occupied(lora_b_stacked):
            expand_(y, x, lora_b_stacked, self._tokens.rows_by_slot(), add_inputs=add_inputs)

    def add_shrink(
        self, y: tuple[Tensor, ...] | Tensor, x: Tensor, lora_a_stacked: tuple[Tensor, ...], scale: float, **_: Any
    ) -> None:
        """y[i] += scale · x @ A_iᵀ; layers with sharded factors call the halves apart."""
        rows_by_slot = self._tokens.rows_by_slot()
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
        rows_by_slot = self._tokens.rows_by_slot()
        start = offset_start
        for hidden, factors, width in zip(x, lora_b_stacked, output_slices, strict=True):
            expand_(_flat(y)[:, start : start + width], hidden, factors, rows_by_slot, add_inputs=add_inputs)
            start += width

    def apply_lora_full_linear(
        self, y: Tensor, x: Tensor, weight_stacked: Tensor, bias_stacked: Tensor, module_enabled: Tensor
    ) -> None:
        """Replace y by x @ Wᵀ + bias for the rows whose adapter brings a whole head of its own."""
        rows_by_slot = {slot: rows for slot, rows in self._samples.rows_by_slot().items() if module_enabled[slot]}
        expand_(y, x, weight_stacked, rows_by_slot, add_inputs=False)
        for slot, rows in rows_by_slot.items():
            y[rows] += bias_stacked[slot].to(y.dtype)

    def _logits_plan(self, x: Tensor) -> RowPlan:
        """The plan of the rows of x: those sampled from, or a prompt's.

        For log-probabilities of a prompt vLLM slices its rows out of the step's hidden states; the slice tells which.
        """
        rows_in_memory = x.untyped_storage().nbytes() // (x.shape[1] * x.element_size())
        if len(x) == len(self.sampler_indices) and len(x) == rows_in_memory:
            return self._samples
        first = x.storage_offset() // x.shape[1]
        return self._plan(self.token_lora_indices[first : first + len(x)])


def _flat(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 2 else tensor.view(-1, tensor.shape[-1])
