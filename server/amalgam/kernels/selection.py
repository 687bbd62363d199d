"""Exact order statistics of magnitudes: from a buffer, or from a stream that is seen twice."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LOW_BITS: Final = 16

_SAMPLED_SHARE: Final = 32
"""One entry in so many is sampled for a bracket."""

_DEVIATIONS: Final = 6.0
"""It is the half width of a bracket in standard deviations of a sampled rank; a miss is noticed and costs a full
selection."""

_SMALL: Final = 1 << 17
"""Up to so many entries, a full selection is as fast as a bracket."""

_GATHERED_SHARE: Final = 4
"""One entry in so many may lie in a bracket; more cost a full selection."""

TILE_ENTRIES: Final = 1 << 17
"""A tile on a processor has so many entries: its cache holds several, and calls cost little beside the work on one.
Every pass must see the same tile, so it is fixed."""

DEVICE_TILE_ENTRIES: Final = 1 << 26
"""A tile on an accelerator has so many entries."""


def largest_of_buffer(buffer: Tensor, ks: Sequence[int]) -> list[float]:
    """The k-th largest magnitudes in a buffer; 1 <= k <= its size.

    Args:
        buffer: Contiguous float32.
        ks: Which, counted from 1.
    """
    flat = buffer.view(-1)
    if flat.device.type != "cpu":
        magnitudes = flat.abs()
        return [float(torch.kthvalue(magnitudes, flat.numel() - k + 1).values) for k in ks]
    # numpy selects with vector instructions, several times faster than torch on a CPU.
    values = flat.numpy()
    if values.size <= _SMALL:
        whole = np.abs(values)
        return [_partitioned(whole, k) for k in ks]
    stride = _SAMPLED_SHARE
    while math.gcd(stride, buffer.shape[-1]) > 1:
        stride += 1
    sample = np.abs(values[::stride])
    return [_bracketed(values, k, *_bracket(sample, k / values.size)) for k in ks]


def _partitioned(values: NDArray[np.float32], k: int) -> float:
    """The k-th largest value; the values are reordered."""
    values.partition(values.size - k)
    return float(values[values.size - k])


def _bracket(sample: NDArray[np.float32], share: float) -> tuple[float, float]:
    """Values (low, high) between which the one with ``share`` of all others above it almost surely lies."""
    spread = _DEVIATIONS * math.sqrt(sample.size * share * (1 - share)) + 8
    top, bottom = int(share * sample.size - spread), int(share * sample.size + spread) + 1
    return (
        _partitioned(sample, bottom) if bottom <= sample.size else 0.0,
        _partitioned(sample, top) if top >= 1 else math.inf,
    )


def _bracketed(values: NDArray[np.float32], k: int, low: float, high: float) -> float:
    """The k-th largest magnitude: what lies above the bracket is counted, and what lies inside is gathered."""
    from amalgam.kernels import compiled

    found = np.empty(values.size // _GATHERED_SHARE, dtype=np.float32)
    above, inside = compiled.gather_between(values, low, high, found)
    if above < k <= above + inside:
        return _partitioned(found[:inside], k - above)
    return _partitioned(np.abs(values), k)


class RadixSelect:
    """The k-th largest magnitude of a stream, exactly, in a fixed small memory.

    Feed the whole stream to ``observe``, call ``advance``, feed it again, call ``advance``, read ``value``. The bits of
    a non-negative float32 sort as integers do: the first round finds the upper half of the answer, the second the
    lower.
    """

    def __init__(self, k: int = 0) -> None:
        """Take k, counted from 1; where it is not known yet, `aim` says it before the first round ends."""
        self._k = k
        self._prefix: int | None = None
        self._counts = np.zeros(1 << (32 - _LOW_BITS), dtype=np.int64)
        self._value: float | None = None

    def aim(self, k: int) -> None:
        """Say which magnitude is wanted, before the first `advance`."""
        self._k = k

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
    buffer: Tensor | None,
    device: torch.device,
) -> list[float]:
    """The k-th largest magnitudes of a stream of blocks, by way of a buffer or, without one, from two passes."""
    if buffer is not None:
        for block, x in zip(blocks(shape, device), stream(), strict=True):
            buffer[block] = x
        return largest_of_buffer(buffer, ks)
    selections = [RadixSelect(k) for k in ks]
    for _ in range(2):
        for x in stream():
            for selection in selections:
                selection.observe(x)
        for selection in selections:
            selection.advance()
    return [selection.value for selection in selections]
