"""The linear modules of a checkpoint and their shapes, also where a quantisation has packed their weights.

What a tensor's name and shape do not tell stands beside it: GPTQ and AWQ have scales by group of inputs, compressed
tensors the shape itself, bitsandbytes a state as JSON. Formats as they are written by AutoGPTQ and GPTQModel, AutoAWQ,
compressed-tensors, ModelOpt and bitsandbytes. Torch-free.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from amalgam.errors.adapters import BaseModelUnreadable
from amalgam.store.checkpoint_tensors import StoredTensor
from amalgam.store.module_names import Renaming, renaming

_MAX_STATE_BYTES: Final = 1 << 16
_WORD_BITS: Final = 32
_BLOCK_BYTES: Final = 16
_PLAIN: Final = frozenset({"BF16", "F16", "F32", "F64"})
"""Weights of these types are not quantised."""
_TRANSPOSED: Final[Mapping[str, frozenset[str]]] = {
    "gpt2": frozenset({"c_attn", "c_proj", "c_fc", "q_attn"}),
    "openai-gpt": frozenset({"c_attn", "c_proj", "c_fc"}),
    "imagegpt": frozenset({"c_attn", "c_proj", "c_fc", "q_attn"}),
}
"""By ``model_type``, it names the modules that transformers builds as ``Conv1D``, whose weight is [in, out]."""

_STACK: Final = re.compile(
    r"(?P<block>.+\.experts)\.(?P<parameter>gate_up_proj|up_proj|down_proj)(?:\.weight|(?P<packed>_blocks))?"
    r"|(?P<sparse>.+\.block_sparse_moe)\.(?P<linear>input_linear|output_linear)\.weight"
)
_STACKS: Final = {"input_linear": "gate_up_proj", "output_linear": "down_proj"}
_TURNED: Final = frozenset({"gpt_oss", "aria", "aria_text"})
"""The experts of these families lie as [experts, in, out]; they are named by ``model_type``."""


@dataclass(frozen=True, slots=True)
class LinearModule:
    """One linear module of a checkpoint.

    Attributes:
        stored: its name in the checkpoint's files; of an expert's matrix, that of the parameter of all experts.
        shape: (out_features, in_features).
        is_transposed: its weight is stored as [in, out].
        is_packed: its weight is quantised, into words or bytes; it has no ``.weight`` that could be added to.
        expert: which matrix of ``stored`` it is, a tensor of [experts, ·, ·]; None of a module that has its own.
        parts: all its tensors by their own names, where it is packed; of an expert's matrix those of all experts.
    """

    stored: str
    shape: tuple[int, int]
    is_transposed: bool = False
    is_packed: bool = False
    expert: int | None = None
    parts: Mapping[str, StoredTensor] = field(default_factory=dict, compare=False)

    @property
    def tensor(self) -> str:
        """Name of the tensor that holds the weight."""
        return f"{self.stored}.weight" if self.expert is None else self.stored


def linear_modules(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, LinearModule]:
    """Every linear module of the checkpoint in ``folder``, by the name that transformers gives it today.

    Raises:
        BaseModelUnreadable: a packed weight whose shape is not told, or told in a way that cannot be read.
    """
    rename = renaming(config, tensors)
    transposed = _TRANSPOSED.get(str(config.get("model_type")), frozenset())
    by_module: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, _, part = _split(name)
        by_module[module][part] = tensor
    found: dict[str, LinearModule] = {}
    for module, parts in by_module.items():
        turned = module.rpartition(".")[2] in transposed
        packed = _packed_shape(folder, config, module, parts)
        if packed is not None:
            found[rename(module)] = LinearModule(module, packed, turned, is_packed=True, parts=parts)
        elif "weight" in parts and len(parts["weight"].span.shape) == 2:
            rows, columns = parts["weight"].span.shape
            shape = (columns, rows) if turned else (rows, columns)
            is_packed = parts["weight"].span.dtype not in _PLAIN
            found[rename(module)] = LinearModule(module, shape, turned, is_packed, parts=parts if is_packed else {})
    return found | dict(_fused(config, tensors, rename))


def _fused(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], rename: Renaming
) -> Iterator[tuple[str, LinearModule]]:
    """Each matrix of tensors of [experts, ·, ·], named as the parameter with the expert's number before its end."""
    inner = config.get("text_config")
    kinds = {str(section.get("model_type")) for section in (config, inner if isinstance(inner, dict) else {})}
    turned = bool(kinds & _TURNED)
    for name, tensor in tensors.items():
        found = _STACK.fullmatch(name)
        if found is not None and found["packed"]:
            yield from _packed_stack(name.removesuffix(found["packed"]), tensors, rename, turned)
        if found is None or len(tensor.span.shape) != 3:
            continue
        number, rows, columns = tensor.span.shape
        block = rename(found["block"] or f"{found['sparse']}.experts")
        parameter = found["parameter"] or _STACKS[found["linear"]]
        shape = (columns, rows) if turned else (rows, columns)
        is_packed = tensor.span.dtype not in _PLAIN
        for expert in range(number):
            yield f"{block}.{expert}.{parameter}", LinearModule(name, shape, turned, is_packed, expert)


def _packed_stack(
    stored: str, tensors: Mapping[str, StoredTensor], rename: Renaming, turned: bool
) -> Iterator[tuple[str, LinearModule]]:
    """Each matrix of a parameter of all experts in MXFP4, as gpt-oss has it: blocks of 32 inputs in 16 bytes.

    Blocks are [experts, out, in/32, 16] and scales [experts, out, in/32], whichever way the parameter itself is.
    """
    parts = {part: tensors[stored + part] for part in ("_blocks", "_scales") if stored + part in tensors}
    shape = parts["_blocks"].span.shape
    if len(parts) != 2 or len(shape) != 4 or shape[3] != _BLOCK_BYTES or parts["_scales"].span.shape != shape[:3]:
        return
    block, _, parameter = stored.rpartition(".")
    for expert in range(shape[0]):
        linear = LinearModule(stored, (shape[1], 2 * _BLOCK_BYTES * shape[2]), turned, True, expert, parts)
        yield f"{rename(block)}.{expert}.{parameter}", linear


def plain_modules(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every linear module of a model that is not quantised, by today's names.

    Args:
        config: Of the model.
        shapes: Of its parameters.
    """
    transposed = _TRANSPOSED.get(str(config.get("model_type")), frozenset())
    found = {}
    for name, shape in shapes.items():
        module, _, part = name.rpartition(".")
        if part == "weight" and len(shape) == 2:
            rows, columns = shape
            found[module] = (columns, rows) if module.rpartition(".")[2] in transposed else (rows, columns)
    return found


def _split(name: str) -> tuple[str, str, str]:
    """Module, dot, and the tensor's own name; bitsandbytes' states hang below the weight."""
    module, dot, part = name.rpartition(".weight.")
    return (module, dot, f"weight.{part}") if dot else name.rpartition(".")


def _packed_shape(
    folder: Path, config: Mapping[str, Any], module: str, parts: Mapping[str, StoredTensor]
) -> tuple[int, int] | None:
    """(out, in) of a packed weight; None for any other module."""
    if "qweight" in parts:
        return _words_shape(module, parts)
    if "weight_packed" in parts:
        return _compressed_shape(folder, config, module, parts)
    state = next((part for part in parts if part.startswith("weight.quant_state.bitsandbytes")), None)
    if state is not None:
        return _state_shape(folder, module, parts[state])
    weight = parts["weight"].span if "weight" in parts else None
    if weight is not None and weight.dtype == "U8" and len(weight.shape) == 2 and "weight_scale" in parts:
        return weight.shape[0], 2 * weight.shape[1]  # floats of four bits, two in a byte (ModelOpt, Quark)
    return None


def _words_shape(module: str, parts: Mapping[str, StoredTensor]) -> tuple[int, int]:
    """GPTQ packs inputs, [in·bits/32, out], AWQ outputs, [in, out·bits/32]; the scales of both are [groups, out]."""
    words, scales = parts["qweight"].span.shape, parts["scales"].span.shape if "scales" in parts else ()
    if len(words) != 2 or len(scales) != 2:
        raise _unreadable(module, "its qweight has no scales beside it")
    if words[1] != scales[1]:
        return scales[1], words[0]
    if "g_idx" in parts:
        return scales[1], parts["g_idx"].span.shape[0]
    zeros = parts["qzeros"].span.shape if "qzeros" in parts else ()
    if len(zeros) != 2 or zeros[1] == 0 or words[0] * words[1] % zeros[1]:
        raise _unreadable(module, "its qweight has neither g_idx nor qzeros beside it")
    # As many values go into a word of the zero points, [groups, out·bits/32], as into one of the weight.
    return scales[1], words[0] * words[1] // zeros[1]


def _compressed_shape(
    folder: Path, config: Mapping[str, Any], module: str, parts: Mapping[str, StoredTensor]
) -> tuple[int, int]:
    """compressed-tensors: the shape stands beside the weight, or follows from the number of bits."""
    packed = parts["weight_packed"]
    if "weight_shape" in parts:
        stored = parts["weight_shape"]
        if stored.span.dtype not in ("I64", "I32") or stored.span.shape != (2,):
            raise _unreadable(module, "its weight_shape is not two integers")
        raw = _read(folder, stored)
        width = len(raw) // 2
        rows, columns = (int.from_bytes(raw[at : at + width], "little", signed=True) for at in (0, width))
    elif packed.span.dtype == "U8" and len(packed.span.shape) == 2:
        rows, columns = packed.span.shape[0], 2 * packed.span.shape[1]  # two values of four bits in a byte (NVFP4)
    else:
        raise _unreadable(module, "its weight_packed has no weight_shape beside it")
    if rows != packed.span.shape[0] or not 0 < columns <= packed.span.shape[1] * _WORD_BITS:
        raise _unreadable(module, "its weight_shape does not fit its weight_packed")
    return rows, columns


def _state_shape(folder: Path, module: str, state: StoredTensor) -> tuple[int, int]:
    """bitsandbytes, four bits: the state is a JSON object with the weight's shape."""
    try:
        shape = json.loads(_read(folder, state))["shape"]
        rows, columns = (int(size) for size in shape)
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(module, "its quantisation state does not say the shape") from error
    return rows, columns


def _read(folder: Path, tensor: StoredTensor) -> bytes:
    if tensor.size_bytes > _MAX_STATE_BYTES:
        raise BaseModelUnreadable(f"{tensor.file} describes a quantised weight in {tensor.size_bytes} bytes")
    try:
        with (folder / tensor.file).open("rb") as file:
            file.seek(tensor.span.start)
            return file.read(tensor.size_bytes)
    except OSError as error:
        raise BaseModelUnreadable(f"{tensor.file}: {error.strerror}") from error


def _unreadable(module: str, why: str) -> BaseModelUnreadable:
    return BaseModelUnreadable(f"the shape of {module} cannot be known: {why}")
