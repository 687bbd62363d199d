"""Order statistics by counting, interpreted: the very magnitudes that the merge kernel makes, sorted."""

from typing import Any

import pytest
import torch
from torch import Tensor

from amalgam.kernels.tiles import TileRule

PLAIN, DROP = TileRule("none", "sum"), TileRule("drop", "sum", density=0.5)


def make_batch(seed: int = 0, shape: Any = (3, 70, 67), ranks: tuple[int, ...] = (5, 3)) -> Any:
    from amalgam.kernels.module_batch import ModuleBatch

    count, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    begins = tuple(sum(ranks[:t]) for t in range(len(ranks) + 1))
    return ModuleBatch(
        B=torch.randn(count, height, begins[-1], generator=generator),
        A=torch.randn(count, begins[-1], width, generator=generator),
        begins=begins,
        weights=torch.ones(count, len(ranks)),
        tensors=torch.tensor(range(20, 20 + count)),
        adapters=tuple(range(1, 1 + len(ranks))),
        seed=7,
    )


def sorted_magnitudes(batch: Any, rule: TileRule, t: int) -> Tensor:
    """Those of one input, [n, entries], descending, as the merge kernel makes them."""
    from dataclasses import replace

    from amalgam.kernels.triton_backend import merge_batch

    begin, end = batch.begins[t : t + 2]
    one = replace(
        batch, B=batch.B[:, :, begin:end].contiguous(), A=batch.A[:, begin:end].contiguous(), begins=(0, end - begin),
        weights=batch.weights[:, :1].contiguous(), adapters=batch.adapters[t : t + 1],
    )  # fmt: skip
    merged = merge_batch(one, rule, None, None, range(batch.shape[1]))
    return merged.abs().flatten(1).sort(dim=1, descending=True).values


@pytest.mark.parametrize("rule", [PLAIN, DROP])
@pytest.mark.parametrize("samples", [128, 1 << 15])
def test_every_statistic_is_the_sorted_one(
    selection: Any, monkeypatch: pytest.MonkeyPatch, samples: int, rule: TileRule
) -> None:
    """With a sample and a bracket from it, and without."""
    monkeypatch.setattr(selection, "SAMPLES", samples)
    batch = make_batch()
    expected = [sorted_magnitudes(batch, rule, t) for t in range(2)]
    for k in (1, 900, 70 * 67) if rule is PLAIN else (40, 2300):
        found = selection.largest_of_inputs(batch, rule, k)
        assert torch.equal(found, torch.stack([one[:, k - 1] for one in expected], dim=1))
        assert torch.equal(selection.largest_of_batch(batch, rule, 1, k), found[:, 1])


def test_samples_bracket_each_module_of_its_own(selection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SAMPLES", 512)
    batch = make_batch(seed=1)
    exact = sorted_magnitudes(batch, PLAIN, 0).view(torch.int32)
    narrow = 0
    for k in (1, 900, 2000, 4600):
        where = selection.bracket(batch, PLAIN, 0, k)
        answer = exact[:, k - 1]
        assert bool(((where.low <= answer) & (answer <= where.low + where.span)).all())
        narrow += int((where.span < selection.everything(batch).span // 16).sum())
    assert narrow >= 6


def test_a_sample_is_of_the_matrix_and_of_all_of_it(selection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges of a bracket are magnitudes of entries, up to the order of sums; of a matrix with one large row too."""
    monkeypatch.setattr(selection, "SAMPLES", 256)
    batch = make_batch(seed=2)
    batch.B[:, 33] *= 100
    where = selection.bracket(batch, PLAIN, 1, 66)
    begin, end = batch.begins[1:3]
    exact = (batch.B[:, :, begin:end] @ batch.A[:, begin:end]).abs().flatten(1)
    for edge in (where.low, where.low + where.span):
        values = edge.view(torch.float32)
        nearest = (exact - values[:, None]).abs().min(dim=1).values
        assert bool(((nearest <= 1e-5 * values) | ~torch.isfinite(values)).all())
    assert bool((where.low.view(torch.float32) < 10).all())
    assert bool(((where.low + where.span).view(torch.float32) > 50).all())


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_bracket_that_misses_or_is_too_wide_is_noticed(selection: Any, passes: int) -> None:
    batch = make_batch(seed=3)
    exact, k = sorted_magnitudes(batch, PLAIN, 0).view(torch.int32), 500
    answer = exact[:, k - 1].contiguous()
    cases = {
        "below": (answer + 1, torch.full_like(answer, 1 << 10)),
        "above": (answer - (1 << 11), torch.full_like(answer, 1 << 10)),
        "wide": (torch.ones_like(answer), torch.full_like(answer, 0x7F7FFFFF)),
        "its own": (answer, torch.zeros_like(answer)),
        "tight": (answer - 3, torch.full_like(answer, 5)),
    }
    for name, (low, span) in cases.items():
        bits, sure = selection.digits(batch, PLAIN, 0, k, selection.Bracket(low, span, passes))
        expected = name in ("its own", "tight") or (name == "wide" and passes == 3)
        assert sure.tolist() == [expected] * 3, name
        if expected:
            assert torch.equal(bits, answer), name


def test_a_miss_is_mended(selection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(seed=4)
    beside = torch.tensor([1 << 30, 1, 1 << 30], dtype=torch.int32)
    monkeypatch.setattr(selection, "bracket", lambda *_: selection.Bracket(beside, torch.full_like(beside, 7), 2))
    for t in range(2):
        assert torch.equal(selection.largest_of_batch(batch, PLAIN, t, 321), sorted_magnitudes(batch, PLAIN, t)[:, 320])


@pytest.mark.parametrize("samples", [128, 1 << 15])
def test_equal_magnitudes_and_zeros(selection: Any, monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    """A module of zeros, one of few different magnitudes, and one with more zeros than are asked for."""
    monkeypatch.setattr(selection, "SAMPLES", samples)
    batch = make_batch(seed=5)
    batch.B[0] = 0
    batch.B[1], batch.A[1] = batch.B[1].sign(), batch.A[1].sign()
    batch.B[2, 20:] = 0
    for t in range(2):
        expected = sorted_magnitudes(batch, PLAIN, t)
        for k in (1000, 1340, 1341, 3000):
            assert torch.equal(selection.largest_of_batch(batch, PLAIN, t, k), expected[:, k - 1])


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_what_overflows_is_larger_than_all(selection: Any) -> None:
    batch = make_batch(seed=6)
    batch.B[:, 0, 0], batch.A[:, 0, 0] = 3e38, 3e38
    assert bool(torch.isinf(selection.largest_of_batch(batch, PLAIN, 0, 1)).all())


def test_no_counter_is_shared_or_left_over(selection: Any) -> None:
    """Modules and inputs count for themselves: alone and together they find the same."""
    batch = make_batch(seed=8, shape=(4, 33, 130))
    together = selection.largest_of_inputs(batch, PLAIN, 77)
    for row in range(4):
        alone = selection.largest_of_inputs(batch.rows(slice(row, row + 1)), PLAIN, 77)
        assert torch.equal(alone[0], together[row])
