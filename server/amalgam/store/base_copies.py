"""Whether a weight that lies beside an adapter is the base model's own: values are compared, block by block.

PEFT writes the embeddings, and the layer below a factor, whole where it believes them changed. Mostly they are not.
"""

from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from amalgam.domain.adapter import unchanged
from amalgam.errors.adapters import BaseModelUnreadable
from amalgam.store.checkpoint_tensors import StoredTensor, checkpoint_tensors
from amalgam.store.module_names import renaming_of
from amalgam.store.safetensors_header import TensorSpan

_BLOCK_ENTRIES: Final = 1 << 18
_KINDS: Final[dict[str, np.dtype[Any]]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_TIED: Final = tuple(f"{name}.weight" for name in ("embed_tokens", "wte", "embed_in", "tok_embeddings"))
"""An output layer without a weight of its own shares one of these."""
_OUTPUTS: Final = ("lm_head", "output", "embed_out")


class BaseCopies:
    """Compares weights of one adapter folder with those of a base model.

    Args:
        folder: Of the adapter.
        base: Folder of the base model; None where it is not available.
    """

    def __init__(self, folder: Path, base: Path | None) -> None:
        self._folder = folder
        self._base = base

    @cached_property
    def _tensors(self) -> dict[str, StoredTensor]:
        if self._base is None:
            return {}
        try:
            tensors = checkpoint_tensors(self._base) or {}
            rename = renaming_of(self._base) if tensors else unchanged
            return {rename(name): tensor for name, tensor in tensors.items()}
        except BaseModelUnreadable:
            # What cannot be compared is nobody's copy; whoever needs the model itself says what is wrong with it.
            return {}

    def is_copy(self, module: str, span: TensorSpan) -> bool | None:
        """Whether ``span`` holds the weight of ``module``; None where the base model is not available.

        Values of two types are equal where one is the other, rounded.

        Raises:
            OSError: a file cannot be read.
        """
        if not self._tensors:
            return None
        found = self._tensors.get(f"{module}.weight")
        if found is None and module.rpartition(".")[2] in _OUTPUTS:
            found = next((tensor for name, tensor in self._tensors.items() if name.endswith(_TIED)), None)
        if found is None or found.span.shape != span.shape:
            return False
        if span.dtype not in _KINDS or found.span.dtype not in _KINDS:
            return False
        assert self._base is not None
        with (self._folder / span.file).open("rb") as ours, (self._base / found.file).open("rb") as theirs:
            return _equal(ours, span, theirs, found.span)


def _equal(ours: BinaryIO, span: TensorSpan, theirs: BinaryIO, base: TensorSpan) -> bool:
    ours.seek(span.start)
    theirs.seek(base.start)
    left = prod(span.shape)
    while left:
        count = min(left, _BLOCK_ENTRIES)
        x, y = _read(ours, span.dtype, count), _read(theirs, base.dtype, count)
        if not (np.array_equal(x, y) or np.array_equal(x, _rounded(y, span.dtype)) or _same_rounded(x, y, base.dtype)):
            return False
        left -= count
    return True


def _same_rounded(x: NDArray[np.float32], y: NDArray[np.float32], dtype: str) -> bool:
    return np.array_equal(_rounded(x, dtype), y)


def _read(file: BinaryIO, dtype: str, count: int) -> NDArray[np.float32]:
    """The next ``count`` entries in float32; OSError where the file ends before."""
    kind = _KINDS[dtype]
    raw = file.read(count * kind.itemsize)
    if len(raw) != count * kind.itemsize:
        raise OSError("the file ended before its header said it would")
    return widened(np.frombuffer(raw, kind), dtype)


def widened(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Stored entries as float32, which holds every value of BF16, F16 and F32; of F64 the nearest.

    Args:
        values: The bits of bfloat16 as uint16; the others as they are.
        dtype: BF16, F16, F32 or F64.
    """
    if dtype == "BF16":
        wide: NDArray[np.float32] = (values.astype(np.uint32) << 16).view(np.float32)
        return wide
    return values.astype(np.float32)


def _rounded(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Rounded to the type and back, half to even."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if dtype == "F32":
        return values
    bits = values.view(np.uint32).astype(np.uint64)
    short = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return widened(short, "BF16")
