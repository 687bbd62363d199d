"""Stored floats of each type as NumPy's, from their bits."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]


def _bfloat16(raw: bytes | bytearray | memoryview) -> Floats:
    # A bfloat16 is the upper half of a float32.
    bits = np.frombuffer(raw, np.dtype("<u2")).astype(np.uint32) << 16
    return bits.view(np.float32).astype(np.float64)


_READERS: Final[Mapping[str, Callable[[bytes | bytearray | memoryview], Floats]]] = {
    "BF16": _bfloat16,
    "F16": lambda raw: np.frombuffer(raw, np.dtype("<f2")).astype(np.float64),
    "F32": lambda raw: np.frombuffer(raw, np.dtype("<f4")).astype(np.float64),
    "F64": lambda raw: np.frombuffer(raw, np.dtype("<f8")),
}


def floats(raw: bytes | bytearray | memoryview, dtype: str) -> Floats:
    """The entries in ``raw``, [n], float64, in which the square of any number that float32 holds is finite.

    Args:
        dtype: ``BF16``, ``F16``, ``F32`` or ``F64``.

    Raises:
        KeyError: another dtype.
    """
    return _READERS[dtype](raw)


def is_float(dtype: str) -> bool:
    """Whether `floats` reads ``dtype``."""
    return dtype in _READERS
