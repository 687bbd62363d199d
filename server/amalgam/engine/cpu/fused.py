"""Layers that multiply and have LoRA added in one pass, where the processor multiplies in tiles (AMX).

The library that the engine multiplies with packs a layer's weight in an order of its own, and lets nothing be added
before a result is written. So a second copy of the weight is kept, in the order of `amx`, as long as there is room for
it. Steps without long runs of one adapter's rows are multiplied by the library as before.
"""

import functools
import logging
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from amalgam.engine.cpu import amx, amx_loops
from amalgam.engine.cpu.compiler import Halves, Indices
from amalgam.engine.cpu.factors import FactorArrays
from amalgam.engine.cpu.sources import PlaceholderStack, bits_of

LONGEST_INPUT: Final = 3072
"""Layers with more inputs gain little: a row's own products take longer then, and a block of rows leaves the cache."""


class FusedLinear:
    """A layer's weight, packed for `amx_loops.multiply`.

    Args:
        weight: [out, in], bfloat16; both are multiples of 32.

    Attributes:
        packed: [out · in], its bits in the order of `amx`.
    """

    def __init__(self, weight: Tensor) -> None:
        width, length = weight.shape
        pairs = weight.reshape(width // amx.SQUARE, amx.SQUARE, length // 2, 2)
        self.packed: Halves = bits_of(pairs.permute(0, 2, 1, 3).contiguous().view(-1))
        self._no_bias = np.zeros(width, np.float32)
        self._configuration = amx.settings()

    @classmethod
    def of(cls, base_layer: Any) -> Self:
        """The second copy of vLLM's layer, for which `bytes_of` is not zero.

        Its weight is packed away already. It is asked for by a product with the identity, which gives every value as
        it is.
        """
        identity = torch.eye(base_layer.input_size, dtype=torch.bfloat16)
        return cls(base_layer.quant_method.apply(base_layer, identity, None).T)

    def __call__(self, x: Tensor, bias: Tensor | None, factors: FactorArrays, spans: Indices, scale: float) -> Tensor:
        """Give x @ weightᵀ + bias + scale · what LoRA adds: [rows, out], bfloat16.

        Args:
            x: [rows, in], bfloat16, contiguous. bias: [out].
            spans: As `amx_loops.multiply` takes them.
        """
        y = x.new_empty(len(x), len(self._no_bias))
        added = self._no_bias if bias is None else bias.detach().float().numpy()
        layer = amx_loops.Layer(bits_of(x), self.packed, added, bits_of(y))
        up: Halves = factors.up.view(np.uint16)
        lora = amx_loops.Added(factors.down.view(np.uint32), up, factors.blocks, factors.scales)
        amx_loops.multiply(layer, spans, lora, scale, self._configuration, torch.get_num_threads())
        return y


class WeightCopies:
    """Second copies of weights, made when their layers first multiply: in a server for its probe, before it is ready.

    Args:
        room: Bytes that all of them may take; 0 where there are no tiles.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        # Layers are kept with their copies, so that no other object can take their identity.
        self._known: dict[int, tuple[Any, FusedLinear | None]] = {}

    def of(self, layer: Any) -> FusedLinear | None:
        """The copy of a LoRA layer's base layer; None where it has none."""
        known = self._known.get(id(layer))
        if known is None:
            known = layer, self._made(layer)
            self._known[id(layer)] = known
        return known[1]

    def _made(self, layer: Any) -> FusedLinear | None:
        is_taken = isinstance(getattr(layer, "lora_a_stacked", None), PlaceholderStack)
        size = bytes_of(layer.base_layer) if is_taken and self._room > 0 else 0
        if size > self._room:
            logging.getLogger(__name__).warning(
                "LoRA on CPU: no room for second copies of more weights, so prompts with adapters take longer; "
                "AMALGAM_CPU_COPIES_GIB makes room"
            )
            self._room = 0
            return None
        self._room -= size
        return FusedLinear.of(layer.base_layer) if size else None


def bytes_of(base_layer: Any) -> int:
    """What a second copy of vLLM's layer takes; 0 for one that is not multiplied so."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    if type(base_layer.quant_method) is not UnquantizedLinearMethod or base_layer.params_dtype is not torch.bfloat16:
        return 0
    width, length = base_layer.output_size, base_layer.input_size
    if width % amx.SQUARE or length % amx.SQUARE or length > LONGEST_INPUT:
        return 0
    return int(width * length * torch.bfloat16.itemsize)


def fusing(original: Any) -> Any:
    """Stands in for the LoRA layers' `_apply_sync`, which has LoRA added to the layer's output."""

    @functools.wraps(original)
    def apply(layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        output: Tensor | None = layer.punica_wrapper.multiply_fused(layer, x, bias)
        if output is None:
            output = original(layer, x, bias)
        return output

    return apply
