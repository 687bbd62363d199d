"""Exact order statistics of magnitudes: from a buffer, or from a stream that is seen twice."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

_LOW_BITS: Final = 16

TILE_ENTRIES: Final = 1 << 15
"""Entries of a tile on a processor: some tiles fit its cache. Fixed, since every pass must see the same tile."""

DEVICE_TILE_ENTRIES: Final = 1 << 26
"""Entries of a tile on an accelerator."""


def largest_of_buffer(magnitudes: Tensor, ks: Sequence[int]) -> list[float]:
    """The k-th largest entries of a buffer of magnitudes, which is reordered; 1 <= k <= its size.

    Args:
        magnitudes: Contiguous float32, non-negative.
        ks: Which, counted from 1.
    """
    flat = magnitudes.view(-1)
    if flat.device.type == "cpu":
        # numpy selects with vector instructions, several times faster than torch on a CPU.
        places = [flat.numel() - k for k in ks]
        values = flat.numpy()
        values.partition(sorted(set(places)))
        return [float(values[place]) for place in places]
    return [float(torch.kthvalue(flat, flat.numel() - k + 1).values) for k in ks]


class RadixSelect:
    """The k-th largest magnitude of a stream, exactly, in a fixed small memory.

    Feed the whole stream to ``observe``, call ``advance``, feed it again, call ``advance``, read ``value``. The bits of
    a non-negative float32 sort as integers do: the first round finds the upper half of the answer, the second the
    lower.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._prefix: int | None = None
        self._counts = np.zeros(1 << (32 - _LOW_BITS), dtype=np.int64)
        self._value: float | None = None

    def observe(self, x: Tensor) -> None:
        """Count the magnitudes of x, float32 of any shape."""
        bits = x.detach().abs().reshape(-1).view(torch.int32).cpu().numpy()
        if self._prefix is not None:
            bits = bits[(bits >> _LOW_BITS) == self._prefix] & ((1 << _LOW_BITS) - 1)
        else:
            bits = bits >> _LOW_BITS
        self._counts += np.bincount(bits, minlength=self._counts.shape[0])

    def advance(self) -> None:
        """End a round."""
        above = np.cumsum(self._counts[::-1])
        place = int(np.searchsorted(above, self._k))
        digit = self._counts.shape[0] - 1 - place
        if self._prefix is None:
            self._k -= int(above[place] - self._counts[digit])
            self._prefix = digit
            self._counts[:] = 0
        else:
            bits = np.array([(self._prefix << _LOW_BITS) | digit], dtype=np.uint32)
            self._value = float(bits.view(np.float32)[0])

    @property
    def value(self) -> float:
        """The answer, after two rounds."""
        assert self._value is not None, "the stream has to be seen twice"
        return self._value


def blocks(shape: tuple[int, int], device: torch.device) -> Iterator[slice]:
    """Blocks of whole rows, always the same for one shape and kind of device."""
    entries = TILE_ENTRIES if device.type == "cpu" else DEVICE_TILE_ENTRIES
    height = max(1, entries // shape[1])
    return (slice(first, min(first + height, shape[0])) for first in range(0, shape[0], height))


def select(
    stream: Callable[[], Iterator[Tensor]],
    shape: tuple[int, int],
    ks: Sequence[int],
    buffered: bool,
    device: torch.device,
) -> list[float]:
    """The k-th largest magnitudes of a stream of blocks, from a buffer or, without room for one, from two passes."""
    if buffered:
        buffer = torch.empty(shape, dtype=torch.float32, device=device)
        for block, x in zip(blocks(shape, device), stream(), strict=True):
            torch.abs(x, out=buffer[block])
        return largest_of_buffer(buffer, ks)
    selections = [RadixSelect(k) for k in ks]
    for _ in range(2):
        for x in stream():
            for selection in selections:
                selection.observe(x)
        for selection in selections:
            selection.advance()
    return [selection.value for selection in selections]
