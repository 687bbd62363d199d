"""How the quantised weights of a checkpoint are packed: what has to be known of one before its numbers can be read.

Formats as AutoGPTQ and GPTQModel, AutoAWQ, AutoRound, compressed-tensors, ModelOpt and bitsandbytes write them, and
the FP8 of published checkpoints. Torch-free, so that what cannot be unpacked is refused before anything is queued.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from amalgam.errors.internal import UnpackingFault
from amalgam.store.checkpoint_tensors import StoredTensor, quantization_of
from amalgam.store.linear_modules import LinearModule

PackingKind = Literal["gptq", "awq", "integers", "scaled", "fp4", "experts", "bitsandbytes"]

_WORD_BITS: Final = 32
_AWQ_BITS: Final = 4
_SCALES: Final = ("weight_scale", "weight_scale_inv", "SCB")
_OWN: Final = "bias"
"""It is the one tensor of a packed module that is no part of its weight."""


@dataclass(frozen=True, slots=True)
class Packing:
    """The packed weight of one module, or of all experts of a layer.

    Attributes:
        kind: which formula makes numbers of it; see `amalgam.store.unpacked_weights`.
        stored: name of the module, or of the parameter of all experts, in the checkpoint's files.
        shape: (out_features, in_features); of one expert.
        parts: its tensors, by what their names have behind ``stored``.
        bits: of one entry.
        group: so many inputs share a scale; 0: as its scales' shape says.
        block: (outputs, inputs) that share a scale, where scales lie in a grid; 0: as the scales' shape says.
        is_transposed: the model's own weight is [in, out], so that what is unpacked is stored so.
        is_symmetric: its zero is the middle of the range, whatever is stored of it.
        zero_offset: what is added to a stored zero.
        experts: how many matrices lie in it, one behind the other; 0: the one of a module.
    """

    kind: PackingKind
    stored: str
    shape: tuple[int, int]
    parts: Mapping[str, StoredTensor]
    bits: int
    group: int = 0
    block: tuple[int, int] = (0, 0)
    is_transposed: bool = False
    is_symmetric: bool = False
    zero_offset: int = 0
    experts: int = 0

    @property
    def rows(self) -> int:
        """The rows of all its matrices."""
        return self.shape[0] * max(self.experts, 1)

    @property
    def weight(self) -> str:
        """The name of what is unpacked, in a plain checkpoint."""
        return self.stored if self.experts else f"{self.stored}.weight"

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape of what is unpacked, in a plain checkpoint."""
        matrix = self.shape[::-1] if self.is_transposed else self.shape
        return (self.experts, *matrix) if self.experts else matrix

    def name_of(self, part: str) -> str:
        """The name of a part in the checkpoint's files."""
        return f"{self.stored}{part}" if self.experts else f"{self.stored}.{part}"


def _packed_parts(module: LinearModule) -> dict[str, StoredTensor]:
    """The tensors that make the weight of a packed module: all that are stored of it but its bias."""
    return {name: tensor for name, tensor in module.parts.items() if name != _OWN}


def packing_of(config: Mapping[str, Any], module: LinearModule) -> Packing:
    """How ``module``, which is packed, is packed.

    Args:
        config: of the model.
        module: of `linear_modules`.

    Raises:
        UnpackingFault: in a way that is not known here.
    """
    found = _packing(quantization_of(config) or {}, module, _packed_parts(module))
    return replace(found, is_transposed=module.is_transposed)


def _packing(said: Mapping[str, Any], module: LinearModule, parts: Mapping[str, StoredTensor]) -> Packing:
    if "_blocks" in parts:
        return Packing("experts", module.stored, module.shape, parts, 4, experts=parts["_blocks"].span.shape[0])
    if module.expert is not None:
        raise _unknown(module, "the experts of a layer lie packed in one tensor")
    if "qweight" in parts:
        return _words(said, module, parts)
    if "weight_packed" in parts:
        return _compressed(said, module, parts)
    if any(name.startswith("weight.quant_state.bitsandbytes__") for name in parts):
        return Packing("bitsandbytes", module.stored, module.shape, parts, 4)
    if "weight" in parts and parts["weight"].span.dtype == "U8" and "weight_scale" in parts:
        return Packing("fp4", module.stored, module.shape, parts, 4)
    if "weight" in parts and parts["weight"].span.dtype in ("I8", "F8_E4M3", "F8_E5M2"):
        return _scaled(said, module, parts)
    raise _unknown(module, "its format is not known")


def _words(said: Mapping[str, Any], module: LinearModule, parts: Mapping[str, StoredTensor]) -> Packing:
    """GPTQ, [in·bits/32, out], or AWQ, [in, out·bits/32]."""
    rows, columns = parts["qweight"].span.shape
    if "scales" not in parts or parts["qweight"].span.dtype != "I32":
        raise _unknown(module, "its words have no scales beside them, or are not of 32 bits")
    group = _positive(said.get("group_size"))
    is_symmetric = said.get("sym") is True
    if columns != parts["scales"].span.shape[1]:
        if columns * _WORD_BITS != module.shape[0] * _AWQ_BITS or str(said.get("version", "gemm")).lower() != "gemm":
            raise _unknown(module, "AWQ is unpacked from four bits in the layout of its GEMM kernel alone")
        if "qzeros" not in parts:
            raise _unknown(module, "its words have no zero points beside them")
        return Packing("awq", module.stored, module.shape, parts, _AWQ_BITS, group)
    bits = rows * _WORD_BITS // module.shape[1]
    if bits not in (2, 4, 8) or rows * _WORD_BITS != module.shape[1] * bits:
        raise _unknown(module, f"GPTQ is unpacked from 2, 4 and 8 bits, and this has {said.get('bits', bits)}")
    if "qzeros" not in parts and not is_symmetric:
        raise _unknown(module, "its words have no zero points beside them")
    offset = 0 if said.get("checkpoint_format") == "gptq_v2" else 1
    return Packing(
        "gptq", module.stored, module.shape, parts, bits, group, is_symmetric=is_symmetric, zero_offset=offset
    )


def _compressed(said: Mapping[str, Any], module: LinearModule, parts: Mapping[str, StoredTensor]) -> Packing:
    """compressed-tensors: floats of four bits in bytes, or integers of some bits in words."""
    if "weight_scale" not in parts:
        raise _unknown(module, "its weight has no scales beside it")
    packed = parts["weight_packed"].span
    if packed.dtype == "U8":
        return Packing("fp4", module.stored, module.shape, parts, 4)
    fitting = [
        (bits, group)
        for bits, group, _ in _groups(said)
        if 1 <= bits <= 8 and math.ceil(module.shape[1] / (_WORD_BITS // bits)) == packed.shape[1]
    ]
    if packed.dtype != "I32" or len(set(fitting)) != 1:
        raise _unknown(module, "its config does not say of how many bits it is")
    bits, group = fitting[0]
    return Packing("integers", module.stored, module.shape, parts, bits, group)


def _scaled(said: Mapping[str, Any], module: LinearModule, parts: Mapping[str, StoredTensor]) -> Packing:
    """Integers or floats of eight bits, with a scale for all, for each output, or for blocks."""
    if not any(name in parts for name in _SCALES):
        raise _unknown(module, "its weight has no scales beside it")
    blocks = {block for _, _, block in _groups(said) if block != (0, 0)} or {_pair(said.get("weight_block_size"))}
    groups = {group for _, group, _ in _groups(said)}
    group = groups.pop() if len(groups) == 1 else 0
    block = blocks.pop() if len(blocks) == 1 else (0, 0)
    return Packing("scaled", module.stored, module.shape, parts, 8, group, block)


def _groups(said: Mapping[str, Any]) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Bits, inputs in a group and block of each group of layers that compressed-tensors' config tells apart."""
    groups = said.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            yield (
                _positive(weights.get("num_bits")),
                _positive(weights.get("group_size")),
                _pair(weights.get("block_structure")),
            )


def _positive(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2 and all(_positive(size) for size in value):
        return value[0], value[1]
    return 0, 0


def _unknown(module: LinearModule, why: str) -> UnpackingFault:
    return UnpackingFault(f"its {module.stored} cannot be unpacked ({why})")
