"""Adapters as llama.cpp keeps them: one GGUF file, ``<weight>.lora_a`` [rank, in] and ``.lora_b`` [out, rank].

The scale of a module is ``adapter.lora.alpha`` over the rank of its own tensors, and 1 where alpha is 0. A file that is
written here has one rank, alpha equal to it, and, beyond what llama.cpp asks for, the numbers of heads, so that it can
be read back without the base model.
"""

import re
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from amalgam.domain.recipe import layer_of
from amalgam.errors.formats import InvalidGguf, UnsupportedTarget
from amalgam.errors.merging import NonFinite, UnsupportedFormat
from amalgam.errors.requests import FieldRefused
from amalgam.store.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from amalgam.store.gguf_names import ARCHITECTURES, MAX_LAYERS, GgufModel, module_names, reordered, restored
from amalgam.store.loaded_tensors import TEXT_MODEL, LoadedTensors, Readable, header_of, matched, padded
from amalgam.store.tensor_files import file_digest

SUFFIX: Final = ".gguf"
_ARCHITECTURE: Final = "general.architecture"
_BASE_NAME: Final = "general.base_model.0.name"
_ALPHA: Final = "adapter.lora.alpha"
_INVOCATION: Final = "adapter.alora.invocation_tokens"
_BLOCK: Final = re.compile(r"blk\.(\d{1,6})\.")
_TYPES: Final = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
_NUMBERS: Final = {dtype: number for number, dtype in _TYPES.items()}


class GgufTensors(LoadedTensors):
    """One GGUF file as a source of factors, and the model that it is for."""

    model: GgufModel


def open_gguf(adapter: str, path: Path, model: GgufModel | None = None) -> GgufTensors:
    """Read an adapter of llama.cpp.

    Args:
        adapter: Its name, for errors.
        path: Of the file.
        model: The base model, where its folder is known; numbers of heads are taken from it that the file lacks.

    Raises:
        InvalidGguf: the file is none.
        UnsupportedFormat: no LoRA, or of an architecture or with a tensor that is not known here.
        FieldRefused: the order of its rows depends on the base model, which nobody named.
        NonFinite: a tensor holds NaN or infinity.
        OSError: the file cannot be read.
    """
    header = read_gguf_header(path)
    known = _model(adapter, header, model)
    layers = [int(block[1]) for name in header.tensors if (block := _BLOCK.match(name))]
    if max(layers, default=0) >= MAX_LAYERS:
        raise UnsupportedFormat(adapter, "GGUF", f"it counts more than {MAX_LAYERS} layers")
    modules = {name: m for m, name in module_names(known.architecture, max(layers, default=0) + 1).items()}
    found: dict[str, dict[str, Tensor]] = {}
    with path.open("rb") as file:
        for name, tensor in header.tensors.items():
            weight, _, factor = name.rpartition(".")
            if factor not in ("lora_a", "lora_b") or weight not in modules or len(tensor.shape) != 2:
                reason = f"the tensor {name[:128]!r} has no place in LoRA of {known.architecture}"
                raise UnsupportedFormat(adapter, "GGUF", reason)
            file.seek(tensor.start)
            values = _values(tensor, file.read(tensor.end - tensor.start))
            if not bool(torch.isfinite(values).all()):
                raise NonFinite(adapter, modules[weight])
            found.setdefault(modules[weight], {})[factor] = values
    pairs = matched(adapter, "GGUF", found, ("lora_a", "lora_b"))
    ordered = {module: (A, _restored(adapter, path, module, B, known)) for module, (A, B) in pairs.items()}
    alpha = header.number(_ALPHA)
    if alpha == 0 and header.fields.get(_ALPHA, 0) != 0:
        raise UnsupportedFormat(adapter, "GGUF", f"{_ALPHA} is no finite number")
    scales = {module: alpha / A.shape[0] if alpha else 1.0 for module, (A, _) in ordered.items()}
    facts = header_of(ordered, scales.__getitem__, header.text(_BASE_NAME) or None, TEXT_MODEL)
    opened = GgufTensors(facts, file_digest(path), ordered)
    opened.model = known
    return opened


def _model(adapter: str, header: GgufHeader, given: GgufModel | None) -> GgufModel:
    kinds = header.text("general.type"), header.text("adapter.type")
    if kinds != ("adapter", "lora") or _INVOCATION in header.arrays:
        raise UnsupportedFormat(adapter, "GGUF", "it is no LoRA adapter of llama.cpp")
    name = header.text(_ARCHITECTURE)
    if name not in ARCHITECTURES:
        raise UnsupportedFormat(adapter, "GGUF", f"the modules of architecture {name[:64]!r} are not known here")
    if given is not None and given.architecture != name:
        raise FieldRefused(
            "base", f"{adapter} is for {name[:64]}, the base model is {given.architecture}. Name another"
        )
    heads, keys = (int(header.number(f"{name}.attention.{field}")) for field in ("head_count", "head_count_kv"))
    if heads and keys:
        return GgufModel(name, heads, keys)
    return given or GgufModel(name)


def _values(tensor: GgufTensor, data: bytes) -> Tensor:
    if tensor.type in _TYPES:
        values = torch.frombuffer(bytearray(data), dtype=_TYPES[tensor.type])
    else:
        import gguf
        import numpy as np

        number = gguf.GGMLQuantizationType(tensor.type)
        values = torch.from_numpy(gguf.quants.dequantize(np.frombuffer(data, np.uint8), number))
    return values.reshape(tensor.shape)


def _restored(adapter: str, path: Path, module: str, B: Tensor, model: GgufModel) -> Tensor:
    heads = model.heads_of(module)
    if heads is None:
        reason = f"the rows of {adapter} are ordered by the model's heads. Name its folder with --base"
        raise FieldRefused("base", reason)
    try:
        return restored(B, heads) if heads else B
    except ValueError:
        raise InvalidGguf(path.name, f"{module} has no rows for {heads} heads") from None


def write_gguf(path: Path, source: Readable, model: GgufModel, dtype: torch.dtype = torch.float32) -> None:
    """Write an adapter as llama.cpp reads it: scales in ``lora_b``, all modules at the largest rank.

    Args:
        path: Replaced where it is there, once all is written.
        source: The adapter.
        model: Its base model.
        dtype: Of the tensors: float32, float16 or bfloat16.

    Raises:
        UnsupportedTarget: llama.cpp has no name for a module, or it has no rows for the model's heads.
        OSError: the file cannot be written.
    """
    import gguf

    header = source.header
    layers = max((layer_of(name) or 0 for name in header.modules), default=0) + 1
    names = module_names(model.architecture, min(layers, MAX_LAYERS))
    unnamed = next((name for name in sorted(header.modules) if name not in names), None)
    if unnamed is not None:
        raise UnsupportedTarget("GGUF", f"llama.cpp's {model.architecture} has no name for {unnamed[:128]}")
    part = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(part, model.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(_ALPHA, float(header.rank))
    if model.heads and model.kv_heads:
        writer.add_head_count(model.heads)
        writer.add_head_count_kv(model.kv_heads)
    if header.base_model:
        writer.add_string(_BASE_NAME, header.base_model.rstrip("/").rpartition("/")[2])
    for name, A, B in padded(source):
        for factor, values in (("lora_a", A), ("lora_b", _reordered(name, B, model))):
            raw = values.to(dtype).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(f"{names[name]}.{factor}", raw, raw_dtype=gguf.GGMLQuantizationType(_NUMBERS[dtype]))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _reordered(module: str, B: Tensor, model: GgufModel) -> Tensor:
    heads = model.heads_of(module)
    try:
        return reordered(B, heads or 0) if heads != 0 else B
    except ValueError:
        raise UnsupportedTarget("GGUF", f"{module[:128]} has no rows for {heads} heads") from None
