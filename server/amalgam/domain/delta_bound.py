"""How large an adapter's change of a weight may be, measured against the weight itself.

An adapter that was trained for its base model changes a weight by a few hundredths of the weight's size; a blend may
multiply that by ten. A change a million times larger is finite in the file and overflows in the model: infinities and
NaN then lie in memory that other requests use next. So the size is bounded before the engine sees it. At the default
bound the largest value between two normalisations stays many orders of magnitude below the end of float32 and bfloat16.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_DELTA_RATIO: Final = 100.0
"""It bounds the ratio of ‖scale·B·A‖ to ‖W‖, both Frobenius norms: thousands of times what trained adapters have, and
still harmless."""
MAX_ENTRY: Final = 65504.0
"""It is the largest finite number of float16: a larger factor is an infinity in an engine that computes in it."""
_LEAST_RMS: Final = 1e-3
"""A weight with smaller entries, such as one that is all zero, is taken for one with these."""
_UNKNOWN_RMS: Final = 1.0
"""A weight counts with this where it cannot be read as floats (quantised, or no base model available): above all that
models have."""


def _unknown(module: str) -> float | None:
    return None


@dataclass(frozen=True, slots=True)
class DeltaBound:
    """The bound for one base model; without arguments, for one that is not known."""

    max_ratio: float = MAX_DELTA_RATIO
    """With infinity nothing is bounded."""
    weight_rms: Callable[[str], float | None] = _unknown
    """It gives the root mean square of a linear module's entries; None where it is not known. It may read a file."""

    def ratio(self, module: str, delta_norm: float, shape: tuple[int, int]) -> float:
        """‖Δ‖ of ``module`` in units of its weight's norm; NaN stays NaN.

        Args:
            delta_norm: Frobenius norm of scale·B·A.
            shape: (out_features, in_features).
        """
        found = self.weight_rms(module)
        rms = _UNKNOWN_RMS if found is None else max(found, _LEAST_RMS)
        return delta_norm / (rms * math.sqrt(shape[0] * shape[1]))

    def allows(self, ratio: float) -> bool:
        """Whether a delta of that ratio may be served; NaN may not."""
        # In this order, because every comparison with NaN is false.
        return ratio <= self.max_ratio or math.isinf(self.max_ratio)

    def allows_entry(self, largest: float) -> bool:
        """Whether a factor with entries of that magnitude may be served; infinity and NaN may not."""
        return largest <= MAX_ENTRY or math.isinf(self.max_ratio)
