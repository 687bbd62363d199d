"""Exact order statistics of deltas on CUDA devices, for many modules at once: digits of the answer, counted.

The bits of non-negative float32 sort as integers do. A sample of the entries gives two magnitudes between which the
answer almost surely lies; a pass over all entries counts how many lie above and how many in each of ``BINS`` equal
parts of what is between, and a second pass does the same for the part that holds the answer. Two passes leave one
number. Nothing but counters is written, no entry is moved, and equal magnitudes need no care.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
import triton
from torch import Tensor

from amalgam.kernels.module_batch import ModuleBatch
from amalgam.kernels.philox import keep_threshold
from amalgam.kernels.tiles import TileRule
from amalgam.kernels.triton_tiles import BLOCK_COLUMNS, BLOCK_ROWS, count_kernel, sample_kernel

SAMPLES: Final = 1 << 15
"""A bracket is found from so many entries; a matrix of up to eight times as many has none."""

BINS: Final = 1 << 11
"""A pass finds eleven bits of the answer."""

_DEVIATIONS: Final = 5.0
"""It is the half width of the bracket in standard deviations of a sampled rank; a miss is noticed and costs three
passes without a bracket."""

_NARROW: Final = 0.13
"""A bracket with so small a share of the sampled entries above the answer, and of those below, has magnitudes within a
factor of 1.3, where their number falls no slower than 1/x, and is told apart in two passes. A wider one takes three."""

_GOLDEN: Final = (math.sqrt(5) - 1) / 2

STEPS: Final = 8
"""A program counts in so many tiles, one beside the other."""

_LEAST: Final = 1
"""The smallest magnitude above 0 has these bits. Zeros are never counted: what is outside of the matrix is 0 too, and
what a drop has left out."""

_ALL: Final = 0x7F800000 - _LEAST
"""Infinity is so far from it."""


@dataclass(frozen=True, slots=True)
class Bracket:
    """Where the answers are: bits of magnitudes ``low`` .. ``low + span``, both [n], int32."""

    low: Tensor
    span: Tensor
    passes: int
    """So many passes find the answer, where the bracket holds it."""


def largest_of_batch(batch: ModuleBatch, rule: TileRule, t: int, k: int) -> Tensor:
    """The k-th largest magnitude of input t of every module after ``rule.sparsify``, exactly: [n], float32."""
    return largest_of_inputs(batch, rule, k, (t,))[:, 0]


def largest_of_inputs(batch: ModuleBatch, rule: TileRule, k: int, inputs: tuple[int, ...] | None = None) -> Tensor:
    """The same for several inputs, all where none are named: [n, inputs], float32."""
    wanted = inputs if inputs is not None else tuple(range(len(batch.adapters)))
    found = [digits(batch, rule, t, k, bracket(batch, rule, t, k)) for t in wanted]
    bits, sure = torch.stack([one for one, _ in found], dim=1), torch.stack([held for _, held in found], dim=1)
    for row, place in (~sure).nonzero().tolist():
        one = batch.rows(slice(row, row + 1))
        bits[row, place] = digits(one, rule, wanted[place], k, everything(one))[0][0]
    return bits.view(torch.float32)


def digits(batch: ModuleBatch, rule: TileRule, t: int, k: int, where: Bracket) -> tuple[Tensor, Tensor]:
    """Bits of the k-th largest magnitude of each module, [n], int32; and whether the bracket held it, [n], bool."""
    low, span = where.low, where.span
    rank = torch.full_like(low, k, dtype=torch.int64)
    sure = torch.ones_like(low, dtype=torch.bool)
    # A bracket from the smallest magnitude on leaves only zeros below it.
    zero = torch.zeros_like(sure)
    for turn in range(where.passes):
        shift = (_length(span) - BINS.bit_length() + 1).clamp_min(0)
        above, counts = _counted(batch, rule, t, low, span, shift, is_first=turn == 0)
        rank = rank - above
        reached = counts.flip(1).cumsum(dim=1)
        place = (reached < rank[:, None]).sum(dim=1).clamp_max(BINS - 1)
        part = BINS - 1 - place
        if turn == 0:
            inside = rank <= reached[:, -1]
            zero = ~inside & (low == _LEAST)
            sure = (rank >= 1) & (inside | zero)
        rank = rank - (reached.gather(1, place[:, None]) - counts.gather(1, part[:, None]))[:, 0]
        # Of a bracket that misses, the part may lie beyond it.
        begins = torch.minimum(part.to(torch.int32) << shift, span)
        low, span = low + begins, torch.minimum(span - begins, (1 << shift) - 1)
    return torch.where(zero, 0, low), sure & (zero | (span == 0))


def everything(batch: ModuleBatch) -> Bracket:
    """All magnitudes above 0."""
    low = torch.full((batch.shape[0],), _LEAST, dtype=torch.int32, device=batch.B.device)
    return Bracket(low, torch.full_like(low, _ALL), passes=3)


def bracket(batch: ModuleBatch, rule: TileRule, t: int, k: int) -> Bracket:
    """Between which magnitudes the k-th largest of each module almost surely lies.

    The sampled places are a Weyl sequence, even over the matrix.
    """
    count, height, width = batch.shape
    entries = height * width
    whole = everything(batch)
    if entries <= 8 * SAMPLES:
        return whole
    step = int(entries * _GOLDEN) | 1
    while math.gcd(step, entries) > 1:
        step += 2
    sample = torch.empty((count, SAMPLES), dtype=torch.float32, device=batch.B.device)
    sample_kernel[(SAMPLES // 128, count)](
        batch.B, batch.A, sample, entries, step, height, width, batch.begins[-1], batch.begins[t],
        batch.begins[t + 1] - batch.begins[t], RP=batch.padded, BLOCK=128, num_warps=4,
    )  # fmt: skip
    # What a drop keeps is a random part of the entries, scaled; the same part of the sample stands for it.
    scale = 1 / rule.density if rule.sparsify == "drop" else 1.0
    share = min(1.0, k / entries * scale)
    spread = _DEVIATIONS * math.sqrt(SAMPLES * share * (1 - share)) + 8
    top, bottom = int(share * SAMPLES - spread), int(share * SAMPLES + spread)
    edges = [
        (torch.kthvalue(sample, SAMPLES - place, dim=1).values * scale).view(torch.int32)
        if 0 <= place < SAMPLES else None
        for place in (bottom, top)
    ]  # fmt: skip
    low = whole.low if edges[0] is None else edges[0].clamp_min(_LEAST)
    high = whole.low + whole.span if edges[1] is None else edges[1]
    is_narrow = spread < _NARROW * SAMPLES * min(share, 1 - share)
    return Bracket(low, (high - low).clamp_min(0), passes=2 if is_narrow else 3)


def _length(values: Tensor) -> Tensor:
    """Bits that hold each value, int32 from 0 on: 0 for 0, 3 for 5."""
    return torch.frexp(values.double()).exponent


def _counted(
    batch: ModuleBatch, rule: TileRule, t: int, low: Tensor, span: Tensor, shift: Tensor, *, is_first: bool
) -> tuple[Tensor, Tensor]:
    """How many magnitudes are above low + span, [n], in the first pass alone; and in each part of the span, [n, BINS].

    A part is ``1 << shift`` wide.
    """
    count, height, width = batch.shape
    above = torch.zeros(count, dtype=torch.int64, device=batch.B.device)
    counts = torch.zeros((count, BINS), dtype=torch.int64, device=batch.B.device)
    grid = (triton.cdiv(height, BLOCK_ROWS), triton.cdiv(width, BLOCK_COLUMNS * STEPS), count)
    count_kernel[grid](
        batch.B, batch.A, batch.ids()[t:], batch.keys(), batch.tensors, low, span, shift, above, counts,
        height, width, batch.begins[-1], batch.begins[t], batch.begins[t + 1] - batch.begins[t],
        keep_threshold(rule.density), 1.0 / rule.density,
        RP=batch.padded, BF16=batch.exact >> t & 1, DROP=rule.sparsify == "drop", FIRST=is_first, BINS=BINS,
        STEPS=STEPS, BM=BLOCK_ROWS, BN=BLOCK_COLUMNS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return above, counts
