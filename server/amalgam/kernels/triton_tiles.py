"""The kernels of delta space for CUDA devices: deltas are recomputed in registers and never written.

Addresses are int64 and every dimension is masked, so any sizes do. A launch covers n modules of one shape; arguments
hold them one after the other. The meaning of everything here is in ``reference``.
"""

from typing import Final

import triton
import triton.language as tl

BLOCK_ROWS: Final = 32
BLOCK_COLUMNS: Final = 64
"""Both kernels have it, since a threshold is compared with values that must be the same to the last bit. Larger tiles
leave too few programs on a multiprocessor: an election holds five sums an entry in registers."""


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
    B, A, begins, weights, lows, highs, ids, keys, tensors, gate, out,  # noqa: ANN001
    M, K, R, first, last, bound, inverse_density, scale,  # noqa: ANN001
    T: tl.constexpr, RP: tl.constexpr, BF16_INPUTS: tl.constexpr, DROP: tl.constexpr, ELECT: tl.constexpr,
    FREQUENCY: tl.constexpr, GATED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Out [n, last - first, K] = the merged rows first .. last - 1; one program a tile of BM x BN of one module.

    B [n, M, R], A [n, R, K], weights, lows and highs [n, T], tensors [n], gate like out.
    """
    module = tl.program_id(2).to(tl.int64)
    B, A = B + module * M * R, A + module * R * K
    rows = first + tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN).to(tl.int64)
    inside = (rows < last)[:, None] & (columns < K)[None, :]
    place = (module * (last - first) + (rows - first))[:, None] * K + columns[None, :]
    key0, key1, tensor = tl.load(keys), tl.load(keys + 1), tl.load(tensors + module)
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
        low, high = tl.load(lows + module * T + t), tl.load(highs + module * T + t)
        x = tl.where((tl.abs(x) >= low) & (tl.abs(x) <= high), x, 0.0)
        if GATED:
            x = tl.where(open_gate, x, 0.0)
        weight = tl.load(weights + module * T + t)
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
        mass, total = tl.where(ballot >= 0, mass_positive, mass_negative), tl.where(ballot >= 0, positive, negative)
        # The plain division is an approximation, a last bit off where the reference is right.
        ballot = tl.where(mass > 0, tl.div_rn(total * scale, tl.where(mass > 0, mass, 1.0)), 0.0)
    tl.store(out + place, ballot, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def bracket_kernel(  # type: ignore[no-untyped-def] # noqa: ANN201
    B, A, ids, keys, tensors, lows, highs, above, cursors, found,  # noqa: ANN001
    M, K, R, begin, rank, bound, inverse_density, capacity,  # noqa: ANN001
    RP: tl.constexpr, BF16: tl.constexpr, DROP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """For one input of n modules, count |x| > highs and append lows <= |x| <= highs to found; cursors count them.

    B [n, M, R], A [n, R, K], of which columns and rows begin .. begin + rank - 1 are the input's and ids[0] its id;
    tensors, lows, highs, above and cursors [n], found [n, capacity].
    """
    module = tl.program_id(2).to(tl.int64)
    B += module * M * R
    A += module * R * K
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN).to(tl.int64)
    x = _delta(B, A, rows, columns, begin, rank, M, K, R, BF16, RP)
    if DROP:
        keep = _kept(rows, columns, K, tl.load(ids), tl.load(tensors + module), tl.load(keys), tl.load(keys + 1), bound)
        x = tl.where(keep, x * inverse_density, 0.0)
    magnitude = tl.abs(x)
    low, high = tl.load(lows + module), tl.load(highs + module)
    inside = (rows < M)[:, None] & (columns < K)[None, :]
    larger = (inside & (magnitude > high)).to(tl.int32)
    tl.atomic_add(above + module, tl.sum(tl.sum(larger, axis=1), axis=0).to(tl.int64), sem="relaxed")
    chosen = (inside & (magnitude >= low) & (magnitude <= high)).to(tl.int32)
    by_row = tl.sum(chosen, axis=1)
    # One counter a tile: places one by one from a counter take three times as long.
    base = tl.atomic_add(cursors + module, tl.sum(by_row, axis=0).to(tl.int64), sem="relaxed")
    before = tl.cumsum(by_row, axis=0) - by_row
    place = base + (before[:, None] + tl.cumsum(chosen, axis=1) - 1)
    tl.store(found + module * capacity + place, magnitude, mask=(chosen != 0) & (place < capacity))
