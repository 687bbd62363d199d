"""Lays out a new checkpoint over a base model's: every refusal, every file and every byte is known before a tensor is.

Torch-free, so that the serving process can refuse what its worker would.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final

from amalgam.domain.adapter import ModuleHeader
from amalgam.domain.export import RECORD_FILE, ExportDtype
from amalgam.errors.adapters import InvalidAdapter
from amalgam.errors.exports import BaseNotExportable, TiedEmbeddings
from amalgam.errors.findings import Finding
from amalgam.store.checkpoint_tensors import CONFIG, INDEX, SINGLE, StoredTensor, checkpoint_tensors, read_json
from amalgam.store.linear_modules import LinearModule, linear_modules
from amalgam.store.safetensors_header import DTYPE_BITS

FLOATS: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""These types can be computed on; the values are how configs name them."""

_EMBEDDINGS: Final = frozenset({"embed_tokens", "wte", "embed_in", "tok_embeddings"})
_OUTPUTS: Final = frozenset({"lm_head", "output", "embed_out"})
"""They are the two ends of a model, where weights may be shared; they are told by the last part of a module's name."""
_STORED: Final = {name: stored for stored, name in FLOATS.items()}
_KEPT_SUFFIXES: Final = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
_KEPT_NAMES: Final = frozenset({"LICENSE", "NOTICE"})
_OTHERS: Final = frozenset({CONFIG, RECORD_FILE, "adapter_config.json"})
"""They are written anew, or are no part of a checkpoint."""


@dataclass(frozen=True, slots=True)
class NewTensor:
    """One tensor of the new checkpoint."""

    name: str
    base: StoredTensor
    dtype: str
    """It is named as by safetensors."""
    start: int
    """It is the offset of its first byte behind the header of its file."""
    module: str | None
    """Something is added to this linear module; None: the tensor is only copied, or cast."""
    is_transposed: bool = False
    """The weight is stored as [in, out], so that (B·A)ᵀ is added."""
    experts: Mapping[int, str] = field(default_factory=dict)
    """In a tensor of [experts, ·, ·], it has the modules that something is added to, by their place in it."""

    @property
    def changed_modules(self) -> int:
        """How many modules lie in it that something is added to."""
        return len(self.experts) + (self.module is not None)

    @property
    def size_bytes(self) -> int:
        """The bytes of its values."""
        return prod(self.base.span.shape) * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the new checkpoint."""

    file: str
    tensors: tuple[NewTensor, ...]

    @property
    def header(self) -> bytes:
        """Everything before the first tensor."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for tensor in self.tensors:
            offsets = [tensor.start, tensor.start + tensor.size_bytes]
            entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.base.span.shape, "data_offsets": offsets}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # readers map the file, so the data begins at a multiple of eight
        return len(text).to_bytes(8, "little") + text


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
    base: Path, modules: Mapping[str, ModuleHeader], *, dtype: ExportDtype, max_shard_bytes: int
) -> CheckpointLayout:
    """Lay out base + adapter.

    Args:
        base: Folder of the base model.
        modules: What is adapted, by canonical name; an adapter's header.
        dtype: Of the new checkpoint.
        max_shard_bytes: Most bytes of tensors in one file; a larger tensor has a file of its own.

    Raises:
        BaseNotExportable: no safetensors files, or quantised ones.
        BaseModelUnreadable: files that do not belong together.
        TiedEmbeddings: an adapted module shares its weight with the embedding.
        InvalidAdapter: modules that the base model does not have, or of other shapes.
    """
    config = read_json(base / CONFIG)
    tensors = checkpoint_tensors(base)
    if tensors is None:
        raise BaseNotExportable("its folder holds no safetensors files")
    if "quantization_config" in config:
        raise BaseNotExportable("its weights are quantised")
    linear = linear_modules(base, config, tensors)
    _check_targets(config, tensors, linear, modules)
    shards = _cut(tensors, _targets(linear, modules), dtype, max_shard_bytes)
    copied = tuple(sorted(_copied(base)))
    size = sum((base / name).stat().st_size for name in copied)
    size += sum(len(shard.header) + sum(tensor.size_bytes for tensor in shard.tensors) for shard in shards)
    return CheckpointLayout(base, _config_in(config, dtype), shards, copied, size)


@dataclass(slots=True)
class _Target:
    """What is added to one stored tensor; see `NewTensor`."""

    is_transposed: bool
    module: str | None = None
    experts: dict[int, str] = field(default_factory=dict)


def _targets(linear: Mapping[str, LinearModule], modules: Mapping[str, ModuleHeader]) -> dict[str, _Target]:
    """The targets by the tensor's stored name."""
    found: dict[str, _Target] = {}
    for name in modules:
        module = linear[name]
        target = found.setdefault(module.tensor, _Target(module.is_transposed))
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
            raise BaseNotExportable(f"its {name} is quantised")
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


def _cut(
    tensors: Mapping[str, StoredTensor],
    targets: Mapping[str, _Target],
    dtype: ExportDtype,
    max_shard_bytes: int,
) -> tuple[Shard, ...]:
    """The tensors in the base model's order, in files of at most ``max_shard_bytes``.

    Args:
        targets: By the stored name of a weight.
    """
    files: list[list[NewTensor]] = [[]]
    reached = 0
    for name, stored in tensors.items():
        is_float = stored.span.dtype in FLOATS
        kept = stored.span.dtype if dtype == "base" or not is_float else _STORED[dtype]
        size = prod(stored.span.shape) * DTYPE_BITS[kept] // 8
        if files[-1] and reached + size > max_shard_bytes:
            files.append([])
            reached = 0
        target = targets.get(name, _Target(False))
        changed = (target.module, target.is_transposed, target.experts)
        files[-1].append(NewTensor(name, stored, kept, reached, *changed))
        reached += size
    if len(files) == 1:
        return (Shard(SINGLE, tuple(files[0])),)
    count = len(files)
    names = (f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1))
    return tuple(Shard(file, tuple(inside)) for file, inside in zip(names, files, strict=True))


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
