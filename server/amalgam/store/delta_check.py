"""Judges how much an adapter changes, module by module, against the weights that it changes."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from amalgam.domain.delta_bound import MAX_ENTRY, DeltaBound
from amalgam.errors.findings import Finding
from amalgam.store.delta_norm import delta_norm
from amalgam.store.peft_config import LoraRules
from amalgam.store.peft_tensors import FACTORS, SortedTensors
from amalgam.store.safetensors_header import TensorSpan
from amalgam.store.tensor_scan import TensorScan


def check_deltas(
    folder: Path,
    tensors: SortedTensors,
    scans: Mapping[tuple[str, str], TensorScan],
    rules: LoraRules | None,
    bound: DeltaBound,
) -> Iterator[Finding]:
    """``delta_too_large`` for each module whose change, or a factor of it, is out of bounds.

    What an honest adapter holds is seen to be small by its largest entries alone; factors are read, and multiplied out
    as far as their norm needs, only where that does not show it.

    Args:
        folder: Of the weights files.
        scans: Of its factors; a module without both has findings of its own and is left out, as is one whose entries
            are not finite.
        rules: For the scales; None leaves all out, because the config has findings of its own.

    Raises:
        OSError: the file or the base model's cannot be read.
    """
    if rules is None or math.isinf(bound.max_ratio):
        return
    for module, pair in tensors.pairs.items():
        found = [scans.get((module, factor)) for factor in FACTORS]
        if len(pair) != len(FACTORS) or not all(scan is not None and scan.finite for scan in found):
            continue
        down, up = (pair[factor] for factor in FACTORS)
        if not (len(down.shape) == len(up.shape) == 2 and down.shape[0] == up.shape[1] and up.shape[0] > 0):
            continue
        largest_down, largest_up = (scan.largest for scan in found if scan is not None)
        scale = abs(rules.scaling_of(module))
        # The engine multiplies the scale into B.
        entry = max(largest_down, largest_up, scale * largest_up)
        if not bound.allows_entry(entry):
            yield _entry_too_large(module, entry)
            continue
        ratio = _ratio(folder, module, (down, up), (largest_down, largest_up), scale, bound)
        if not bound.allows(ratio):
            yield _delta_too_large(module, ratio, bound.max_ratio)


def _ratio(
    folder: Path,
    module: str,
    spans: tuple[TensorSpan, TensorSpan],
    largest: tuple[float, float],
    scale: float,
    bound: DeltaBound,
) -> float:
    """The change over the weight: no smaller than it is, and exact where the cheap estimate is out of bounds."""
    down, up = spans
    shape = (up.shape[0], down.shape[1])
    # No norm exceeds the largest entry times the root of the number of entries.
    norms = [entry * math.sqrt(math.prod(span.shape)) for entry, span in zip(largest, spans, strict=True)]
    estimate = bound.ratio(module, scale * norms[0] * norms[1], shape)
    return estimate if bound.allows(estimate) else bound.ratio(module, scale * delta_norm(folder, down, up), shape)


def _delta_too_large(module: str, ratio: float, limit: float) -> Finding:
    message = (
        f"{module!r} would be changed by {ratio:.3g} times its own size; this server allows {limit:g} times "
        "(AMALGAM_MAX_DELTA_RATIO). Check lora_alpha and the factors, or scale them down."
    )
    return Finding(code="delta_too_large", message=message, module=module)


def _entry_too_large(module: str, entry: float) -> Finding:
    message = (
        f"{module!r} has a factor with an entry of {entry:.3g}, its scale included; {MAX_ENTRY:g} is the largest. "
        "Check lora_alpha and the factors, or scale them down."
    )
    return Finding(code="delta_too_large", message=message, module=module)
