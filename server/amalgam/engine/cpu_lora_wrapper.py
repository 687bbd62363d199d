"""Our punica wrapper: what vLLM's LoRA layers call on CPU."""

from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase

from amalgam.engine.cpu_lora_ops import Groups, expand_, group_rows, shrink_


class GroupedPunicaWrapper(PunicaWrapperBase):  # type: ignore[misc]
    """Multiplies each adapter's rows with that adapter's factors; rows without an adapter are not touched.

    Tokens are grouped once per step, in `update_metadata`; every layer of the step uses the same groups.
    """

    def __init__(self, max_num_batched_tokens: int, max_batches: int, device: torch.device | str, **_: Any) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device)
        self._tokens: Groups = ()
        self._samples: Groups = ()

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        """Group the step's tokens, and the rows that are sampled from, by slot."""
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        self._tokens = group_rows(self.token_lora_indices)
        self._samples = group_rows(self.sampler_indices)

    def add_shrink(
        self, y: tuple[Tensor, ...] | Tensor, x: Tensor, lora_a_stacked: tuple[Tensor, ...], scale: float, **_: Any
    ) -> None:
        """y[i] += scale · x @ A_iᵀ, each row with its adapter's A."""
        x = x.view(-1, x.shape[-1])
        for target, factors in zip(y, lora_a_stacked, strict=False):
            shrink_(target.view(-1, target.shape[-1]), x, factors, scale, self._tokens)

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
        y = y.view(-1, y.shape[-1])
        start = offset_start
        for hidden, factors, width in zip(x, lora_b_stacked, output_slices, strict=True):
            expand_(y[:, start : start + width], hidden, factors, self._tokens, add_inputs=add_inputs)
            start += width

    def add_lora_embedding(
        self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **_: Any
    ) -> None:
        """Add x @ Bᵀ to y; x already holds the looked-up rows of A."""
        expand_(y, x, lora_b_stacked, self._tokens, add_inputs=add_inputs)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[Tensor, ...] | None = None,
        add_inputs: bool = True,
        **_: Any,
    ) -> None:
        """y[:, slice i] += scale · x @ A_iᵀ @ B_iᵀ, with float32 between the two."""
        if not self._tokens:
            return
        x = x.view(-1, x.shape[-1])
        if buffer is None:
            rank = lora_b_stacked[0].shape[-1]
            buffer = tuple(x.new_zeros((x.shape[0], rank), dtype=torch.float32) for _ in output_slices)
        self.add_shrink(buffer, x, lora_a_stacked, scale)
        self.add_expand(y, buffer, lora_b_stacked, output_slices, add_inputs=add_inputs)

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        *,
        buffer: Tensor | None = None,
        **_: Any,
    ) -> None:
        """Add scale · x @ Aᵀ @ Bᵀ to y over the rows that are sampled from."""
        if not self._samples:
            return
        x = x.view(-1, x.shape[-1])
        if buffer is None:
            buffer = x.new_zeros((x.shape[0], lora_b_stacked.shape[-1]), dtype=torch.float32)
        shrink_(buffer, x, lora_a_stacked, scale, self._samples)
        expand_(y.view(-1, y.shape[-1]), buffer, lora_b_stacked, self._samples)

    def apply_lora_full_linear(
        self, y: Tensor, x: Tensor, weight_stacked: Tensor, bias_stacked: Tensor, module_enabled: Tensor
    ) -> None:
        """Replace y by x @ Wᵀ + bias for the rows whose adapter brings a whole head of its own."""
        y = y.view(-1, y.shape[-1])
        for slot, rows in self._samples:
            if bool(module_enabled[slot]):
                head = weight_stacked[slot].view(-1, weight_stacked.shape[-1])
                y[rows] = (x[rows].float() @ head.float().T).to(y.dtype) + bias_stacked[slot].to(y.dtype)
