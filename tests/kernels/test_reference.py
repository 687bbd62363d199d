"""The operations themselves: golden elections, thresholds with ties, masks at both ends, selection from a stream."""

from typing import Any

import pytest
import torch

from amalgam.errors.merge_run import BackendUnavailable
from amalgam.kernels import reference
from amalgam.kernels.backend import select_backend, usable_device
from amalgam.kernels.cpu_tiles import CpuTiles, elect
from amalgam.kernels.philox import Stream
from amalgam.kernels.selection import RadixSelect, largest_of_buffer
from amalgam.kernels.tiles import ReferenceTiles, TileInput, TileRule


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        ((1.0, -0.4, 0.2), (1.0, 1.0, 1.0), 0.6),
        ((1.0, -0.4, 0.2), (0.5, 1.0, 1.0), 0.7 / 1.5),
        ((1.0, 0.4), (1.0, -1.0), 1.0),
        ((1.0, -0.4), (1.0, -1.0), 0.7),
        ((1.0, -0.4), (1.0, -0.9), 1.36 / 1.9),
        ((1.0, -1.0), (1.0, 1.0), 1.0),  # a tie counts as +
        ((0.0, 0.0), (1.0, 1.0), 0.0),
        ((0.0, -2.0), (1.0, 1.0), -2.0),  # an exact 0 never agrees
    ],
)
def test_golden_elections(values: tuple[Any, ...], weights: tuple[Any, ...], expected: Any) -> None:
    x, w = torch.tensor(values).view(-1, 1, 1), torch.tensor(weights).view(-1, 1, 1)
    assert float(reference.elect(x, w, 1.0, False)) == pytest.approx(expected, rel=1e-6)
    assert float(reference.elect(x, w, 3.0, False)) == pytest.approx(3 * expected, rel=1e-6)


def test_frequency_counts_heads() -> None:
    x, w = torch.tensor([5.0, -1.0, -1.0]).view(-1, 1, 1), torch.ones(3, 1, 1)
    assert float(reference.elect(x, w, 1.0, False)) == 5.0
    assert float(reference.elect(x, w, 1.0, True)) == -1.0


def test_trim_keeps_what_equals_the_threshold() -> None:
    x = torch.tensor([[3.0, -2.0, 2.0, 1.0, 0.0]])
    threshold = reference.kth_magnitude(x, 2)
    assert float(threshold) == 2.0
    assert reference.trim(x, threshold).tolist() == [[3.0, -2.0, 2.0, 0.0, 0.0]]


def test_a_density_above_zero_keeps_something() -> None:
    assert reference.kept_count(0.001, 10) == 1
    assert reference.kept_count(0.29, 100) == 28
    assert reference.kept_count(1.0, 7) == 7


def test_della_probabilities_span_the_band() -> None:
    p = reference.della_probabilities(torch.tensor([[0.1, -5.0, 2.0], [1.0, 1.0, 1.0]]), 0.5, 0.2)
    assert p.tolist()[0] == pytest.approx([0.3, 0.7, 0.5])
    assert p.tolist()[1] == pytest.approx([0.3, 0.5, 0.7])
    assert reference.della_probabilities(torch.ones(2, 1), 0.5, 0.2).tolist() == [[0.5], [0.5]]


@pytest.mark.parametrize("size", [1, 63, 2000])
def test_radix_selection_is_the_sorted_value(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, generator=generator) * torch.randint(0, 2, (size,), generator=generator)
    ordered = x.abs().sort(descending=True).values
    for k in {1, size // 2 or 1, size}:
        selection = RadixSelect(k)
        for _ in range(2):
            for piece in torch.split(x, 50):
                selection.observe(piece)
            selection.advance()
        assert selection.value == float(ordered[k - 1])
        assert largest_of_buffer(x.abs().clone(), (k,)) == [float(ordered[k - 1])]


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "misleading", "huge"])
def test_bracketed_selection_is_the_sorted_value(kind: str) -> None:
    """Large buffers, whose sizes fit neither groups nor chunks, and a sample that tells nothing of the rest."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(331, 577, generator=generator).abs()
    if kind == "ties":
        x = (x * 3).round()
    if kind == "zeros":
        x *= torch.rand(x.shape, generator=generator) < 0.1
    if kind == "misleading":
        # Whatever is sampled is larger than all else.
        x.view(-1)[::32] += 100
    if kind == "huge":
        x.view(-1)[:1000] = torch.finfo(torch.float32).max
    entries = x.numel()
    ordered = x.flatten().sort(descending=True).values
    for k in (1, 2, entries // 100, entries // 5, entries // 2, entries - 1, entries):
        assert largest_of_buffer(x.clone(), (k,)) == [float(ordered[k - 1])]
    ks = (entries // 5, 1, entries // 3)
    assert largest_of_buffer(x.clone(), ks) == [float(ordered[k - 1]) for k in ks]


def test_an_election_of_doubles_is_the_reference() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(-2, 3, (3, 11, 13), generator=generator).double()
    weights = torch.tensor([0.5, -1.0, 1.0], dtype=torch.float64)
    expected = reference.elect(x, weights.view(-1, 1, 1), 1.5, False)
    torch.testing.assert_close(elect(x, weights, 1.5, False), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("sparsify", ["none", "trim", "drop", "breadcrumbs", "della"])
@pytest.mark.parametrize("consensus", ["sum", "elect"])
def test_cpu_tiles_are_the_reference_tiles(sparsify: Any, consensus: Any) -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = [
        TileInput(
            torch.randint(-3, 4, (21, rank), generator=generator).float(),
            torch.randint(-3, 4, (rank, 33), generator=generator).float(),
            weight, Stream(7, t, 9), low=4.0, high=11.0,
        )
        for t, (rank, weight) in enumerate([(3, 1.0), (2, -0.5), (5, 2.0)])
    ]  # fmt: skip
    density, epsilon = (0.5, 0.25) if sparsify == "della" else (0.5, 0.0)
    for frequency in (False, True):
        rule = TileRule(sparsify, consensus, scale=2.0, frequency=frequency, density=density, epsilon=epsilon)
        expected = ReferenceTiles().merge_rows(inputs, rule, 5, 20)
        torch.testing.assert_close(CpuTiles().merge_rows(inputs, rule, 5, 20), expected, rtol=1e-6, atol=0)
        gate = torch.rand(15, 33, generator=generator) < 0.5
        expected = ReferenceTiles().merge_rows(inputs, rule, 5, 20, gate)
        torch.testing.assert_close(CpuTiles().merge_rows(inputs, rule, 5, 20, gate), expected, rtol=1e-6, atol=0)


def test_backends_are_chosen_by_name_and_refused_by_name() -> None:
    rule, cpu = TileRule("trim", "elect"), torch.device("cpu")
    assert select_backend("auto", cpu, rule).name == "cpu"
    assert select_backend("reference", cpu, rule).name == "reference"
    for name in ("triton", "nope"):
        with pytest.raises(BackendUnavailable, match=name):
            select_backend(name, cpu, rule)
    with pytest.raises(BackendUnavailable):
        select_backend("cpu", torch.device("cuda"), rule)
    assert usable_device("cpu") == cpu
    for name in ("meta", "nope", "cuda:77"):
        with pytest.raises(BackendUnavailable):
            usable_device(name)
