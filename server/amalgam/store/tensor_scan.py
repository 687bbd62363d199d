"""Looks through stored tensors for values that must not be there, on their bits, without a tensor library.

A float is not finite exactly when its exponent bits are all ones, and zero exactly when all bits but the sign are zero.
So the largest pattern without the sign decides both: 0 means that the tensor is zero, the exponent's mask or more that
it holds an infinity or a NaN.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeVar

import numpy as np

from amalgam.store.float_bits import floats
from amalgam.store.safetensors_header import TensorSpan

_Key = TypeVar("_Key")

CHUNK_BYTES: Final = 1 << 20
"""So much is read at a time: it fits the second-level cache, where the scan is fastest."""


class _Layout(NamedTuple):
    integer: np.dtype[np.unsignedinteger]
    """It has the entry's width; the format is little endian everywhere."""
    magnitude: int
    """It has every bit but the sign."""
    exponent: int
    """It has the exponent's bits: the least magnitude that is not finite."""


_LAYOUTS: Final[Mapping[str, _Layout]] = {
    "BF16": _Layout(np.dtype("<u2"), 0x7FFF, 0x7F80),
    "F16": _Layout(np.dtype("<u2"), 0x7FFF, 0x7C00),
    "F32": _Layout(np.dtype("<u4"), 0x7FFF_FFFF, 0x7F80_0000),
    # Not its own exponent: what rounds to an infinity of float32 is none of the finite numbers that are read.
    "F64": _Layout(np.dtype("<u8"), 0x7FFF_FFFF_FFFF_FFFF, 0x47EF_FFFF_F000_0000),
}
ROUNDED_DTYPE: Final = "F64"
"""Read as float32, as PEFT reads it into its own parameters."""

SCANNED_DTYPES: Final = frozenset(_LAYOUTS)
"""The values of these types can be judged here, and so an adapter may have them."""


class TensorScan(NamedTuple):
    """What the values of one tensor are like."""

    finite: bool
    """It tells that there is no infinity and no NaN."""
    zero: bool
    """It tells that every entry is +0 or -0; true of an empty tensor."""
    largest: float
    """It is the largest of the entries' magnitudes; infinity where one is not finite."""


def scan_tensors(path: Path, spans: Mapping[_Key, TensorSpan]) -> dict[_Key, TensorScan]:
    """Scan the tensors ``spans`` of the file ``path``; memory stays at one chunk whatever their size.

    The file is read and not mapped: a file that shrinks meanwhile then raises here and cannot kill the process.

    Args:
        spans: From `read_header`, under any keys; dtypes of `SCANNED_DTYPES` only.

    Raises:
        KeyError: another dtype.
        OSError: the file cannot be read, or ends early.
    """
    buffer = bytearray(CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        in_file_order = sorted(spans.items(), key=lambda item: item[1].start)
        return {name: _scan(file, span, buffer) for name, span in in_file_order}


def _scan(file: BinaryIO, span: TensorSpan, buffer: bytearray) -> TensorScan:
    layout = _LAYOUTS[span.dtype]
    file.seek(span.start)
    largest = 0
    left = span.end - span.start
    while left:
        count = min(left, CHUNK_BYTES)
        _read_fully(file, memoryview(buffer)[:count])
        bits = np.frombuffer(buffer, dtype=layout.integer, count=count // layout.integer.itemsize)
        largest = max(largest, int(np.bitwise_and(bits, layout.magnitude).max()))
        left -= count
    finite = largest < layout.exponent
    magnitude = largest.to_bytes(layout.integer.itemsize, "little")
    return TensorScan(
        finite=finite, zero=largest == 0, largest=float(floats(magnitude, span.dtype)[0]) if finite else math.inf
    )


def _read_fully(file: BinaryIO, view: memoryview) -> None:
    """Fill ``view`` from ``file``, which may be raw.

    Raises:
        OSError: the file ends before.
    """
    while view:
        # Raw files may return fewer bytes than asked for.
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise OSError("the file ended before its header said it would")
        view = view[count:]
