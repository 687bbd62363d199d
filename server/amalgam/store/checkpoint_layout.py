"""Lays out a new checkpoint over a base model's: every refusal, every file and every byte is known before a tensor is.

Torch-free, so that the serving process can refuse what its worker would.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from amalgam.domain.adapter import ModuleHeader
from amalgam.domain.export import RECORD_FILE, ExportDtype
from amalgam.errors.adapters import InvalidAdapter
from amalgam.errors.exports import UNPACK, BaseNotExportable, TiedEmbeddings
from amalgam.errors.findings import Finding
from amalgam.errors.internal import UnpackingFault
from amalgam.store.checkpoint_shards import FLOATS, STORED, NewTensor, Shard, StoredTypes, Target, cut
from amalgam.store.checkpoint_tensors import (
    CONFIG,
    INDEX,
    QUANTIZATION,
    StoredTensor,
    checkpoint_tensors,
    quantization_of,
    read_json,
)
from amalgam.store.linear_modules import LinearModule, linear_modules
from amalgam.store.packings import Packing, packing_of
from amalgam.store.safetensors_header import DTYPE_BITS

_EMBEDDINGS: Final = frozenset({"embed_tokens", "wte", "embed_in", "tok_embeddings"})
_OUTPUTS: Final = frozenset({"lm_head", "output", "embed_out"})
"""They are the two ends of a model, where weights may be shared; they are told by the last part of a module's name."""
_KEPT_SUFFIXES: Final = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_KEPT_NAMES: Final = frozenset({"LICENSE", "NOTICE"})
_OTHERS: Final = frozenset({CONFIG, RECORD_FILE, "adapter_config.json"})
"""They are written anew, or are no part of a checkpoint."""
_OF_PACKED: Final = frozenset({"quantize_config.json", "quant_config.json", "hf_quant_config.json"})
"""They say how weights are packed, beside the config: AutoGPTQ's, AutoAWQ's and ModelOpt's."""


_PACKED_TYPES: Final = DTYPE_BITS.keys() - FLOATS.keys() - {"BOOL", "I64", "U64", "F64", "C64", "I16", "U16"}
"""Tensors of these types hold quantised numbers, in a checkpoint that has such."""


@dataclass(frozen=True, slots=True)
class CheckpointLayout:
    """A whole checkpoint, before it is written."""

    base: Path
    config: Mapping[str, Any]
    """It is that of the new checkpoint."""
    shards: tuple[Shard, ...]
    copied: tuple[str, ...]
    """It names the base model's files that come along as they are: tokenizer, generation config, licence."""
    size_bytes: int
    """It is the size of all files but the record."""

    @property
    def tensors(self) -> Iterator[NewTensor]:
        """All of them, in the order in which they are written."""
        return (tensor for shard in self.shards for tensor in shard.tensors)

    @property
    def index(self) -> dict[str, Any] | None:
        """Which tensor is in which file; None where there is one file."""
        if len(self.shards) == 1:
            return None
        weight_map = {tensor.name: shard.file for shard in self.shards for tensor in shard.tensors}
        total = sum(tensor.size_bytes for tensor in self.tensors)
        return {"metadata": {"total_size": total}, "weight_map": weight_map}


def lay_out(
    base: Path,
    modules: Mapping[str, ModuleHeader],
    *,
    dtype: ExportDtype,
    max_shard_bytes: int,
    dequantize: bool = False,
) -> CheckpointLayout:
    """Lay out base + adapter.

    Args:
        base: Folder of the base model.
        modules: What is adapted, by canonical name; an adapter's header.
        dtype: Of the new checkpoint.
        max_shard_bytes: Most bytes of tensors in one file; a larger tensor has a file of its own.
        dequantize: Write every quantised weight as floats. Without it those stay as they are.

    Raises:
        BaseNotExportable: no safetensors files, or quantised ones that are adapted, would be cast, or cannot be read.
        BaseModelUnreadable: files that do not belong together.
        TiedEmbeddings: an adapted module shares its weight with the embedding.
        InvalidAdapter: modules that the base model does not have, or of other shapes.
    """
    config = read_json(base / CONFIG)
    tensors = checkpoint_tensors(base)
    if tensors is None:
        raise BaseNotExportable("its folder holds no safetensors files")
    linear = linear_modules(base, config, tensors)
    if not dequantize and dtype != "base" and (quantization_of(config) is not None or _packed(linear)):
        raise BaseNotExportable(f"its weights are quantised, and cannot be cast to {dtype} as they are", UNPACK)
    _check_targets(config, tensors, linear, modules, dequantize)
    packings = _packings(config, tensors, linear) if dequantize else []
    shards = cut(tensors, packings, _targets(linear, modules), _types(config, dtype), max_shard_bytes)
    copied = tuple(name for name in sorted(_copied(base)) if not dequantize or name not in _OF_PACKED)
    size = sum((base / name).stat().st_size for name in copied)
    size += sum(len(shard.header) + sum(tensor.size_bytes for tensor in shard.tensors) for shard in shards)
    told = _config_in(_plain_config(config) if dequantize else config, dtype)
    return CheckpointLayout(base, told, shards, copied, size)


def _packed(linear: Mapping[str, LinearModule]) -> list[str]:
    return [name for name, module in linear.items() if module.is_packed]


def _packings(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], linear: Mapping[str, LinearModule]
) -> list[Packing]:
    """How every packed weight is packed; a checkpoint that says no more that it is quantised has none left."""
    try:
        found = list({linear[name].stored: packing_of(config, linear[name]) for name in _packed(linear)}.values())
    except UnpackingFault as fault:
        raise BaseNotExportable(str(fault)) from fault
    known = {packing.name_of(part) for packing in found for part in packing.parts}
    for name, tensor in tensors.items():
        if name not in known and tensor.span.dtype in _PACKED_TYPES and quantization_of(config) is not None:
            raise BaseNotExportable(f"its {name} cannot be unpacked (it is part of no weight that is known)")
    return found


def _targets(linear: Mapping[str, LinearModule], modules: Mapping[str, ModuleHeader]) -> dict[str, Target]:
    """The targets by the tensor's stored name."""
    found: dict[str, Target] = {}
    for name in modules:
        module = linear[name]
        target = found.setdefault(module.tensor, Target(module.is_transposed))
        if module.expert is None:
            target.module = name
        else:
            target.experts[module.expert] = name
    return found


def _check_targets(
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    linear: Mapping[str, LinearModule],
    modules: Mapping[str, ModuleHeader],
    dequantize: bool,
) -> None:
    findings = []
    for name, module in modules.items():
        if _last(name) in _EMBEDDINGS | _OUTPUTS and _is_tied(config, tensors):
            raise TiedEmbeddings(name)
        found = linear.get(name)
        if found is None:
            message = f"The base model has no linear module {name!r}."
            findings.append(Finding(code="unknown_modules", message=message, module=name))
        elif found.shape != (module.out_features, module.in_features):
            delta = [module.out_features, module.in_features]
            message = f"{name!r} has a delta of {delta}, but the base model's weight is {list(found.shape)}."
            findings.append(Finding(code="shape_mismatch", message=message, module=name))
        elif found.is_packed:
            if not dequantize:
                raise BaseNotExportable(f"its {name} is quantised", UNPACK)
        elif (dtype := tensors[found.tensor].span.dtype) not in FLOATS:
            raise BaseNotExportable(f"its {name} is stored as {dtype}")
    if findings:
        raise InvalidAdapter(findings)


def _last(module: str) -> str:
    return module.removesuffix(".weight").rpartition(".")[2]


def _is_tied(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    inner = config.get("text_config")
    for section in (config, inner if isinstance(inner, dict) else {}):
        if isinstance(section.get("tie_word_embeddings"), bool):
            return bool(section["tie_word_embeddings"])
    # A config that says nothing leaves it to the architecture; a checkpoint without an output layer shares one.
    return not any(_last(name) in _OUTPUTS for name in tensors)


def _types(config: Mapping[str, Any], dtype: ExportDtype) -> StoredTypes:
    """What floats, and unpacked weights, are stored as; these where nothing is asked for as the config says."""
    if dtype != "base":
        return StoredTypes(STORED[dtype], STORED[dtype])
    inner = config.get("text_config")
    sections = (config, inner if isinstance(inner, dict) else {})
    said = (section.get(key) for section in sections for key in ("dtype", "torch_dtype"))
    return StoredTypes(None, next((STORED[name] for name in said if name in STORED), "BF16"))


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model whose weights are not quantised."""
    kept = {key: value for key, value in config.items() if key not in QUANTIZATION}
    inner = kept.get("text_config")
    return kept | {"text_config": _plain_config(inner)} if isinstance(inner, dict) else kept


def _config_in(config: Mapping[str, Any], dtype: ExportDtype) -> dict[str, Any]:
    """The base model's config, saying the new type wherever it says one."""
    if dtype == "base":
        return dict(config)
    told = {key: dtype for key in ("dtype", "torch_dtype") if key in config} or {"dtype": dtype}
    inner = {
        key: _config_in(value, dtype) if "dtype" in value or "torch_dtype" in value else value
        for key, value in config.items()
        if key.endswith("_config") and isinstance(value, dict)
    }
    return {**config, **inner, **told}


def _copied(base: Path) -> Iterator[str]:
    """Files of the tokenizer, the generation config and the licence; never weights, pickles or code."""
    for path in base.iterdir():
        is_kept = path.suffix in _KEPT_SUFFIXES or path.stem in _KEPT_NAMES
        is_index = path.name == INDEX or path.name.endswith(".index.json")
        if is_kept and not is_index and path.name not in _OTHERS and path.is_file():
            yield path.name
