"""How our loops are compiled by numba, and what they take; compiled code is kept where that can be written.

numba keeps a function's code until the function's own file changes, so loops stand in one file with what they call, all
but the functions of `halves`, `one_pass`, `vectors`, `amx` and `dots`.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Bits = NDArray[np.unsignedinteger[Any]]
Halves = NDArray[np.uint16]
Words = NDArray[np.uint32]
Factors = Floats | Halves
Rows = Floats | Halves
_Function = TypeVar("_Function", bound=Callable[..., Any])

# Sums may be split into several and products fused with them, which is what vectors need. What is not a number stays
# so: numba's "fast" would also promise that there is none. Columns are counted without a sign, because an index that
# could be negative counts from the end, and the loop is not vectorised for it.
_OPTIONS: Final[dict[str, Any]] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}
HALF_BITS: Final = 16
"""A float32 has so many bits more than a bfloat16."""


def compiled(function: _Function) -> _Function:
    """Callable from Python, with its code kept."""
    return _kept(function, **_OPTIONS)


def compiled_together(function: _Function) -> _Function:
    """Threads of OpenMP share loops over `numba.prange`; they are torch's own, because both load one library."""
    return _kept(function, parallel=True, **_OPTIONS)


def _kept(function: _Function, **options: Any) -> _Function:
    try:
        kept: _Function = numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # No folder to keep compiled code in: it is compiled again in every process.
        kept = numba.njit(**options)(function)
    return kept


def inner(function: _Function) -> _Function:
    """A function for use in compiled code only."""
    kept: _Function = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)
    return kept
