"""The kernels of delta space for CUDA devices: deltas are recomputed in registers and never written.

Addresses are int64 and every dimension is masked, so any sizes do. A launch covers n modules of one shape; arguments
hold them one after the other. The meaning of everything here is in ``reference``.
"""

from typing import Final

import triton
import triton.language as tl

BLOCK_ROWS: Final = 32
BLOCK_COLUMNS: Final = 64
"""All kernels have it, since a threshold is compared with values that must be the same to the last bit. Larger tiles
leave too few programs on a multiprocessor: an election holds four sums an entry in registers."""


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


@triton.jit
def _elected(ballot, total, positive, mass_positive, mass_negative, scale):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """The disjoint mean of an election by its ballot, from the sum of all, that of the positive, and both masses."""
    won = ballot >= 0
    mass = tl.where(won, mass_positive, mass_negative)
    # A sum less its positive part is its negative part, and needs no sum of its own, which would be registers.
    total = tl.where(won, positive, total - positive) * scale
    # The plain division is an approximation, a last bit off where the reference is right.
    return tl.where(mass > 0, tl.div_rn(total, tl.where(mass > 0, mass, 1.0)), 0.0)


@triton.jit  # type: ignore[untyped-decorator]
def merge_kernel(  # type: ignore[no-untyped-def] # noqa: ANN201
    B, A, begins, weights, lows, highs, ids, keys, tensors, gate, out,  # noqa: ANN001
    M, K, R, first, last, bound, inverse_density, scale,  # noqa: ANN001
    T: tl.constexpr, RP: tl.constexpr, BF16_INPUTS: tl.constexpr, DROP: tl.constexpr, ELECT: tl.constexpr,
    FREQUENCY: tl.constexpr, GATED: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Out [n, last - first, K] = the merged rows first .. last - 1; one program a tile of BM x BN of one module.

    B [n, M, R], A [n, R, K], float32 or bfloat16; weights, lows and highs [n, T], of which LOW and HIGH say whether
    they are there; tensors [n], gate like out.
    """
    module = tl.program_id(2).to(tl.int64)
    B, A = B + module * M * R, A + module * R * K
    rows = first + tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN).to(tl.int64)
    inside = (rows < last)[:, None] & (columns < K)[None, :]
    place = (module * (last - first) + (rows - first))[:, None] * K + columns[None, :]
    key0, key1, tensor = tl.load(keys), tl.load(keys + 1), tl.load(tensors + module)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    heads = tl.zeros((BM, BN), dtype=tl.float32)
    positive = tl.zeros((BM, BN), dtype=tl.float32)
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
        weight = tl.load(weights + module * T + t)
        u = x * weight
        if LOW:
            u = tl.where(tl.abs(x) >= tl.load(lows + module * T + t), u, 0.0)
        if HIGH:
            u = tl.where(tl.abs(x) <= tl.load(highs + module * T + t), u, 0.0)
        if GATED:
            u = tl.where(open_gate, u, 0.0)
        total += u
        if ELECT:
            up, down = u > 0, u < 0
            if FREQUENCY:
                heads += tl.where(up, 1.0, tl.where(down, -1.0, 0.0))
            positive += tl.maximum(u, 0.0)
            mass_positive += tl.where(up, tl.abs(weight), 0.0)
            mass_negative += tl.where(down, tl.abs(weight), 0.0)
    if ELECT:
        total = _elected(heads if FREQUENCY else total, total, positive, mass_positive, mass_negative, scale)
    tl.store(out + place, total, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def count_kernel(  # type: ignore[no-untyped-def] # noqa: ANN201
    B, A, ids, keys, tensors, lows, spans, shifts, above, counts,  # noqa: ANN001
    M, K, R, begin, rank, bound, inverse_density,  # noqa: ANN001
    RP: tl.constexpr, BF16: tl.constexpr, DROP: tl.constexpr, FIRST: tl.constexpr, BINS: tl.constexpr,
    STEPS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """For one input of n modules, count magnitudes by their bits: those from lows to lows + spans in BINS parts.

    A part is ``1 << shifts`` wide; ``above`` counts what lies beyond, in a FIRST pass alone. ``lows`` are above 0, so
    that nothing outside of the matrix is counted. A program takes STEPS tiles that lie side by side.

    B [n, M, R], A [n, R, K], of which columns and rows begin .. begin + rank - 1 are the input's and ids[0] its id;
    tensors, lows, spans and shifts [n]; above [n] and counts [n, BINS] int64.
    """
    module = tl.program_id(2).to(tl.int64)
    B += module * M * R
    A += module * R * K
    counts += module * BINS
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    low, span, shift = tl.load(lows + module), tl.load(spans + module), tl.load(shifts + module)
    beyond = tl.zeros((BM, BN), dtype=tl.int32)
    for step in range(STEPS):
        columns = (tl.program_id(1).to(tl.int64) * STEPS + step) * BN + tl.arange(0, BN)
        x = _delta(B, A, rows, columns, begin, rank, M, K, R, BF16, RP)
        if DROP:
            key0, key1 = tl.load(keys), tl.load(keys + 1)
            keep = _kept(rows, columns, K, tl.load(ids), tl.load(tensors + module), key0, key1, bound)
            x = tl.where(keep, x * inverse_density, 0.0)
        over = (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) - low
        if FIRST:
            beyond += (over > span).to(tl.int32)
        # Below the span a difference is negative, which is a large number without a sign.
        unsigned = over.to(tl.uint32, bitcast=True)
        # In a later pass hardly a tile has any.
        if FIRST or tl.min(tl.min(unsigned, axis=1), axis=0) <= span.to(tl.uint32, bitcast=True):
            inside = unsigned <= span.to(tl.uint32, bitcast=True)
            tl.atomic_add(counts + (over >> shift), 1, mask=inside, sem="relaxed")
    if FIRST:
        tl.atomic_add(above + module, tl.sum(tl.sum(beyond, axis=1), axis=0).to(tl.int64), sem="relaxed")


@triton.jit  # type: ignore[untyped-decorator]
def sample_kernel(  # type: ignore[no-untyped-def] # noqa: ANN201
    B, A, out, entries, step, M, K, R, begin, rank, RP: tl.constexpr, BLOCK: tl.constexpr,  # noqa: ANN001
):  # fmt: skip
    """Magnitudes of one input of n modules at the places 0, step, 2·step … modulo ``entries`` = M·K: out [n, samples].

    B [n, M, R], A [n, R, K] as in ``count_kernel``; BLOCK divides the number of samples.
    """
    module = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    place = at * step % entries
    inner = tl.arange(0, RP)
    known = (inner < rank)[None, :]
    b = tl.load(B + module * M * R + (place // K)[:, None] * R + (begin + inner)[None, :], mask=known, other=0.0)
    a = tl.load(A + module * R * K + (begin + inner)[None, :] * K + (place % K)[:, None], mask=known, other=0.0)
    tl.store(
        out + module * tl.num_programs(0) * BLOCK + at, tl.abs(tl.sum(b.to(tl.float32) * a.to(tl.float32), axis=1))
    )
