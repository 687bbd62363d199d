"""Layers that multiply and have LoRA added in one pass, on processors with AMX or with AVX-512 BF16.

The library that the engine multiplies with packs a layer's weight in an order of its own, and lets nothing be added
before a result is written. So a second copy of the weight is kept, in the order of `vectors`, as long as there is room
for it. Steps without an adapter are multiplied by the library as before, and with AMX those without long runs of one.
"""

import functools
import logging
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from amalgam.engine.cpu import amx_loops, dot_loops
from amalgam.engine.cpu.compiler import Halves, Indices
from amalgam.engine.cpu.factors import FactorArrays
from amalgam.engine.cpu.one_pass import Added, Layer, Multiply
from amalgam.engine.cpu.processor import OnePass
from amalgam.engine.cpu.sources import PlaceholderStack, bits_of
from amalgam.engine.cpu.vectors import COLUMNS

LEAST_ROWS: Final[dict[OnePass, int]] = {"tiles": 128, "vectors": 1}
"""From so many neighbouring rows of an adapter on, one pass is quicker than the library and LoRA after it."""

LONGEST_INPUT: Final[dict[OnePass, int]] = {"tiles": 3072, "vectors": 8192}
"""Layers with more inputs gain little in tiles, as a block of rows leaves the cache; in vectors none was measured."""

_MULTIPLY: Final[dict[OnePass, Multiply]] = {"tiles": amx_loops.multiply, "vectors": dot_loops.multiply}


class FusedLinear:
    """A layer's weight, packed for one pass.

    Args:
        weight: [out, in], bfloat16; both are multiples of 32.
        units: What multiplies it.

    Attributes:
        packed: [out · in], its bits in the order of `vectors`.
    """

    def __init__(self, weight: Tensor, units: OnePass) -> None:
        width, length = weight.shape
        pairs = weight.reshape(width // COLUMNS, COLUMNS, length // 2, 2)
        self.packed: Halves = bits_of(pairs.permute(0, 2, 1, 3).contiguous().view(-1))
        self._no_bias = np.zeros(width, np.float32)
        self._multiply = _MULTIPLY[units]

    @classmethod
    def of(cls, base_layer: Any, units: OnePass) -> Self:
        """The second copy of vLLM's layer, for which `bytes_of` is not zero.

        Its weight is packed away already. It is asked for by a product with the identity, which gives every value as
        it is.
        """
        identity = torch.eye(base_layer.input_size, dtype=torch.bfloat16)
        return cls(base_layer.quant_method.apply(base_layer, identity, None).T, units)

    def __call__(self, x: Tensor, bias: Tensor | None, factors: FactorArrays, spans: Indices, scale: float) -> Tensor:
        """Give x @ weightᵀ + bias + scale · what LoRA adds: [rows, out], bfloat16.

        Args:
            x: [rows, in], bfloat16, contiguous. bias: [out].
            spans: As `one_pass.Multiply` takes them.
        """
        y = x.new_empty(len(x), len(self._no_bias))
        added = self._no_bias if bias is None else bias.detach().float().numpy()
        layer = Layer(bits_of(x), self.packed, added, bits_of(y))
        up: Halves = factors.up.view(np.uint16)
        lora = Added(factors.down.view(np.uint32), up, factors.blocks, factors.scales)
        self._multiply(layer, spans, lora, scale, torch.get_num_threads())
        return y


class WeightCopies:
    """Second copies of weights, made when their layers first multiply: in a server for its probe, before it is ready.

    Args:
        room: Bytes that all of them may take.
        units: What multiplies them; without, there are none.
    """

    def __init__(self, room: int, units: OnePass | None) -> None:
        self._room = room
        self._units = units
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
        if self._units is None or not is_taken or self._room <= 0:
            return None
        size = bytes_of(layer.base_layer, self._units)
        if size > self._room:
            logging.getLogger(__name__).warning(
                "LoRA on CPU: no room for second copies of more weights, so prompts with adapters take longer; "
                "AMALGAM_CPU_COPIES_GIB makes room"
            )
            self._room = 0
            return None
        self._room -= size
        return FusedLinear.of(layer.base_layer, self._units) if size else None


def bytes_of(base_layer: Any, units: OnePass) -> int:
    """What a second copy of vLLM's layer takes; 0 for one that is not multiplied so."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    if type(base_layer.quant_method) is not UnquantizedLinearMethod or base_layer.params_dtype is not torch.bfloat16:
        return 0
    width, length = base_layer.output_size, base_layer.input_size
    if width % COLUMNS or length % COLUMNS or length > LONGEST_INPUT[units]:
        return 0
    return int(width * length * torch.bfloat16.itemsize)


def warm_up(units: OnePass, threads: int) -> None:
    """Compile, or load what was compiled before, ahead of the first request.

    Args:
        threads: As many as torch uses.
    """
    x, y = np.zeros((COLUMNS, COLUMNS), np.uint16), np.zeros((COLUMNS, COLUMNS), np.uint16)
    layer = Layer(x, np.zeros(COLUMNS * COLUMNS, np.uint16), np.zeros(COLUMNS, np.float32), y)
    down, up = np.zeros((1, 1, COLUMNS // 2), np.uint32), np.zeros((1, 1, COLUMNS), np.uint16)
    added = Added(down, up, np.array([[[0, 1, 0, COLUMNS]]], np.int64), np.ones((1, 1), np.float32))
    _MULTIPLY[units](layer, np.array([[0, 0, COLUMNS]], np.int64), added, 1.0, threads)


def fusing(original: Any) -> Any:
    """Stands in for the LoRA layers' `_apply_sync`, which has LoRA added to the layer's output."""

    @functools.wraps(original)
    def apply(layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        output: Tensor | None = layer.punica_wrapper.multiply_fused(layer, x, bias)
        if output is None:
            output = original(layer, x, bias)
        return output

    return apply
