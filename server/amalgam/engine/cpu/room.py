"""Memory for second copies of weights, with which a layer and its LoRA are one product on some processors."""

from typing import Final

from amalgam.engine.environment import free_memory

COPIES_SHARE: Final = 16
"""They take one part in so many of the memory that is free, unless a setting says otherwise."""
_GIB: Final = 1 << 30


def room_for_copies(gib: float | None, taken: int = 0) -> int:
    """Give the bytes that second copies of weights may take.

    Args:
        gib: What the setting says; None leaves it to the memory that is free.
        taken: Bytes that will be taken of it before: the weights themselves, where they are not loaded yet.
    """
    return max(free_memory() - taken, 0) // COPIES_SHARE if gib is None else int(gib * _GIB)
