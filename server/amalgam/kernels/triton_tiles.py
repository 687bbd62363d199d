"""The tile operation for CUDA devices, fused: deltas are recomputed in registers and never written.

Addresses are int64 and every dimension is masked, so any sizes do. The meaning of everything here is in ``reference``.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from amalgam.kernels.philox import keep_threshold
from amalgam.kernels.tiles import TileInput, TileRule

SUPPORTED: Final = ("none", "trim", "drop", "breadcrumbs")
"""What of ``TileRule.sparsify`` is implemented; della ranks whole rows, which does not fit a tile."""

_BLOCK_ROWS: Final = 64
_BLOCK_COLUMNS: Final = 64
_SAMPLES: Final = 1 << 16
_DEVIATIONS: Final = 6.0
"""Half width of the bracket in standard deviations of a sampled rank; a miss is noticed and costs one wider pass."""


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """Ten rounds on uint32 blocks."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit  # type: ignore[untyped-decorator]
def _delta(B, A, rows, columns, begin, rank, M, K, R, BF16: tl.constexpr, RP: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """A tile of one input's delta: rows [BM] of B [M, R] from column ``begin``, columns [BN] of A [R, K]."""
    inner = tl.arange(0, RP)
    b = tl.load(
        B + rows[:, None] * R + (begin + inner)[None, :],
        mask=(rows < M)[:, None] & (inner < rank)[None, :],
        other=0.0,
    )
    a = tl.load(
        A + (begin + inner)[:, None].to(tl.int64) * K + columns[None, :],
        mask=(inner < rank)[:, None] & (columns < K)[None, :],
        other=0.0,
    )
    if BF16:
        return tl.dot(b.to(tl.bfloat16), a.to(tl.bfloat16))
    return tl.dot(b, a, input_precision="ieee")


@triton.jit
def _kept(rows, columns, K, adapter, tensor, key0, key1, bound):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """Which entries of a tile a drop keeps: counter (element >> 2 low, high, adapter, tensor), lane element & 3."""
    element = rows[:, None] * K + columns[None, :]
    block = element >> 2
    c0 = (block & 0xFFFFFFFF).to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    zero = c0 * 0
    c2, c3 = zero + adapter.to(tl.uint32), zero + tensor.to(tl.uint32)
    r0, r1, r2, r3 = _philox(c0, c1, c2, c3, zero + key0.to(tl.uint32), zero + key1.to(tl.uint32))
    lane = element & 3
    drawn = tl.where(lane == 0, r0, tl.where(lane == 1, r1, tl.where(lane == 2, r2, r3)))
    return drawn.to(tl.int64) < bound


@triton.jit  # type: ignore[untyped-decorator]
def merge_kernel(  # type: ignore[no-untyped-def] # noqa: ANN201
    B, A, begins, weights, lows, highs, ids, keys, gate, out,  # noqa: ANN001
    M, K, R, first, last, bound, inverse_density, scale,  # noqa: ANN001
    T: tl.constexpr, RP: tl.constexpr, BF16_INPUTS: tl.constexpr, DROP: tl.constexpr, ELECT: tl.constexpr,
    FREQUENCY: tl.constexpr, GATED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Out [last - first, K] = the merged rows first .. last - 1; one program a tile of BM x BN."""
    rows = first + tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN).to(tl.int64)
    inside = (rows < last)[:, None] & (columns < K)[None, :]
    place = (rows - first)[:, None] * K + columns[None, :]
    key0, key1, tensor = tl.load(keys), tl.load(keys + 1), tl.load(keys + 2)
    ballot = tl.zeros((BM, BN), dtype=tl.float32)
    positive = tl.zeros((BM, BN), dtype=tl.float32)
    negative = tl.zeros((BM, BN), dtype=tl.float32)
    mass_positive = tl.zeros((BM, BN), dtype=tl.float32)
    mass_negative = tl.zeros((BM, BN), dtype=tl.float32)
    if GATED:
        open_gate = tl.load(gate + place, mask=inside, other=0) != 0
    for t in tl.static_range(T):
        begin = tl.load(begins + t)
        x = _delta(B, A, rows, columns, begin, tl.load(begins + t + 1) - begin, M, K, R, (BF16_INPUTS >> t) & 1, RP)
        if DROP:
            keep = _kept(rows, columns, K, tl.load(ids + t), tensor, key0, key1, bound)
            x = tl.where(keep, x * inverse_density, 0.0)
        magnitude = tl.abs(x)
        x = tl.where((magnitude >= tl.load(lows + t)) & (magnitude <= tl.load(highs + t)), x, 0.0)
        if GATED:
            x = tl.where(open_gate, x, 0.0)
        weight = tl.load(weights + t)
        u = x * weight
        if ELECT:
            up, down = u > 0, u < 0
            ballot += tl.where(up, 1.0, tl.where(down, -1.0, 0.0)) if FREQUENCY else u
            positive += tl.where(up, u, 0.0)
            negative += tl.where(down, u, 0.0)
            mass_positive += tl.where(up, tl.abs(weight), 0.0)
            mass_negative += tl.where(down, tl.abs(weight), 0.0)
        else:
            ballot += u
    if ELECT:
        mass = tl.where(ballot >= 0, mass_positive, mass_negative)
        total = tl.where(ballot >= 0, positive, negative)
        ballot = tl.where(mass > 0, total * scale / tl.where(mass > 0, mass, 1.0), 0.0)
    tl.store(out + place, ballot, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def bracket_kernel(  # type: ignore[no-untyped-def] # noqa: ANN201
    B, A, keys, above, cursor, found,  # noqa: ANN001
    M, K, R, rank, low, high, bound, inverse_density, capacity,  # noqa: ANN001
    RP: tl.constexpr, BF16: tl.constexpr, DROP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Count |x| > high into above[program] and append low <= |x| <= high to ``found``; cursor counts all of them."""
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN).to(tl.int64)
    x = _delta(B, A, rows, columns, 0, rank, M, K, R, BF16, RP)
    if DROP:
        keep = _kept(rows, columns, K, tl.load(keys + 3), tl.load(keys + 2), tl.load(keys), tl.load(keys + 1), bound)
        x = tl.where(keep, x * inverse_density, 0.0)
    magnitude = tl.abs(x)
    inside = (rows < M)[:, None] & (columns < K)[None, :]
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(above + program, tl.sum(tl.reshape((inside & (magnitude > high)).to(tl.int32), (BM * BN,)), axis=0))
    chosen = tl.reshape((inside & (magnitude >= low) & (magnitude <= high)).to(tl.int32), (BM * BN,))
    base = tl.atomic_add(cursor, tl.sum(chosen, axis=0).to(tl.int64))
    place = base + tl.cumsum(chosen, axis=0) - 1
    tl.store(found + place, tl.reshape(magnitude, (BM * BN,)), mask=(chosen != 0) & (place < capacity))


class TritonTiles:
    """Fused kernels; one launch a module and pass."""

    name = "triton"

    def merge_rows(
        self, inputs: Sequence[TileInput], rule: TileRule, first: int, last: int, gate: Tensor | None = None
    ) -> Tensor:
        """See ``TileBackend``."""
        B = torch.cat([part.B for part in inputs], dim=1).contiguous()
        A = torch.cat([part.A for part in inputs], dim=0).contiguous()
        device, K = A.device, A.shape[1]
        begins = [0]
        for part in inputs:
            begins.append(begins[-1] + part.A.shape[0])
        out = torch.empty((last - first, K), dtype=torch.float32, device=device)
        stream = inputs[0].stream
        exact = sum(_bf16_exact(part.B, part.A) << t for t, part in enumerate(inputs))
        grid = (triton.cdiv(last - first, _BLOCK_ROWS), triton.cdiv(K, _BLOCK_COLUMNS))
        merge_kernel[grid](
            B, A,
            torch.tensor(begins, dtype=torch.int32, device=device),
            _floats([part.weight for part in inputs], device),
            _floats([part.low for part in inputs], device),
            _floats([part.high for part in inputs], device),
            torch.tensor([part.stream.adapter for part in inputs], dtype=torch.int64, device=device),
            torch.tensor([*stream.key, stream.tensor], dtype=torch.int64, device=device),
            out if gate is None else gate.contiguous().view(torch.uint8), out,
            B.shape[0], K, B.shape[1], first, last, keep_threshold(rule.density), 1.0 / rule.density, rule.scale,
            T=len(inputs), RP=_padded(max(part.A.shape[0] for part in inputs)), BF16_INPUTS=exact,
            DROP=rule.sparsify == "drop", ELECT=rule.consensus == "elect", FREQUENCY=rule.frequency,
            GATED=gate is not None, BM=_BLOCK_ROWS, BN=_BLOCK_COLUMNS,
        )  # fmt: skip
        return out

    def order_statistics(
        self, part: TileInput, rule: TileRule, shape: tuple[int, int], ks: Sequence[int], buffer: Tensor | None
    ) -> list[float]:
        """See ``TileBackend``: a bracket from a sample, then a fused pass that counts above it and keeps its inside."""
        return [self._order_statistic(part, rule, shape, k) for k in ks]

    def _order_statistic(self, part: TileInput, rule: TileRule, shape: tuple[int, int], k: int) -> float:
        entries = shape[0] * shape[1]
        for low, high, capacity in (_bracket(part, rule, shape, k), (0.0, float("inf"), entries)):
            above, count, found = self._inside(part, rule, shape, low, high, capacity)
            if above < k <= above + count and count <= capacity:
                return float(torch.kthvalue(found[:count], count - (k - above) + 1).values)
        raise AssertionError("every magnitude lies between 0 and infinity")

    def _inside(
        self, part: TileInput, rule: TileRule, shape: tuple[int, int], low: float, high: float, capacity: int
    ) -> tuple[int, int, Tensor]:
        """How many magnitudes are above the bracket, how many inside, and those."""
        device = part.A.device
        grid = (triton.cdiv(shape[0], _BLOCK_ROWS), triton.cdiv(shape[1], _BLOCK_COLUMNS))
        above = torch.zeros(grid[0] * grid[1], dtype=torch.int32, device=device)
        cursor = torch.zeros(1, dtype=torch.int64, device=device)
        found = torch.empty(capacity, dtype=torch.float32, device=device)
        keys = torch.tensor([*part.stream.key, part.stream.tensor, part.stream.adapter], device=device)
        bracket_kernel[grid](
            part.B, part.A, keys, above, cursor, found,
            shape[0], shape[1], part.B.shape[1], part.A.shape[0], low, high,
            keep_threshold(rule.density), 1.0 / rule.density, capacity,
            RP=_padded(part.A.shape[0]), BF16=_bf16_exact(part.B, part.A), DROP=rule.sparsify == "drop",
            BM=_BLOCK_ROWS, BN=_BLOCK_COLUMNS,
        )  # fmt: skip
        counts: list[int] = torch.stack([above.sum(dtype=torch.int64), cursor[0]]).tolist()
        return counts[0], counts[1], found


def _bracket(part: TileInput, rule: TileRule, shape: tuple[int, int], k: int) -> tuple[float, float, int]:
    """Magnitudes (low, high) between which the k-th largest almost surely lies, and room for what lies between."""
    entries = shape[0] * shape[1]
    if entries <= 4 * _SAMPLES:
        return 0.0, float("inf"), entries
    generator = torch.Generator().manual_seed(k)
    rows = torch.randint(shape[0], (_SAMPLES,), generator=generator).to(part.B.device)
    columns = torch.randint(shape[1], (_SAMPLES,), generator=generator).to(part.B.device)
    sample = (part.B[rows] * part.A[:, columns].mT).sum(dim=1).abs()
    # What a drop keeps is a random part of the entries, scaled; the same part of the sample stands for it.
    share = k / entries / rule.density if rule.sparsify == "drop" else k / entries
    scale = 1 / rule.density if rule.sparsify == "drop" else 1.0
    ordered = sample.mul_(scale).sort(descending=True).values
    spread = _DEVIATIONS * (_SAMPLES * share * max(0.0, 1 - share)) ** 0.5 + 8
    top, bottom = int(share * _SAMPLES - spread), int(share * _SAMPLES + spread)
    high = float(ordered[top]) if top >= 0 else float("inf")
    low = float(ordered[bottom]) if bottom < _SAMPLES else 0.0
    return low, high, min(entries, int(entries * (4 * spread / _SAMPLES)) + 1024)


def _bf16_exact(B: Tensor, A: Tensor) -> bool:
    """Whether the factors pass through bfloat16 unchanged, so that tensor cores give exact products."""
    return B.is_cuda and bool((B.bfloat16().float() == B).all()) and bool((A.bfloat16().float() == A).all())


def _padded(rank: int) -> int:
    return max(16, 1 << (rank - 1).bit_length())


def _floats(values: Sequence[float], device: torch.device) -> Any:
    return torch.tensor(values, dtype=torch.float32, device=device)
