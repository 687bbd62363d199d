"""Bfloat16 in compiled loops, which numba has no type for: its bits are moved by shifts, on any processor.

numba keeps a loop's compiled code until the loop's own file changes. Who changes this file changes those that use it.
"""

from typing import Any, Final

import numpy as np

from amalgam.engine.cpu.compiler import HALF_BITS, inner

_HALF: Final = np.uint32(HALF_BITS)
_ONE: Final = np.uint32(1)
_BELOW_HALF: Final = np.uint32(0x7FFF)


@inner
def widened(bits: Any) -> Any:
    """The float32 whose upper half these bits are."""
    return np.uint32(np.uint32(bits) << _HALF).view(np.float32)


@inner
def rounded(value: Any) -> Any:
    """Bits of the bfloat16 next to a float32; of two as near, the even one.

    What is not a number comes from a bfloat16 or from the processor: its lower half is zero, and nothing is carried
    over from it.
    """
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + (_BELOW_HALF + ((bits >> _HALF) & _ONE))) >> _HALF)
