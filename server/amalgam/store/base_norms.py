"""How large the entries of a base model's weights are, from samples: a bound needs the order of magnitude alone.

A few kilobytes of a weight are read when an adapter for it is judged that could be too large, and remembered; nothing
is read at the start, whatever the model's size.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from amalgam.domain.adapter import unchanged
from amalgam.domain.delta_bound import DeltaBound
from amalgam.store.checkpoint_tensors import CONFIG, StoredTensor, checkpoint_tensors, read_json
from amalgam.store.float_bits import floats, is_float
from amalgam.store.module_names import Renaming, renaming

_SPOTS: Final = 16
"""So many places of a weight are looked at, evenly apart: rows may differ, and some may be zero."""
_SPOT_BYTES: Final = 4096


class SampledRms:
    """Root mean square of a weight's entries, by module.

    Args:
        folder: of the base model.
        tensors: what lies in it.
        rename: gives modules the names by which they are asked for.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, StoredTensor], rename: Renaming = unchanged) -> None:
        self._folder = folder
        self._tensors = {rename(name): tensor for name, tensor in tensors.items()}
        self._known: dict[str, float | None] = {}

    def __call__(self, module: str) -> float | None:
        """The norm of the entries of ``module``'s weight; None where it has none, or other entries than floats.

        Raises:
            OSError: the file cannot be read.
        """
        if module not in self._known:
            tensor = self._tensors.get(f"{module}.weight")
            known = tensor is not None and is_float(tensor.span.dtype) and len(tensor.span.shape) == 2
            self._known[module] = self._sampled(tensor) if known and tensor is not None else None
        return self._known[module]

    def _sampled(self, tensor: StoredTensor) -> float | None:
        span = tensor.span
        width = {"F32": 4}.get(span.dtype, 2)
        last = max(span.end - _SPOT_BYTES, span.start)
        total, count = 0.0, 0
        with (self._folder / tensor.file).open("rb", buffering=0) as file:
            for offset in np.linspace(span.start, last, _SPOTS, dtype=np.int64):
                # On an entry's first byte.
                begin = span.start + (int(offset) - span.start) // width * width
                file.seek(begin)
                raw = file.read(min(_SPOT_BYTES, span.end - begin))
                entries = floats(raw[: len(raw) // width * width], span.dtype)
                total += float(np.dot(entries, entries))
                count += entries.size
        rms = math.sqrt(total / count) if count else 0.0
        return rms if math.isfinite(rms) else None


def delta_bound(
    model_dir: Path | None, max_ratio: float, tensors: Mapping[str, StoredTensor] | None = None
) -> DeltaBound:
    """The bound on adapters of the base model in ``model_dir``; None where that model is not available.

    Args:
        tensors: of the folder, where they are known already.

    Raises:
        BaseModelUnreadable: files that do not belong together, or cannot be read.
    """
    if tensors is None and model_dir is not None:
        tensors = checkpoint_tensors(model_dir)
    if model_dir is None or tensors is None:
        return DeltaBound(max_ratio)
    return DeltaBound(max_ratio, SampledRms(model_dir, tensors, renaming(read_json(model_dir / CONFIG), tensors)))
