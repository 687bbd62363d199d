"""Philox4x32-10 (Salmon et al., 2011): counter-based random words, the same on numpy, torch and Triton.

A mask entry is addressed by what it belongs to and by nothing else: key = seed (low, high word), counter =
(element >> 2 low, element >> 2 high, adapter id, tensor id), lane = element & 3. It does not depend on tiles, batches,
devices or other adapters.
"""

import hashlib
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


@dataclass(frozen=True, slots=True)
class Stream:
    """The random words of one adapter's one tensor under one seed."""

    seed: int
    """It is in [0, 2^64)."""
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
        numbers = np.arange(low, high, dtype=np.uint64)
        fixed = np.full_like(numbers, stream.adapter), np.full_like(numbers, stream.tensor)
        counter = np.stack([numbers & np.uint64(WORD), numbers >> np.uint64(32), *fixed])
        lanes = tuple(torch.from_numpy(philox_numpy(counter, stream.key).view(np.int64)))
    else:
        blocks = torch.arange(low, high, dtype=torch.int64, device=device)
        ids = torch.full_like(blocks, stream.adapter), torch.full_like(blocks, stream.tensor)
        lanes = philox_torch((blocks & WORD, blocks >> 32, *ids), stream.key)
    return torch.stack(lanes, dim=1).reshape(-1)[first - 4 * low : first - 4 * low + count]


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
