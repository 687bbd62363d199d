"""The compiled loops over many pieces: what they zero, elect and count is what the plain operations do."""

from typing import Any

import numpy as np
import pytest
import torch

from amalgam.kernels import compiled, reference
from amalgam.kernels.cpu_tiles import CpuTiles, drop, elect
from amalgam.kernels.philox import Stream, keep_threshold, words
from amalgam.kernels.selection import blocks
from amalgam.kernels.tiles import TileInput, TileRule

PIECE = 2048


@pytest.mark.parametrize("first", [0, 1, 2, 3, 4, 4 * PIECE - 1, (1 << 34) - 5])
@pytest.mark.parametrize("count", [1, 3, PIECE - 1, PIECE, 2 * PIECE + 7])
def test_a_drop_keeps_the_elements_whose_words_are_below_the_bound(first: Any, count: Any) -> None:
    stream, bound = Stream(seed=(3 << 32) | 8, adapter=5, tensor=6), keep_threshold(0.3)
    x = np.arange(1, count + 1, dtype=np.float32)
    compiled.drop(x, compiled.stream_words(stream), first, bound)
    kept = (words(stream, first, count) < bound).numpy()
    assert np.array_equal(x, np.arange(1, count + 1, dtype=np.float32) * kept)


@pytest.mark.parametrize("density", [1e-10, 1.0])
def test_a_drop_at_the_ends_of_density_keeps_nothing_or_all(density: float) -> None:
    x = torch.ones(7, 555)
    drop(x, 0, density, Stream(1, 2, 3))
    assert float(x.sum()) == (x.numel() if density == 1.0 else 0)


@pytest.mark.parametrize("frequency", [False, True])
def test_an_election_over_many_pieces_is_the_reference(frequency: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-3, 4, (4, 3, PIECE - 5), generator=generator).float()
    weights = torch.tensor([1.0, -0.5, 2.0, 0.25])
    expected = reference.elect(x, weights.view(-1, 1, 1), 1.25, frequency)
    torch.testing.assert_close(elect(x.clone(), weights, 1.25, frequency), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("consensus", ["sum", "elect"])
def test_an_overflow_shows_even_where_small_entries_are_trimmed(consensus: Any) -> None:
    """Infinity minus infinity within a product is not a number, and is not smaller than a threshold either."""
    B, A = torch.full((2, 2), 3e38), torch.tensor([[1e30, 1.0, 0.0], [-1e30, 1.0, 0.0]])
    inputs = [TileInput(B, A, 1.0, Stream(0, 0, 0), low=1.0), TileInput(B, A, 1.0, Stream(0, 0, 0), low=1.0)]
    merged = CpuTiles().merge_rows(inputs, TileRule("trim", consensus), 0, 2)
    assert not torch.isfinite(merged[:, 0]).any()
    assert (merged[:, 2] == 0).all()


def test_gathering_counts_what_is_above_and_stops_where_there_is_no_room() -> None:
    values = np.linspace(-1, 1, 3 * PIECE + 11, dtype=np.float32)
    found = np.empty(2 * PIECE, dtype=np.float32)
    above, inside = compiled.gather_between(values, 0.5, 0.6, found)
    magnitudes = np.abs(values)
    wanted = magnitudes[(magnitudes >= np.float32(0.5)) & (magnitudes <= np.float32(0.6))]
    assert above == int((magnitudes > np.float32(0.6)).sum())
    assert np.array_equal(found[:inside], wanted)
    assert compiled.gather_between(values, 0.0, 1.0, found)[1] == -1


@pytest.mark.parametrize("sparsify", ["none", "drop"])
def test_thresholds_are_of_the_values_that_are_compared_with_them(sparsify: Any) -> None:
    """With a buffer and without one, to the last bit: 1 / 0.3 is rounded, so the order of products matters."""
    generator = torch.Generator().manual_seed(5)
    factors = torch.randn(700, 4, generator=generator), torch.randn(4, 600, generator=generator)
    part, shape, ks = TileInput(*factors, 1.0, Stream(1, 2, 3)), (700, 600), (1, 999, 84_000)
    rule = TileRule(sparsify, "sum", density=0.3)
    held = CpuTiles().order_statistics(part, rule, shape, ks, torch.empty(shape))
    assert CpuTiles().order_statistics(part, rule, shape, ks, None) == held
    tiles = [CpuTiles().merge_rows([part], rule, at.start, at.stop) for at in blocks(shape, torch.device("cpu"))]
    ordered = torch.cat(tiles).abs().flatten().sort(descending=True).values
    assert held == [float(ordered[k - 1]) for k in ks]
