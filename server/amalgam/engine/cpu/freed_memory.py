"""A worker on CPU keeps the memory that it frees.

A layer's outputs for a long prompt are tens of megabytes. The C library's allocator maps such blocks from the system
and gives them back, layer after layer, and every page that is mapped anew is cleared and put into the page table when
it is first written to. How much a worker keeps is bounded by the largest step that it has computed.
"""

import ctypes
from collections.abc import Mapping
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
"""These are glibc's numbers for the two settings, as in its ``malloc.h``."""
_NEVER: Final = -1
_NONE: Final = 0


def keep_freed_memory(environment: Mapping[str, str]) -> bool:
    """Tell this process's allocator, for the rest of its life; whether it took it.

    Args:
        environment: where ``MALLOC_…`` variables are set for glibc, whoever set them has decided, and nothing is done.
    """
    if any(name.startswith("MALLOC_") for name in environment):
        return False
    # Other C libraries have no such function, and other allocators that are loaded before take it without effect.
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(_MMAP_MAX, _NONE)) and bool(set_option(_TRIM_THRESHOLD, _NEVER))
