"""Writes a checkpoint block by block: W + scaling·B·A in float32, cast to what the layout says.

No tensor is ever whole in memory, let alone a shard: what is held is one module's factors, a few blocks and, where the
base model is quantised, one packed weight.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import torch
from torch import Tensor

from amalgam.domain.adapter import AdapterHeader
from amalgam.domain.export import weights_digest
from amalgam.errors.adapters import BaseModelUnreadable
from amalgam.errors.exports import BaseNotExportable
from amalgam.errors.internal import UnpackingFault
from amalgam.errors.merge_run import MergeCancelled
from amalgam.errors.merging import NonFinite
from amalgam.store.checkpoint_layout import CheckpointLayout
from amalgam.store.checkpoint_shards import NewTensor
from amalgam.store.checkpoint_tensors import CONFIG, INDEX, StoredTensor
from amalgam.store.disk import disk_errors
from amalgam.store.packings import Packing
from amalgam.store.safetensors_header import DTYPE_BITS
from amalgam.store.unpacked_weights import UnpackedWeight

BLOCK_BYTES: Final = 1 << 20
"""It counts float32; about a dozen of them are in memory at a time."""

_TORCH: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Factors(Protocol):
    """An adapter, opened for reading."""

    @property
    def header(self) -> AdapterHeader:
        """Its modules, ranks and true scales."""

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """``lora_A`` [rank, in_features] and ``lora_B`` [out_features, rank] of a module, in the stored dtype."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a checkpoint's weights are, by content; see `ExportRecord`."""

    weights_digest: str
    base_weights_digest: str
    weight_bytes: int


_Described = tuple[str, tuple[int, ...], str]
"""It has the type, the shape and the SHA-256 of a tensor; see `weights_digest`."""


class _OpenedFiles(dict[str, BinaryIO]):
    """The base model's files by name, each opened when it is first asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        super().__init__()
        self._folder = folder
        self._stack = stack

    def __missing__(self, name: str) -> BinaryIO:
        self[name] = self._stack.enter_context((self._folder / name).open("rb"))
        return self[name]


def write_checkpoint(
    layout: CheckpointLayout,
    adapter: Factors,
    folder: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Written:
    """Write everything but the record into ``folder``, which must be there and empty.

    Args:
        layout: What to write.
        adapter: What is added; has every module that the layout changes.
        folder: Takes the files; nothing is synced.
        on_progress: Told (tensors done, tensors in all).
        is_cancelled: Asked before each block.

    Raises:
        NonFinite: a weight of the result is not finite, in float16 most likely because it is too large.
        MergeCancelled: ``is_cancelled`` said so.
        BaseModelUnreadable: the base model's files changed since they were laid out.
        BaseNotExportable: a packed weight whose parts do not belong together.
        StoreUnavailable: the disk is full or failing.
    """
    total, done = sum(1 for _ in layout.tensors), 0
    before: dict[str, _Described] = {}
    after: dict[str, _Described] = {}
    with ExitStack() as stack:
        opened = _OpenedFiles(layout.base, stack)
        for shard in layout.shards:
            with disk_errors(), (folder / shard.file).open("xb") as out:
                out.write(shard.header)
                for tensor in shard.tensors:
                    read, digest = _write_tensor(tensor, adapter, opened, out, is_cancelled)
                    before |= read
                    after[tensor.name] = (tensor.dtype, tensor.shape, digest)
                    done += 1
                    if on_progress is not None:
                        on_progress(done, total)
    _write_beside(layout, folder)
    return Written(weights_digest(after), weights_digest(before), sum(tensor.size_bytes for tensor in layout.tensors))


def _write_beside(layout: CheckpointLayout, folder: Path) -> None:
    """Config, index, and the base model's other files as they are."""
    with disk_errors():
        _write_json(folder / CONFIG, layout.config)
        if layout.index is not None:
            _write_json(folder / INDEX, layout.index)
        for name in layout.copied:
            shutil.copyfile(layout.base / name, folder / name)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tensor(
    tensor: NewTensor,
    adapter: Factors,
    opened: Mapping[str, BinaryIO],
    out: BinaryIO,
    is_cancelled: Callable[[], bool] | None,
) -> tuple[dict[str, _Described], str]:
    """One tensor from the base model's files to the new one.

    Returns: What was read of the base model, by its tensors' names; the SHA-256 of what was written.
    """
    after, is_copied = hashlib.sha256(), False
    read: dict[str, _Described] = {}
    delta, known = _delta(tensor, adapter, tensor.module), tensor.module
    for row, block in _blocks(tensor, opened, read):
        if is_cancelled is not None and is_cancelled():
            raise MergeCancelled
        if isinstance(block, bytes):
            out.write(block)
            is_copied = True
            continue
        if tensor.experts:
            expert, row = divmod(row, tensor.shape[1])
            if tensor.experts.get(expert) != known:
                known = tensor.experts.get(expert)
                delta = _delta(tensor, adapter, known)
        new = _bytes_of(_computed(tensor, delta, row, block))
        after.update(new)
        out.write(new)
    return read, read[tensor.name][2] if is_copied else after.hexdigest()


def _delta(tensor: NewTensor, adapter: Factors, module: str | None) -> "_Delta | None":
    """What is added to the weight of ``module``, which lies in ``tensor``; None where there is no such module."""
    if module is None:
        return None
    A, B = adapter.factors(module)
    delta = _Delta(A.float(), B.float() * adapter.header.modules[module].scaling)
    return _Delta(delta.B.T, delta.A.T) if tensor.is_transposed else delta


@dataclass(frozen=True, slots=True)
class _Delta:
    """What is added to one weight as it is stored: factors in float32, A [rank, columns], B [rows, rank], scaled."""

    A: Tensor
    B: Tensor


def _blocks(
    tensor: NewTensor, opened: Mapping[str, BinaryIO], read: dict[str, _Described]
) -> Iterator[tuple[int, bytes | Tensor]]:
    """What is read for ``tensor``, in whole rows: float32 [rows, columns], or bytes where they are written as they are.

    A block is at most `BLOCK_BYTES` as float32, or one row, and comes with its first row. Once all are read, ``read``
    has what they were read from.
    """
    if isinstance(tensor.base, Packing):
        yield from _unpacked_blocks(tensor.base, opened, read)
        return
    span, digest = tensor.base.span, hashlib.sha256()
    is_same = not tensor.changed_modules and tensor.dtype == span.dtype
    for row, raw in _raw_blocks(tensor, tensor.base, opened[tensor.base.file]):
        digest.update(raw)
        if is_same:
            yield row, raw
        else:
            stored = torch.frombuffer(bytearray(raw), dtype=_TORCH[span.dtype]).view(-1, _columns(tensor))
            yield row, stored.float()
    read[tensor.name] = (span.dtype, span.shape, digest.hexdigest())


def _unpacked_blocks(
    packing: Packing, opened: Mapping[str, BinaryIO], read: dict[str, _Described]
) -> Iterator[tuple[int, Tensor]]:
    """Float32 of a packed weight, all of whose parts are in memory.

    A block is a matrix where they are stored as [in, out], and where there is one of each expert.
    """
    raw: dict[str, bytes] = {}
    for part, stored in packing.parts.items():
        raw[part] = _read(opened[stored.file], stored.span.start, stored.size_bytes, stored.file)
        digest = hashlib.sha256(raw[part]).hexdigest()
        read[packing.name_of(part)] = (stored.span.dtype, stored.span.shape, digest)
    rows, columns = packing.shape
    step = rows if packing.is_transposed or packing.experts else max(1, BLOCK_BYTES // (4 * columns))
    height = columns if packing.is_transposed else step
    try:
        weight = UnpackedWeight(packing, raw)
        for number, row in enumerate(range(0, packing.rows, step)):
            block = weight.rows(row, step)
            yield number * height, block.T if packing.is_transposed else block
    except UnpackingFault as fault:
        raise BaseNotExportable(str(fault)) from fault


def _raw_blocks(tensor: NewTensor, stored: StoredTensor, base: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The base's bytes in whole rows, with the first row of each.

    Where experts are added to, rows are those of their matrices, and a block holds rows of one expert.
    """
    span = stored.span
    rows = span.shape[0] if span.shape else 1
    columns = _columns(tensor)
    matrix = span.shape[1] if tensor.experts else rows
    rows = rows * matrix if tensor.experts else rows
    if rows == 0 or columns == 0:
        return
    row_bits = columns * DTYPE_BITS[span.dtype]
    # Types narrower than a byte are only ever copied, and whole rows of them need not end with a byte.
    step = rows if row_bits % 8 else max(1, BLOCK_BYTES // (4 * columns))
    row, start = 0, span.start
    while row < rows:
        count = min(step, matrix - row % matrix)
        raw = _read(base, start, count * row_bits // 8, stored.file)
        yield row, raw
        row, start = row + count, start + len(raw)


def _read(base: BinaryIO, start: int, wanted: int, name: str) -> bytes:
    base.seek(start)
    raw = base.read(wanted)
    if len(raw) != wanted:
        raise BaseModelUnreadable(f"{name} is shorter than it was")
    return raw


def _columns(tensor: NewTensor) -> int:
    """Entries of a row, as `_raw_blocks` has them."""
    return prod(tensor.shape[2 if tensor.experts else 1 :])


def _computed(tensor: NewTensor, delta: _Delta | None, row: int, block: Tensor) -> Tensor:
    """The block that begins with ``row``, with what is added, in the new dtype: [rows, columns]."""
    if delta is not None:
        block = torch.addmm(block, delta.B[row : row + block.shape[0]], delta.A)
    new = block.to(_TORCH[tensor.dtype])
    if not bool(torch.isfinite(new).all()):
        raise NonFinite("The checkpoint", tensor.module or tensor.name)
    return new


def _bytes_of(block: Tensor) -> memoryview:
    return memoryview(block.contiguous().view(-1).view(torch.uint8).numpy().data)
