"""Triton kernels against the reference: equal to the last bit where the arithmetic is exact.

Factors hold small integers, so that every product and sum is exact in float32 whatever its order, and a difference can
only be a wrong mask, a wrong sign or a wrong address.
"""

from typing import Any

import pytest
import torch

from amalgam.kernels.philox import Stream
from amalgam.kernels.tiles import ReferenceTiles, TileInput, TileRule, order_statistics_by_rows

SHAPES = [(1, 1), (1, 63), (63, 1), (63, 100), (100, 65), (2, 2000)]


def make_inputs(
    shape: Any,
    ranks: tuple[int, ...] = (3, 1, 5),
    seed: int = 0,
    weights: tuple[float, ...] = (1.0, -2.0, 0.5),
    low: float = 0.0,
    high: Any = float("inf"),
    zeros: bool = False,
) -> Any:
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for t, (rank, weight) in enumerate(zip(ranks, weights, strict=True)):
        B = torch.randint(-3, 4, (shape[0], rank), generator=generator).float()
        A = torch.randint(-3, 4, (rank, shape[1]), generator=generator).float()
        if zeros:
            B.zero_()
        inputs.append(TileInput(B, A, weight, Stream((5 << 32) | 9, 1234567890 + t, 4000000000), low, high))
    return inputs


def check(module: Any, inputs: Any, rule: Any, shape: Any, gate: Any = None) -> None:
    tiles = module.TritonTiles()
    expected = ReferenceTiles().merge_rows(inputs, rule, 0, shape[0], gate)
    found = tiles.merge_rows(inputs, rule, 0, shape[0], gate)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_sum_and_election_over_odd_sizes(triton_tiles: Any, shape: Any) -> None:
    check(triton_tiles, make_inputs(shape), TileRule("none", "sum"), shape)
    check(triton_tiles, make_inputs(shape), TileRule("none", "elect", scale=2.0), shape)


@pytest.mark.parametrize("frequency", [False, True])
@pytest.mark.parametrize("low", [0.0, 3.0, 1000.0])
def test_trim_and_breadcrumbs_with_ties_at_the_threshold(triton_tiles: Any, low: float, frequency: bool) -> None:
    shape = (63, 100)
    check(triton_tiles, make_inputs(shape, low=low), TileRule("trim", "elect", frequency=frequency), shape)
    check(triton_tiles, make_inputs(shape, low=low, high=9.0), TileRule("breadcrumbs", "elect"), shape)
    check(triton_tiles, make_inputs(shape, low=low, high=9.0), TileRule("breadcrumbs", "sum"), shape)


@pytest.mark.parametrize("density", [2**-20, 0.25, 0.5, 1.0])
def test_drop_masks_are_the_reference_masks(triton_tiles: Any, density: Any) -> None:
    shape = (63, 65)
    check(triton_tiles, make_inputs(shape), TileRule("drop", "sum", density=density), shape)
    check(triton_tiles, make_inputs(shape, low=8.0), TileRule("drop", "elect", density=density), shape)


def test_opposite_votes_and_zeros(triton_tiles: Any) -> None:
    shape = (63, 65)
    pair = make_inputs(shape, ranks=(2, 2), weights=(1.0, -1.0))
    twins = [pair[0], TileInput(pair[0].B, pair[0].A, -1.0, pair[1].stream)]
    check(triton_tiles, twins, TileRule("none", "elect"), shape)
    check(triton_tiles, make_inputs(shape, zeros=True), TileRule("none", "elect"), shape)


def test_gate_closes_positions(triton_tiles: Any) -> None:
    shape = (63, 65)
    gate = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    check(triton_tiles, make_inputs(shape), TileRule("none", "elect"), shape, gate)


def test_a_block_of_rows_is_that_part_of_the_whole(triton_tiles: Any) -> None:
    shape, rule = (100, 65), TileRule("drop", "elect", density=0.5)
    inputs = make_inputs(shape)
    whole = ReferenceTiles().merge_rows(inputs, rule, 0, 100)
    part = triton_tiles.TritonTiles().merge_rows(inputs, rule, 64, 97)
    torch.testing.assert_close(part, whole[64:97], rtol=0, atol=0)


def test_every_entry_is_written(triton_tiles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty

    def poisoned(*size: Any, **options: Any) -> Any:
        made = real(*size, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(triton_tiles.torch, "empty", poisoned)
    check(triton_tiles, make_inputs((63, 100)), TileRule("trim", "elect"), (63, 100))


@pytest.mark.parametrize("rule", [TileRule("none", "sum"), TileRule("drop", "sum", density=0.5)])
@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (2, 300)])
def test_order_statistics_are_exact(triton_tiles: Any, rule: Any, shape: tuple[int, int]) -> None:
    part = make_inputs(shape)[0]
    entries = shape[0] * shape[1]
    ks = sorted({1, max(1, entries // 5), entries})
    expected = order_statistics_by_rows(part, rule, shape, ks, torch.empty(shape))
    assert triton_tiles.TritonTiles().order_statistics(part, rule, shape, ks, torch.empty(shape)) == expected
