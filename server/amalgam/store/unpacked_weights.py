"""The numbers of a packed weight, a few rows at a time, in float32.

Each is (entry - zero) · scale, where a group of inputs, an output or a block shares zero and scale; entries of four
bits that are floats are looked up. The formulas are those of the formats' own libraries: AutoGPTQ's and AutoAWQ's
layers, compressed-tensors' ``dequantize``, ModelOpt's NVFP4, bitsandbytes' ``dequantize_4bit`` and LLM.int8, and
transformers' MXFP4.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from amalgam.errors.internal import UnpackingFault
from amalgam.store.packings import Packing, PackingKind

_TYPES: Final = {
    "U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
_AWQ_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""The n-th of eight outputs lies at this place of its word."""
_FP4: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""It has E2M1 without its sign, the highest of four bits (Open Compute Project, Microscaling Formats, 5.3.3)."""
_WORD_BITS: Final = 32
_INT8_MOST: Final = 127
_EXPONENT_BIAS: Final = 127

_Parts = Mapping[str, Tensor]
_Rows = Callable[[Packing, _Parts, slice], Tensor]


class UnpackedWeight:
    """A weight [out_features, in_features] whose packed form is in memory; of experts one below the other.

    Args:
        packing: how it is packed.
        raw: bytes of every part, by its own name.

    Raises:
        UnpackingFault: a part of a type that is not known.
    """

    def __init__(self, packing: Packing, raw: Mapping[str, bytes]) -> None:
        self._packing = packing
        self._parts = {name: _tensor(packing, name, raw[name]) for name in packing.parts}

    def rows(self, start: int, count: int) -> Tensor:
        """Float32 [count, in_features], from row ``start`` on; fewer rows at the end.

        Raises:
            UnpackingFault: parts whose shapes do not belong together.
        """
        wanted = slice(start, min(start + count, self._packing.rows))
        try:
            found = _FORMULAS[self._packing.kind](self._packing, self._parts, wanted)
        except (RuntimeError, IndexError, KeyError, ValueError, TypeError) as error:
            raise UnpackingFault(f"the parts of its {self._packing.stored} do not belong together") from error
        if found.shape != (wanted.stop - wanted.start, self._packing.shape[1]):
            raise UnpackingFault(f"the parts of its {self._packing.stored} do not belong together")
        return found


def _tensor(packing: Packing, name: str, raw: bytes) -> Tensor:
    span = packing.parts[name].span
    dtype = _TYPES.get(span.dtype)
    if dtype is None:
        raise UnpackingFault(f"its {packing.stored}.{name} is stored as {span.dtype}")
    if not raw:
        return torch.empty(span.shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).view(span.shape)


def _entries(words: Tensor, bits: int, dim: int) -> Tensor:
    """The unsigned entries of int32 words, in the place of the words in dimension ``dim``; the lowest bits first."""
    places = torch.arange(_WORD_BITS // bits, dtype=torch.int32) * bits
    shifts = places.view([-1 if at == dim + 1 else 1 for at in range(words.ndim + 1)])
    return ((words.unsqueeze(dim + 1) >> shifts) & ((1 << bits) - 1)).flatten(dim, dim + 1)


def _group_of(inputs: int, groups: int, size: int, index: Tensor | None) -> Tensor:
    """The group [inputs] of each input: as stored, or in turns of ``size``, or in equal parts.

    Raises:
        ValueError: there are not as many groups as that makes.
    """
    if index is not None and index.numel() and bool((index >= 0).all()):
        return index.long()
    wide = size if groups > 1 and size else math.ceil(inputs / groups)
    if math.ceil(inputs / wide) != groups or (wide != size and inputs % groups):
        raise ValueError(f"{groups} groups of {inputs}")
    return torch.arange(inputs) // wide


def _gptq(packing: Packing, parts: _Parts, rows: slice) -> Tensor:
    """``qweight`` [in·bits/32, out], ``scales`` [groups, out], ``qzeros`` [groups, out·bits/32]."""
    entries = _entries(parts["qweight"][:, rows], packing.bits, 0)
    scales = parts["scales"][:, rows].float()
    group = _group_of(packing.shape[1], scales.shape[0], packing.group, parts.get("g_idx"))
    if packing.is_symmetric:
        zeros = torch.full((scales.shape[0], 1), 1 << (packing.bits - 1))
    else:
        stored = _entries(parts["qzeros"], packing.bits, 1)[:, rows]
        zeros = (stored + packing.zero_offset) & ((1 << packing.bits) - 1)
    return ((entries - zeros[group]) * scales[group]).T


def _awq(packing: Packing, parts: _Parts, rows: slice) -> Tensor:
    """``qweight`` [in, out/8], ``scales`` [groups, out], ``qzeros`` [groups, out/8]; eight outputs are interleaved."""
    in_word = _WORD_BITS // packing.bits
    first, last = rows.start // in_word, math.ceil(rows.stop / in_word)
    inside = slice(rows.start - first * in_word, rows.stop - first * in_word)

    def outputs(words: Tensor) -> Tensor:
        entries = _entries(words[:, first:last], packing.bits, 1)
        return entries.view(-1, last - first, in_word)[:, :, _AWQ_PLACES].flatten(1)[:, inside]

    scales = parts["scales"][:, rows].float()
    group = _group_of(packing.shape[1], scales.shape[0], packing.group, None)
    return ((outputs(parts["qweight"]) - outputs(parts["qzeros"])[group]) * scales[group]).T


def _integers(packing: Packing, parts: _Parts, rows: slice) -> Tensor:
    """``weight_packed`` [out, words], ``weight_scale`` [out, groups], ``weight_zero_point`` [words, groups]."""
    middle = 1 << (packing.bits - 1)
    entries = _entries(parts["weight_packed"][rows], packing.bits, 1)[:, : packing.shape[1]] - middle
    scales = _by_output(parts["weight_scale"], packing.shape[0])[rows]
    group = _group_of(packing.shape[1], scales.shape[1], packing.group, parts.get("weight_g_idx"))
    if "weight_zero_point" not in parts:
        return entries * scales[:, group]
    zeros = _entries(parts["weight_zero_point"], packing.bits, 0)[rows] - middle
    return (entries - zeros[:, group]) * scales[:, group]


def _scaled(packing: Packing, parts: _Parts, rows: slice) -> Tensor:
    """``weight`` [out, in] of eight bits, and a scale of all, of each output, or of blocks of both."""
    entries = parts["weight"][rows].float()
    if "SCB" in parts:
        return entries * (parts["SCB"][rows].float() / _INT8_MOST).unsqueeze(1)
    if "weight_zero_point" in parts:
        entries = entries - _spread(packing, parts["weight_zero_point"], rows)
    name = "weight_scale" if "weight_scale" in parts else "weight_scale_inv"
    return entries * _spread(packing, parts[name], rows)


def _fp4(packing: Packing, parts: _Parts, rows: slice) -> Tensor:
    """Bytes [out, in/2] with the lower half first, scales by groups of inputs, and perhaps one of the whole weight."""
    packed = parts["weight_packed" if "weight_packed" in parts else "weight"][rows]
    halves = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1).long()
    entries = torch.tensor([*_FP4, *(-value for value in _FP4)])[halves]
    scales = _numbers(parts["weight_scale"])[rows]
    if "weight_global_scale" in parts:
        scales = scales / _numbers(parts["weight_global_scale"])
    elif "weight_scale_2" in parts:
        scales = scales * _numbers(parts["weight_scale_2"])
    return entries * scales[:, _group_of(packing.shape[1], scales.shape[1], 0, None)]


def _experts(packing: Packing, parts: _Parts, rows: slice) -> Tensor:
    """Blocks [experts, out, in/32, 16] of floats of four bits, and scales [experts, out, in/32]."""
    blocks = {"weight": parts["_blocks"].flatten(0, 1).flatten(1), "weight_scale": parts["_scales"].flatten(0, 1)}
    return _fp4(packing, blocks, rows)


def _bitsandbytes(packing: Packing, parts: _Parts, rows: slice) -> Tensor:
    """All entries in one row of bytes with the higher half first, and a largest value for each block of them."""
    state = next(name for name in parts if name.startswith("weight.quant_state."))
    said: dict[str, Any] = json.loads(parts[state].numpy().tobytes())
    first, last = rows.start * packing.shape[1], rows.stop * packing.shape[1]
    packed = parts["weight"].flatten()[first // 2 : math.ceil(last / 2)]
    halves = torch.stack((packed >> 4, packed & 15), dim=1).flatten().long()[first % 2 :][: last - first]
    largest = parts["weight.absmax"]
    if "weight.nested_absmax" in parts:
        nested = parts["weight.nested_absmax"].float()
        block = torch.arange(largest.numel()) // int(said["nested_blocksize"])
        largest = parts["weight.nested_quant_map"].float()[largest.long()] * nested[block] + said["nested_offset"]
    block = torch.arange(first, last) // int(said["blocksize"])
    return (parts["weight.quant_map"].float()[halves] * largest.float()[block]).view(-1, packing.shape[1])


def _spread(packing: Packing, scales: Tensor, rows: slice) -> Tensor:
    """Scales, or zeros, in a grid over the weight, for each entry of ``rows``: broadcast, or [rows, in]."""
    grid = _by_output(scales, packing.shape[0])
    if grid.shape[0] == packing.shape[0]:
        size = packing.group or packing.block[1]
        return grid[rows][:, _group_of(packing.shape[1], grid.shape[1], size, None)]
    down = _group_of(packing.shape[0], grid.shape[0], packing.block[0], None)[rows]
    return grid[down][:, _group_of(packing.shape[1], grid.shape[1], packing.block[1], None)]


def _by_output(scales: Tensor, outputs: int) -> Tensor:
    """Scales as [outputs or blocks of them or 1, groups], from one number, one of each output, or a grid."""
    found = _numbers(scales)
    if found.ndim == 2:
        return found.expand(outputs, 1) if found.shape == (1, 1) else found
    return found.reshape(-1, 1).expand(outputs, 1) if found.numel() == 1 else found.reshape(outputs, 1)


def _numbers(stored: Tensor) -> Tensor:
    """Float32 of what is stored; bytes are exponents of two."""
    return torch.exp2(stored.float() - _EXPONENT_BIAS) if stored.dtype == torch.uint8 else stored.float()


_FORMULAS: Final[Mapping[PackingKind, _Rows]] = {
    "gptq": _gptq,
    "awq": _awq,
    "integers": _integers,
    "scaled": _scaled,
    "fp4": _fp4,
    "experts": _experts,
    "bitsandbytes": _bitsandbytes,
}
