"""Philox4x32-10 (Salmon et al., 2011): counter-based random words, the same on numpy, torch and Triton.

A mask entry is addressed by what it belongs to and by nothing else: key = seed (low, high word), counter =
(element >> 2 low, element >> 2 high, adapter id, tensor id), lane = element & 3. It does not depend on tiles, batches,
devices or other adapters.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROUNDS: Final = 10
MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
WEYL: Final = (0x9E3779B9, 0xBB67AE85)
WORD: Final = 0xFFFFFFFF

_SHIFT: Final = np.uint64(32)
_MASK: Final = np.uint64(WORD)
_CHUNK_BLOCKS: Final = 1 << 14
"""Blocks worked on at once on a processor, which its cache holds; divides 2^32."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The random words of one adapter's one tensor under one seed."""

    seed: int
    """0 <= seed < 2^64."""
    adapter: int
    tensor: int

    @property
    def key(self) -> tuple[int, int]:
        """Low and high word of the seed."""
        return self.seed & WORD, self.seed >> 32


def stable_id(name: str) -> int:
    """A 32-bit id of a name, the same everywhere and for ever."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def keep_threshold(probability: float) -> int:
    """The bound below which a word keeps its entry: ⌊p·2³²⌋; at p = 1 every word is below it."""
    return int(probability * (1 << 32))


def words(stream: Stream, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """The words of elements first .. first + count - 1.

    Args:
        stream: Whose words.
        first: Number of the first element, row · columns + column. count: How many.
        device: Where to make them.

    Returns: [count], int64, each in [0, 2³²).
    """
    low, high = first >> 2, (first + count + 3) >> 2
    if torch.device(device).type == "cpu":
        drawn = np.empty((high - low, 4), dtype=np.int64)
        for place, rows in _chunks(stream, low, high):
            drawn[place] = rows.T
        return torch.from_numpy(drawn).view(-1)[first - 4 * low : first - 4 * low + count]
    blocks = torch.arange(low, high, dtype=torch.int64, device=device)
    fixed = torch.full_like(blocks, stream.adapter), torch.full_like(blocks, stream.tensor)
    lanes = philox_torch((blocks & WORD, blocks >> 32, *fixed), stream.key)
    return torch.stack(lanes, dim=1).reshape(-1)[first - 4 * low : first - 4 * low + count]


def below(stream: Stream, first: int, count: int, bound: int, device: torch.device | str = "cpu") -> Tensor:
    """Which of the words are below a bound: ``words(...) < bound``, [count], bool."""
    if torch.device(device).type != "cpu":
        return words(stream, first, count, device) < bound
    low, high = first >> 2, (first + count + 3) >> 2
    flags = np.empty((high - low, 4), dtype=np.bool_)
    for place, lanes in _chunks(stream, low, high):
        for lane, row in enumerate(lanes):
            np.less(row, np.uint64(bound), out=flags[place, lane])
    return torch.from_numpy(flags).view(-1)[first - 4 * low : first - 4 * low + count]


def philox_torch(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds on int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product wraps int64, which leaves all 64 bits right; the shift copies the sign, which the mask removes.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD, ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def _chunks(stream: Stream, low: int, high: int) -> Iterator[tuple[slice, NDArray[np.uint64]]]:
    """The words of blocks low .. high - 1 in pieces: where they belong, counted from low, and they [4, blocks].

    A piece is overwritten by the next. Within one the high word of the block number is the same.
    """
    counter = np.empty((4, _CHUNK_BLOCKS), dtype=np.uint64)
    product = np.empty((2, _CHUNK_BLOCKS), dtype=np.uint64)
    at = low
    while at < high:
        end = min(high, (at // _CHUNK_BLOCKS + 1) * _CHUNK_BLOCKS)
        lanes = counter[:, : end - at]
        _rounds(stream, at, lanes, product[:, : end - at])
        yield slice(at - low, end - low), lanes
        at = end


def _rounds(stream: Stream, first: int, counter: NDArray[np.uint64], product: NDArray[np.uint64]) -> None:
    """Ten rounds without a temporary, for the blocks from ``first``; ``counter`` is the result, [4, blocks].

    In the first two only the low word of the block number differs, so half of their products are single numbers.
    """
    keys = list(stream.key)
    numbers = np.arange(first & WORD, (first & WORD) + counter.shape[1], dtype=np.uint64)
    fixed = stream.adapter * MULTIPLIERS[1]
    c0, c1 = (fixed >> 32) ^ (first >> 32) ^ keys[0], fixed & WORD
    _advance(numbers, 0, stream.tensor ^ keys[1], product[0], counter[2], counter[3])
    keys = [(key + weyl) & WORD for key, weyl in zip(keys, WEYL, strict=True)]
    fixed = c0 * MULTIPLIERS[0]
    _advance(counter[2], 1, c1 ^ keys[0], product[1], counter[0], counter[1])
    np.bitwise_xor(counter[3], np.uint64((fixed >> 32) ^ keys[1]), out=counter[2])
    counter[3] = fixed & WORD
    for _ in range(ROUNDS - 2):
        keys = [(key + weyl) & WORD for key, weyl in zip(keys, WEYL, strict=True)]
        np.multiply(counter[0], np.uint64(MULTIPLIERS[0]), out=product[0])
        np.multiply(counter[2], np.uint64(MULTIPLIERS[1]), out=product[1])
        # (c0, c1, c2, c3) becomes (high p1 ^ c1 ^ k0, low p1, high p0 ^ c3 ^ k1, low p0).
        for place, source in ((0, product[1]), (1, product[0])):
            word, other = counter[2 * place], counter[2 * place + 1]
            np.right_shift(source, _SHIFT, out=word)
            np.bitwise_xor(word, other, out=word)
            np.bitwise_xor(word, np.uint64(keys[place]), out=word)
            np.bitwise_and(source, _MASK, out=other)


def _advance(
    word: NDArray[np.uint64],
    multiplier: int,
    against: int,
    product: NDArray[np.uint64],
    high: NDArray[np.uint64],
    low: NDArray[np.uint64],
) -> None:
    """High and low half of word · multiplier, the high one under exclusive or with a single number."""
    np.multiply(word, np.uint64(MULTIPLIERS[multiplier]), out=product)
    np.right_shift(product, _SHIFT, out=high)
    np.bitwise_xor(high, np.uint64(against), out=high)
    np.bitwise_and(product, _MASK, out=low)


def philox_numpy(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Ten rounds in numpy: [4, n] words as uint64 -> [4, n]; the plain statement of the generator."""
    c0, c1, c2, c3 = (row.astype(np.uint64) for row in counter)
    k0, k1 = key
    shift, mask = np.uint64(32), np.uint64(WORD)
    for _ in range(ROUNDS):
        p0: Any = c0 * np.uint64(MULTIPLIERS[0])
        p1: Any = c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return np.stack([c0, c1, c2, c3])
