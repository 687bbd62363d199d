"""The tensors of a new checkpoint over a base model's, cut into files. Torch-free."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Final, NamedTuple

from amalgam.store.checkpoint_tensors import SINGLE, StoredTensor
from amalgam.store.packings import Packing
from amalgam.store.safetensors_header import DTYPE_BITS

FLOATS: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""These types can be computed on; the values are how configs name them."""
STORED: Final = {name: stored for stored, name in FLOATS.items()}
"""It is the other way round."""


@dataclass(frozen=True, slots=True)
class NewTensor:
    """One tensor of the new checkpoint."""

    name: str
    base: StoredTensor | Packing
    """It is what is read for it: one tensor of the base model, or the packed parts of a weight."""
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
    def shape(self) -> tuple[int, ...]:
        """The shape as it is stored."""
        return self.base.whole_shape if isinstance(self.base, Packing) else self.base.span.shape

    @property
    def size_bytes(self) -> int:
        """The bytes of its values."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


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
            entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # readers map the file, so the data begins at a multiple of eight
        return len(text).to_bytes(8, "little") + text


@dataclass(slots=True)
class Target:
    """What is added to one stored tensor; see `NewTensor`."""

    is_transposed: bool
    module: str | None = None
    experts: dict[int, str] = field(default_factory=dict)


class StoredTypes(NamedTuple):
    """What the new checkpoint stores numbers as, as safetensors names it."""

    floats: str | None
    """It is that of the base model's floats; None: each as it is."""
    unpacked: str
    """It is that of weights that were quantised."""


def cut(
    tensors: Mapping[str, StoredTensor],
    packings: Sequence[Packing],
    targets: Mapping[str, Target],
    types: StoredTypes,
    max_shard_bytes: int,
) -> tuple[Shard, ...]:
    """The new checkpoint's tensors in the base model's order, in files of at most ``max_shard_bytes``.

    Args:
        tensors: Of the base model.
        packings: Weights that are to be unpacked, each in the place of its first part.
        targets: By the stored name of a weight.
        types: Of the result.
        max_shard_bytes: A larger tensor has a file of its own.
    """
    files: list[list[NewTensor]] = [[]]
    reached = 0
    for tensor in _new_tensors(tensors, packings, targets, types):
        if files[-1] and reached + tensor.size_bytes > max_shard_bytes:
            files.append([])
            reached = 0
        files[-1].append(replace(tensor, start=reached))
        reached += tensor.size_bytes
    if len(files) == 1:
        return (Shard(SINGLE, tuple(files[0])),)
    count = len(files)
    names = (f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1))
    return tuple(Shard(file, tuple(inside)) for file, inside in zip(names, files, strict=True))


def _new_tensors(
    tensors: Mapping[str, StoredTensor],
    packings: Sequence[Packing],
    targets: Mapping[str, Target],
    types: StoredTypes,
) -> Iterator[NewTensor]:
    by_part = {packing.name_of(part): packing for packing in packings for part in packing.parts}
    done: set[str] = set()
    for name, stored in tensors.items():
        packing = by_part.get(name)
        weight = name if packing is None else packing.weight
        if weight in done:
            continue
        done.add(weight)
        target = targets.get(weight, Target(packing is not None and packing.is_transposed))
        is_float = stored.span.dtype in FLOATS
        kept = stored.span.dtype if types.floats is None or not is_float else types.floats
        yield NewTensor(
            weight, packing or stored, kept if packing is None else types.unpacked, 0,
            target.module, target.is_transposed, target.experts,
        )  # fmt: skip
