"""A layer's product and LoRA's in one pass, in tiles (AMX) and in vectors (AVX-512 BF16), against float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amalgam.engine.cpu import loops
from amalgam.engine.cpu.factors import FactorArrays
from amalgam.engine.cpu.processor import OnePass, has_tiles, has_vectors
from amalgam.engine.cpu.sources import bits_of
from tests.unit.engine.cpu.product_cases import BFLOAT16_TOLERANCE, NEIGHBOURS

pytestmark = pytest.mark.parametrize(
    "units",
    [
        pytest.param("tiles", marks=pytest.mark.skipif(not has_tiles("detected"), reason="no AMX")),
        pytest.param("vectors", marks=pytest.mark.skipif(not has_vectors("detected"), reason="no AVX-512 BF16")),
    ],
)

Ranks = Sequence[Sequence[int]]
"""By slot and slice."""


@pytest.fixture(scope="module", autouse=True)
def threads() -> None:
    """The loops' threads are decided when the first of them are compiled."""
    loops.warm_up(torch.get_num_threads(), in_halves=True)


def random_layer(width: int, length: int, seed: int) -> Tensor:
    values: Tensor = torch.randn(width, length, generator=torch.Generator().manual_seed(seed)) / length**0.5
    return values.bfloat16()


def random_lora(ranks: Ranks, widths: Sequence[int], length: int, seed: int) -> FactorArrays:
    """As `ModuleFactors` keeps them, with a scale of its own for each rank, and something beyond a slot's ranks."""
    generator = torch.Generator().manual_seed(seed)
    most = max(map(sum, ranks))
    down = torch.randn(len(ranks), most, length, generator=generator) / length**0.5
    up = torch.zeros(len(ranks), most, sum(widths))
    blocks = np.zeros((len(ranks), len(widths), 4), np.int64)
    for slot, of_slot in enumerate(ranks):
        first = column = 0
        for part, (rank, width) in enumerate(zip(of_slot, widths, strict=True)):
            blocks[slot, part] = first, first + rank, column, column + width
            up[slot, first : first + rank, column : column + width] = torch.randn(rank, width, generator=generator)
            first, column = first + rank, column + width
        down[slot, first:], up[slot, first:] = torch.nan, torch.nan
    scales = torch.rand(len(ranks), most, generator=generator).numpy()
    return FactorArrays(bits_of(down.bfloat16()), bits_of(up.bfloat16()), blocks, scales)


def multiplied(
    units: OnePass,
    weight: Tensor,
    x: Tensor,
    lora: FactorArrays,
    spans: Sequence[Sequence[int]],
    bias: Tensor | None = None,
    **more: Any,
) -> Tensor:
    from amalgam.engine.cpu.fused import FusedLinear

    table, scale = np.array(spans, np.int64), more.get("scale", 0.7)
    return FusedLinear(weight, units)(x, bias, lora, table, scale)


def defined(
    weight: Tensor, x: Tensor, lora: FactorArrays, spans: Sequence[Sequence[int]], scale: float = 0.7
) -> Tensor:
    """In float64."""
    down, up = (torch.from_numpy(bits).view(torch.bfloat16).double() for bits in (lora.down, lora.up))
    out = x.double() @ weight.double().T
    for slot, start, stop in spans:
        rank = int(lora.blocks[slot, -1, 1]) if slot >= 0 else 0
        hidden = x[start:stop].double() @ down[slot, :rank].T * torch.from_numpy(lora.scales[slot, :rank]).double()
        out[start:stop] += scale * hidden @ up[slot, :rank]
    return out


def assert_rounded_once(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=BFLOAT16_TOLERANCE, atol=2 * BFLOAT16_TOLERANCE)
    assert (got != want.bfloat16()).float().mean() < NEIGHBOURS


SPANS = {
    "one prompt": [(1, 0, 128)],
    "rows of the base between and around": [(-1, 0, 3), (0, 3, 140), (-1, 140, 141), (2, 141, 300), (-1, 300, 333)],
    "no whole square": [(2, 0, 129), (-1, 129, 130), (1, 130, 259)],
    "one slot twice, and one without ranks": [(0, 0, 200), (3, 200, 350), (0, 350, 700)],
    "more ranks, then fewer": [(2, 0, 150), (1, 150, 300), (0, 300, 450), (2, 450, 601)],
    "many in one block": [(at % 5 - 1, 11 * at, 11 * at + 11) for at in range(30)],
    "none": [(-1, 0, 70)],
    "one row": [(1, 0, 1)],
}
SHAPES: dict[str, tuple[Sequence[int], int, Ranks]] = {
    "q, k and v": ((64, 32, 32), 96, ((8, 8, 8), (4, 0, 1), (16, 16, 16), (0, 0, 0))),
    "slices that end within a square": ((40, 24, 32), 64, ((8, 8, 8), (1, 2, 3), (0, 20, 13), (0, 0, 0))),
    "one slice of many ranks": ((160,), 1056, ((8,), (16,), (70,), (0,))),
    "one square": ((32,), 32, ((1,), (2,), (32,), (0,))),
}


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_it_is_the_definition_rounded_once(
    monkeypatch: pytest.MonkeyPatch, units: OnePass, spans: Sequence[Sequence[int]], shape: Any, threads: int
) -> None:
    widths, length, ranks = shape
    weight, lora = random_layer(sum(widths), length, 1), random_lora(ranks, widths, length, 2)
    x = random_layer(spans[-1][2], length, 3) * length**0.5
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert_rounded_once(multiplied(units, weight, x, lora, spans), defined(weight, x, lora, spans))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_bias_is_added_before_the_rounding(units: OnePass, dtype: torch.dtype) -> None:
    weight, lora = random_layer(96, 64, 1), random_lora([[8]], [96], 64, 2)
    x, bias = random_layer(130, 64, 3) * 8, torch.arange(96).to(dtype) / 8
    got = multiplied(units, weight, x, lora, [(0, 0, 130)], bias)
    assert_rounded_once(got, defined(weight, x, lora, [(0, 0, 130)]) + bias.double())


def test_rows_say_the_same_whoever_is_beside_them(units: OnePass) -> None:
    """Bit by bit: also where they begin and end within a square, and beside what is not a number."""
    weight, lora = random_layer(128, 64, 1), random_lora([[8], [40]], [128], 64, 2)
    x = random_layer(500, 64, 3) * 8
    alone = multiplied(units, weight, x[77:300], lora, [(0, 0, 223)])
    x[:77], x[300:] = torch.nan, torch.inf
    among = multiplied(units, weight, x, lora, [(1, 0, 77), (0, 77, 300), (-1, 300, 500)])
    assert torch.equal(among[77:300], alone)
    assert among[:77].isnan().all()
    assert not among[300:].isfinite().any()


def test_a_row_that_is_not_a_number_stays_the_only_one(units: OnePass) -> None:
    weight, lora = random_layer(64, 64, 1), random_lora([[8]], [64], 64, 2)
    x = random_layer(161, 64, 3) * 8
    x[160, 5] = torch.nan
    got = multiplied(units, weight, x, lora, [(0, 0, 161)])
    assert got[160].isnan().all()
    assert got[:160].isfinite().all()
