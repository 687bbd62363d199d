"""Delta space on CUDA devices: many modules of one shape in a launch, and the tile operation as the case of one."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import triton
from torch import Tensor

from amalgam.kernels.philox import Stream, keep_threshold
from amalgam.kernels.tiles import TileInput, TileRule
from amalgam.kernels.triton_tiles import BLOCK_COLUMNS, BLOCK_ROWS, bracket_kernel, merge_kernel

SUPPORTED: Final = ("none", "trim", "drop", "breadcrumbs")
"""These of ``TileRule.sparsify`` are implemented; della ranks whole rows, which does not fit a tile."""

SAMPLES: Final = 1 << 16
"""A bracket is found from so many entries; a matrix of up to four times as many has none."""
_DEVIATIONS: Final = 5.0
"""It is the half width of the bracket in standard deviations of a sampled rank; a miss is noticed and costs one wider
pass."""

_SPARE: Final = 1.3
"""A bracket has so much space, over what it is expected to hold."""

_GOLDEN: Final = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class ModuleBatch:
    """n modules of one shape with the same T inputs, on one CUDA device.

    Shapes: ``B`` [n, out, R] with the scales in it, ``A`` [n, R, in], ``weights`` [n, T], float32; ``tensors`` [n],
    int64, the modules' ids; all contiguous.
    """

    B: Tensor
    A: Tensor
    begins: tuple[int, ...]
    """Each input's columns begin here; R at the end."""
    weights: Tensor
    tensors: Tensor
    adapters: tuple[int, ...]
    """It has the id of each input."""
    seed: int
    exact: int = 0
    """Bit t says that input t passes through bfloat16 unchanged, so that tensor cores give exact products."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, out, in)."""
        return self.B.shape[0], self.B.shape[1], self.A.shape[2]

    def rows(self, some: slice) -> "ModuleBatch":
        """A part of the modules."""
        return replace(
            self, B=self.B[some], A=self.A[some], weights=self.weights[some], tensors=self.tensors[some]
        )  # fmt: skip

    def checked(self) -> "ModuleBatch":
        """The same with ``exact`` filled in, by one look at all factors."""
        if not self.B.is_cuda:
            return self
        same_b = (self.B.bfloat16().float() == self.B).all(dim=1).all(dim=0)
        same_a = (self.A.bfloat16().float() == self.A).all(dim=2).all(dim=0)
        both = (same_b & same_a).tolist()
        spans = itertools.pairwise(self.begins)
        return replace(self, exact=sum(all(both[begin:end]) << t for t, (begin, end) in enumerate(spans)))

    def keys(self) -> Tensor:
        """Low and high word of the seed, [2], int64."""
        return torch.tensor(Stream(self.seed, 0, 0).key, dtype=torch.int64, device=self.B.device)

    def ids(self) -> Tensor:
        """The inputs' ids, [T], int64."""
        return torch.tensor(self.adapters, dtype=torch.int64, device=self.B.device)


def merge_batch(
    batch: ModuleBatch, rule: TileRule, lows: Tensor, highs: Tensor, rows: range, gate: Tensor | None = None
) -> Tensor:
    """Rows of the merged matrices, [n, len(rows), in], float32.

    Args:
        batch: The inputs. rule: What to do.
        lows: [n, T]: smaller magnitudes go, after a drop where there is one. highs: Likewise for larger ones.
        rows: Which rows, one after the other.
        gate: [n, len(rows), in]; positions where it is False become 0 in every input.
    """
    count, height, width = batch.shape
    device, total = batch.B.device, batch.begins[-1]
    out = torch.empty((count, len(rows), width), dtype=torch.float32, device=device)
    grid = (triton.cdiv(len(rows), BLOCK_ROWS), triton.cdiv(width, BLOCK_COLUMNS), count)
    merge_kernel[grid](
        batch.B, batch.A, torch.tensor(batch.begins, dtype=torch.int32, device=device), batch.weights, lows, highs,
        batch.ids(), batch.keys(), batch.tensors,
        out if gate is None else gate.contiguous().view(torch.uint8), out,
        height, width, total, rows.start, rows.stop, keep_threshold(rule.density), 1.0 / rule.density, rule.scale,
        T=len(batch.adapters), RP=_padded(batch.begins), BF16_INPUTS=batch.exact, DROP=rule.sparsify == "drop",
        ELECT=rule.consensus == "elect", FREQUENCY=rule.frequency, GATED=gate is not None,
        BM=BLOCK_ROWS, BN=BLOCK_COLUMNS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def largest_of_batch(batch: ModuleBatch, rule: TileRule, t: int, k: int) -> Tensor:
    """The k-th largest magnitude of input t of every module after ``rule.sparsify``, exactly: [n], float32.

    A sample gives a bracket; one fused pass counts what lies above it and keeps what lies inside.
    """
    lows, highs, capacity = bracket(batch, rule, t, k)
    above, inside, found = _gathered(batch, rule, t, lows, highs, capacity)
    place = (k - above - 1).clamp(0, found.shape[1] - 1)
    values: Tensor = found.gather(1, place[:, None])[:, 0]
    held = (above < k) & (k <= above + inside) & (inside <= capacity)
    for row in (~held).nonzero()[:, 0].tolist():
        values[row] = _largest_of_all(batch.rows(slice(row, row + 1)), rule, t, k)
    return values


def _largest_of_all(one: ModuleBatch, rule: TileRule, t: int, k: int) -> Tensor:
    """The same for one module by keeping every magnitude."""
    _, height, width = one.shape
    everything = torch.zeros(1, device=one.B.device), torch.full((1,), float("inf"), device=one.B.device)
    return _gathered(one, rule, t, *everything, height * width)[2][0, k - 1]


def _gathered(
    batch: ModuleBatch, rule: TileRule, t: int, lows: Tensor, highs: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """How many magnitudes are above each bracket and how many inside, [n], and those, [n, capacity], descending."""
    count, height, width = batch.shape
    counts = torch.zeros((2, count), dtype=torch.int64, device=batch.B.device)
    found = torch.full((count, capacity), -1.0, device=batch.B.device)
    grid = (triton.cdiv(height, BLOCK_ROWS), triton.cdiv(width, BLOCK_COLUMNS), count)
    bracket_kernel[grid](
        batch.B, batch.A, batch.ids()[t:], batch.keys(), batch.tensors, lows, highs, counts[0], counts[1], found,
        height, width, batch.begins[-1], batch.begins[t], batch.begins[t + 1] - batch.begins[t],
        keep_threshold(rule.density), 1.0 / rule.density, capacity,
        RP=_padded(batch.begins), BF16=batch.exact >> t & 1, DROP=rule.sparsify == "drop",
        BM=BLOCK_ROWS, BN=BLOCK_COLUMNS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return counts[0], counts[1], found.sort(dim=1, descending=True).values


def bracket(batch: ModuleBatch, rule: TileRule, t: int, k: int) -> tuple[Tensor, Tensor, int]:
    """Magnitudes (lows [n], highs [n]) between which the k-th largest almost surely lies, and space for those between.

    The sampled places are a Weyl sequence, even over the matrix and made on the device.
    """
    count, height, width = batch.shape
    entries, device = height * width, batch.B.device
    lows, highs = torch.zeros(count, device=device), torch.full((count,), float("inf"), device=device)
    if entries <= 4 * SAMPLES:
        return lows, highs, entries
    step = int(entries * _GOLDEN) | 1
    while math.gcd(step, entries) > 1:
        step += 2
    places = torch.arange(SAMPLES, device=device) * step % entries
    rows, columns = places // width, places % width
    own = slice(batch.begins[t], batch.begins[t + 1])
    scale = 1 / rule.density if rule.sparsify == "drop" else 1.0
    sample = (batch.B[:, rows, own] * batch.A[:, own][:, :, columns].mT).sum(dim=2).abs_().mul_(scale)
    # What a drop keeps is a random part of the entries, scaled; the same part of the sample stands for it.
    share = min(1.0, k / entries * scale)
    spread = _DEVIATIONS * math.sqrt(SAMPLES * share * (1 - share)) + 8
    ordered = sample.sort(dim=1, descending=True).values
    top, bottom = int(share * SAMPLES - spread), int(share * SAMPLES + spread)
    if top >= 0:
        highs = ordered[:, top].contiguous()
    if bottom < SAMPLES:
        lows = ordered[:, bottom].contiguous()
        return lows, highs, min(entries, int(entries / scale * (2 * spread / SAMPLES) * _SPARE) + 1024)
    return lows, highs, entries


class TritonTiles:
    """One module at a time, for what needs all of it in turn: see ``TileBackend``."""

    name = "triton"

    def merge_rows(
        self, inputs: Sequence[TileInput], rule: TileRule, first: int, last: int, gate: Tensor | None = None
    ) -> Tensor:
        """See ``TileBackend``."""
        device = inputs[0].B.device
        lows, highs = (
            torch.tensor([[getattr(part, edge) for part in inputs]], dtype=torch.float32, device=device)
            for edge in ("low", "high")
        )
        return merge_batch(_batch_of(inputs), rule, lows, highs, range(first, last), _alone(gate))[0]

    def order_statistics(
        self, part: TileInput, rule: TileRule, shape: tuple[int, int], ks: Sequence[int], buffer: Tensor | None
    ) -> list[float]:
        """See ``TileBackend``."""
        batch = _batch_of([part])
        return [float(largest_of_batch(batch, rule, 0, k)[0]) for k in ks]


def _batch_of(inputs: Sequence[TileInput]) -> ModuleBatch:
    """One module as a batch."""
    device, begins = inputs[0].B.device, [0]
    for part in inputs:
        begins.append(begins[-1] + part.A.shape[0])
    return ModuleBatch(
        B=torch.cat([part.B for part in inputs], dim=1)[None].contiguous(),
        A=torch.cat([part.A for part in inputs], dim=0)[None].contiguous(),
        begins=tuple(begins),
        weights=torch.tensor([[part.weight for part in inputs]], dtype=torch.float32, device=device),
        tensors=torch.tensor([inputs[0].stream.tensor], dtype=torch.int64, device=device),
        adapters=tuple(part.stream.adapter for part in inputs),
        seed=inputs[0].stream.seed,
    ).checked()


def _alone(gate: Tensor | None) -> Tensor | None:
    return None if gate is None else gate[None]


def _padded(begins: Sequence[int]) -> Any:
    """Columns of the widest input, as the kernels take them."""
    widest = max(end - begin for begin, end in itertools.pairwise(begins))
    return max(16, 1 << (widest - 1).bit_length())
