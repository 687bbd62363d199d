"""Writes a checkpoint block by block: W + scaling·B·A in float32, cast to what the layout says.

No tensor is ever whole in memory, let alone a shard: what is held is one module's factors and a few blocks.
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
from amalgam.errors.merge_run import MergeCancelled
from amalgam.errors.merging import NonFinite
from amalgam.store.checkpoint_layout import CheckpointLayout, NewTensor
from amalgam.store.checkpoint_tensors import CONFIG, INDEX
from amalgam.store.disk import disk_errors
from amalgam.store.safetensors_header import DTYPE_BITS

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


@dataclass(frozen=True, slots=True)
class _Digests:
    """The digests of one tensor."""

    base: str
    new: str


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
        StoreUnavailable: the disk is full or failing.
    """
    total, done = sum(1 for _ in layout.tensors), 0
    digests: dict[str, _Digests] = {}
    with ExitStack() as stack:
        opened: dict[str, BinaryIO] = {}
        for shard in layout.shards:
            with disk_errors(), (folder / shard.file).open("xb") as out:
                out.write(shard.header)
                for tensor in shard.tensors:
                    name = tensor.base.file
                    if name not in opened:
                        opened[name] = stack.enter_context((layout.base / name).open("rb"))
                    digests[tensor.name] = _write_tensor(tensor, adapter, opened[name], out, is_cancelled)
                    done += 1
                    if on_progress is not None:
                        on_progress(done, total)
    _write_beside(layout, folder)
    spans = {tensor.name: tensor for tensor in layout.tensors}
    return Written(
        weights_digest({n: (t.dtype, t.base.span.shape, digests[n].new) for n, t in spans.items()}),
        weights_digest({n: (t.base.span.dtype, t.base.span.shape, digests[n].base) for n, t in spans.items()}),
        sum(tensor.size_bytes for tensor in spans.values()),
    )


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
    tensor: NewTensor, adapter: Factors, base: BinaryIO, out: BinaryIO, is_cancelled: Callable[[], bool] | None
) -> _Digests:
    """One tensor from the base model's file to the new one."""
    is_same = not tensor.changed_modules and tensor.dtype == tensor.base.span.dtype
    before, after = hashlib.sha256(), hashlib.sha256()
    delta, known = _delta(tensor, adapter, tensor.module), tensor.module
    for row, raw in _blocks(tensor, base):
        if is_cancelled is not None and is_cancelled():
            raise MergeCancelled
        before.update(raw)
        if is_same:
            out.write(raw)
            continue
        if tensor.experts:
            expert, row = divmod(row, tensor.base.span.shape[1])
            if tensor.experts.get(expert) != known:
                known = tensor.experts.get(expert)
                delta = _delta(tensor, adapter, known)
        new = _bytes_of(_computed(tensor, delta, row, raw))
        after.update(new)
        out.write(new)
    return _Digests(before.hexdigest(), before.hexdigest() if is_same else after.hexdigest())


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


def _blocks(tensor: NewTensor, base: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The base's bytes in whole rows, at most `BLOCK_BYTES` as float32 or one row, with the first row of each.

    Where experts are added to, rows are those of their matrices, and a block holds rows of one expert.
    """
    span = tensor.base.span
    rows = span.shape[0] if span.shape else 1
    columns = _columns(tensor)
    matrix = span.shape[1] if tensor.experts else rows
    rows = rows * matrix if tensor.experts else rows
    if rows == 0 or columns == 0:
        return
    row_bits = columns * DTYPE_BITS[span.dtype]
    # Types narrower than a byte are only ever copied, and whole rows of them need not end with a byte.
    step = rows if row_bits % 8 else max(1, BLOCK_BYTES // (4 * columns))
    base.seek(span.start)
    row = 0
    while row < rows:
        count = min(step, matrix - row % matrix)
        wanted = count * row_bits // 8
        raw = base.read(wanted)
        if len(raw) != wanted:
            raise BaseModelUnreadable(f"{tensor.base.file} is shorter than it was")
        yield row, raw
        row += count


def _columns(tensor: NewTensor) -> int:
    """Entries of a row, as `_blocks` has them."""
    return prod(tensor.base.span.shape[2 if tensor.experts else 1 :])


def _computed(tensor: NewTensor, delta: _Delta | None, row: int, raw: bytes) -> Tensor:
    """The block that begins with ``row``, in the new dtype: [rows, columns]."""
    stored = torch.frombuffer(bytearray(raw), dtype=_TORCH[tensor.base.span.dtype]).view(-1, _columns(tensor))
    block = stored.float()
    if delta is not None:
        block = torch.addmm(block, delta.B[row : row + block.shape[0]], delta.A)
    new = block.to(_TORCH[tensor.dtype])
    if not bool(torch.isfinite(new).all()):
        raise NonFinite("The checkpoint", tensor.module or tensor.name)
    return new


def _bytes_of(block: Tensor) -> memoryview:
    return memoryview(block.contiguous().view(-1).view(torch.uint8).numpy().data)
