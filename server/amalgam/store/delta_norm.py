"""The size of what two stored factors change together, without a tensor library and without the product itself."""

import math
from pathlib import Path

import numpy as np

from amalgam.store.float_bits import Floats, floats
from amalgam.store.safetensors_header import TensorSpan


def delta_norm(path: Path, down: TensorSpan, up: TensorSpan) -> float:
    """‖B·A‖, the Frobenius norm, in float64: its square is the sum over (BᵀB)∘(AAᵀ), two matrices of the rank's size.

    Args:
        path: The folder of the files that the spans name; or the file itself, where they name none.
        down: Of A, [rank, in]; finite entries.
        up: Of B, [out, rank]; finite entries.

    Raises:
        OSError: the file cannot be read, or ends early.
    """
    a, b = _read(path, down), _read(path, up)
    # Rounding may leave a product of zero slightly negative.
    return math.sqrt(max(float(np.sum((b.T @ b) * (a @ a.T))), 0.0))


def _read(path: Path, span: TensorSpan) -> Floats:
    with (path / span.file).open("rb") as file:
        file.seek(span.start)
        raw = file.read(span.end - span.start)
    if len(raw) != span.end - span.start:
        raise OSError("the file ended before its header said it would")
    return floats(raw, span.dtype).reshape(span.shape)
