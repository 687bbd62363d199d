"""Factors that are used as they are stored: what their copies hold, and when the stored ones are let go."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amalgam.engine.cpu.factors import ModuleFactors
from amalgam.engine.cpu.plan import TALL_ROWS, plan_rows
from amalgam.engine.cpu.products import add_low_rank_
from amalgam.engine.cpu.sources import PlaceholderStack, SlotContents, StoredPair
from tests.unit.engine.cpu.product_cases import block_diag

SLOTS = 4
MAX_RANK = 16
WIDTH_IN = 37
WIDTHS = (40, 33)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def stacks(
    slots: int = SLOTS, dtype: torch.dtype = torch.float32
) -> tuple[PlaceholderStack, PlaceholderStack, SlotContents]:
    """As vLLM's layers have them, for one slot."""
    contents = SlotContents()
    a = [torch.zeros(1, 1, MAX_RANK, WIDTH_IN, dtype=dtype) for _ in WIDTHS]
    b = [torch.zeros(1, 1, width, MAX_RANK, dtype=dtype) for width in WIDTHS]
    return PlaceholderStack(a, slots, contents), PlaceholderStack(b, slots, contents), contents


def random_pairs(
    ranks: Sequence[Any],
    *,
    seed: int,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.bfloat16),
    scale: float = 0.3,
) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """Stored tensors by slice and what they mean in float32; rank 0 is a slice that the adapter leaves alone."""
    generator = torch.Generator().manual_seed(seed)
    pairs, meant = [], []
    for rank, width in zip(ranks, WIDTHS, strict=True):
        a = torch.randn(rank, WIDTH_IN, generator=generator).to(dtypes[0])
        b = torch.randn(width, rank, generator=generator).to(dtypes[1])
        pairs.append(StoredPair.of(a, b, scale) if rank else None)
        meant.append((a.float(), b.float() * torch.tensor(scale)))
    return pairs, meant


def assert_slot_holds(factors: ModuleFactors, slot: int, meant: Sequence[tuple[Tensor, Tensor]]) -> None:
    down = torch.cat([a for a, _ in meant])
    up = block_diag(*[b.T for _, b in meant])
    got = factors.slot(slot)
    if not len(down):
        assert got is None
        return
    assert got is not None
    assert got.down.T.equal(down)
    assert got.up.equal(up)
    batch = factors.batch(slot, slot + 1)
    assert batch is not None
    rows, columns = batch
    assert not rows[0, :, len(down) :].any()
    assert not columns[0, len(down) :].any()


def test_the_stacks_have_vllms_shapes_and_no_memory() -> None:
    a, b, _ = stacks()
    assert [tuple(t.shape) for t in a] == [(SLOTS, 1, MAX_RANK, WIDTH_IN)] * 2
    assert [tuple(t.shape) for t in b] == [(SLOTS, 1, width, MAX_RANK) for width in WIDTHS]
    assert max(t.untyped_storage().nbytes() for t in (*a, *b)) == 4


@pytest.mark.parametrize("b_dtype", DTYPES)
@pytest.mark.parametrize("a_dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 2.0, 0.3])
def test_copies_are_the_stored_values_times_their_scale_rounded_once(
    a_dtype: torch.dtype, b_dtype: torch.dtype, scale: float
) -> None:
    a, b, contents = stacks()
    factors = ModuleFactors(a, b, torch.float32)
    pairs, meant = random_pairs((5, 3), seed=1, dtypes=(a_dtype, b_dtype), scale=scale)
    contents.put(2, pairs)
    factors.refresh([])
    assert_slot_holds(factors, 2, meant)


@pytest.mark.parametrize("b_dtype", DTYPES)
@pytest.mark.parametrize("a_dtype", DTYPES)
def test_a_bfloat16_model_keeps_bfloat16_whatever_is_stored_and_its_scales_apart(
    a_dtype: torch.dtype, b_dtype: torch.dtype
) -> None:
    a, b, contents = stacks(dtype=torch.bfloat16)
    factors = ModuleFactors(a, b, torch.bfloat16)
    pairs, meant = random_pairs((5, 3), seed=1, dtypes=(a_dtype, b_dtype), scale=1.0)
    scales = (0.3, 7.0)
    contents.put(2, [pair._replace(scale=scale) for pair, scale in zip(pairs, scales, strict=True)])
    factors.refresh([])
    kept = factors.arrays(np.array([2]))
    assert kept.down.dtype == kept.up.dtype == np.uint16
    assert kept.scales[2].tolist() == [np.float32(0.3)] * 5 + [7.0] * 3
    rounded = [(a.bfloat16().float(), b.bfloat16().float()) for a, b in meant]
    assert_slot_holds(factors, 2, [(a, b * torch.tensor(s)) for (a, b), s in zip(rounded, scales, strict=True)])


@pytest.mark.parametrize("scales", [(0.3, 0.3), (0.3, 7.0)], ids=["one scale", "two scales"])
@pytest.mark.parametrize("ranks", [(5, 3), (0, 4), (4, 0), (16, 16)], ids=str)
@pytest.mark.parametrize("rows", [1, 7, TALL_ROWS])
def test_bfloat16_products_in_units_and_loops_take_each_slices_scale(
    rows: int, ranks: Sequence[Any], scales: Any
) -> None:
    a, b, contents = stacks(dtype=torch.bfloat16)
    factors = ModuleFactors(a, b, torch.bfloat16)
    pairs, meant = random_pairs(ranks, seed=1, scale=1.0)
    contents.put(2, [pair and pair._replace(scale=scale) for pair, scale in zip(pairs, scales, strict=True)])
    factors.refresh([])
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, WIDTH_IN, generator=generator).bfloat16()
    down = torch.cat([part for part, _ in meant]).double()
    up = block_diag(*[part.T * scale for (_, part), scale in zip(meant, scales, strict=True)]).double()
    for has_units in (False, True):
        y = torch.zeros(rows, sum(WIDTHS), dtype=torch.bfloat16)
        add_low_rank_(y, x, factors, plan_rows(torch.tensor([2] * rows), compiled=True, has_units=has_units))
        # The result is rounded to 8 bits of mantissa; sums may cancel.
        torch.testing.assert_close(y.double(), x.double() @ down.T @ up, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("values", [[float("inf"), -0.0, 1e-40], [float("-inf"), 3e38, -1e-45]])
def test_every_bit_pattern_is_kept(values: Any) -> None:
    """Infinities, subnormals and the sign of zero; a scale of one changes nothing."""
    a, b, contents = stacks()
    factors = ModuleFactors(a, b, torch.float32)
    stored = torch.tensor(values).repeat(WIDTH_IN)[:WIDTH_IN].view(1, -1)
    contents.put(0, [StoredPair.of(stored, torch.ones(WIDTHS[0], 1), 1.0), None])
    factors.refresh([])
    found = factors.slot(0)
    assert found is not None
    assert found.down.T.view(torch.int32).equal(stored.view(torch.int32))


SUCCESSIONS = {
    "smaller": [(2, 1)],
    "larger": [(7, 6)],
    "much larger, later": [(1, 1), (16, 16), (3, 0)],
    "as large, split otherwise": [(8, 0), (0, 8), (1, 7)],
    "to nobody and on": [(0, 0), (5, 6)],
}


@pytest.mark.parametrize("asked", [True, False], ids=["asked in between", "asked at the end"])
@pytest.mark.parametrize("adapters", SUCCESSIONS.values(), ids=SUCCESSIONS.keys())
def test_a_slot_that_gets_another_adapter_keeps_nothing_of_the_last_one(adapters: Sequence[Any], asked: bool) -> None:
    a, b, given = stacks()
    factors = ModuleFactors(a, b, torch.float32)
    other, other_means = random_pairs((4, 4), seed=100)
    first, means = random_pairs((4, 4), seed=101)
    given.put(0, other)
    given.put(1, first)
    factors.refresh([])
    assert_slot_holds(factors, 0, other_means)
    assert_slot_holds(factors, 1, means)
    for seed, ranks in enumerate(adapters):
        pairs, means = random_pairs(ranks, seed=seed)
        given.put(1, pairs)
        factors.refresh([])
        if asked:
            assert_slot_holds(factors, 1, means)
    assert_slot_holds(factors, 1, means)
    # More room for one slot does not cost another one its factors, whose stored form is gone by now.
    assert_slot_holds(factors, 0, other_means)
    assert 0 not in given.pairs


def test_what_is_stored_is_let_go_once_it_is_copied_and_not_before() -> None:
    a, b, contents = stacks()
    factors = ModuleFactors(a, b, torch.float32)
    pairs, _ = random_pairs((4, 2), seed=5)
    contents.put(3, pairs)
    factors.refresh([])
    factors.arrays(np.array([0, 1]))
    assert contents.pairs[3] == pairs
    factors.arrays(np.array([3]))
    assert 3 not in contents.pairs


def test_nothing_is_done_where_nothing_was_stored() -> None:
    a, b, contents = stacks()
    factors = ModuleFactors(a, b, torch.float32)
    contents.put(0, random_pairs((4, 2), seed=5, dtypes=(torch.float16, torch.bfloat16))[0])
    factors.refresh([])
    before = factors.slot(0)
    factors.refresh([7, 8])
    assert factors.slot(0) is before
    assert not contents.ranks


def test_bfloat16_is_kept_bit_for_bit_with_its_scales_apart() -> None:
    a, b, contents = stacks()
    factors = ModuleFactors(a, b, torch.float32)
    pairs, _ = random_pairs((3, 2), seed=5, scale=0.3)
    pairs[1] = pairs[1]._replace(scale=7.0)
    contents.put(1, pairs)
    factors.refresh([])
    kept = factors.arrays(np.array([1]))
    assert kept.down.dtype == kept.up.dtype == np.uint16
    assert (kept.down[1, :5] == np.concatenate([pair.a.bits for pair in pairs])).all()
    assert (kept.up[1, :3, : WIDTHS[0]] == pairs[0].b.bits.T).all()
    assert (kept.up[1, 3:5, WIDTHS[0] :] == pairs[1].b.bits.T).all()
    assert kept.scales[1].tolist() == [np.float32(0.3)] * 3 + [7.0] * 2


def product(factors: ModuleFactors, x: Tensor, y: Tensor, slots: Sequence[int]) -> Tensor:
    add_low_rank_(y, x, factors, plan_rows(torch.tensor(slots), compiled=True))
    return y


@pytest.mark.parametrize("rows", [1, 2, 3, 40], ids=["one row", "two", "three", "a prompt"])
@pytest.mark.parametrize("second", DTYPES)
@pytest.mark.parametrize("larger", [False, True])
def test_products_over_adapters_of_one_type_or_of_several(rows: int, second: torch.dtype, larger: bool) -> None:
    """The first adapter is bfloat16, with ranks and scales of its own for each slice; then comes another."""
    a, b, contents = stacks()
    factors = ModuleFactors(a, b, torch.float32)
    first, first_means = random_pairs((5, 3), seed=1, scale=0.3)
    other, other_means = random_pairs((9, 6) if larger else (2, 0), seed=2, dtypes=(second, second), scale=1.7)
    generator = torch.Generator().manual_seed(3)
    contents.put(2, first)
    for slots, means in (([2] * rows, [first_means]), ([2] * rows + [-1] + [0] * rows, [first_means, other_means])):
        factors.refresh([])
        x = torch.randn(len(slots), WIDTH_IN, generator=generator)
        y = torch.randn(len(slots), sum(WIDTHS), generator=generator)
        want = y.double()
        for of_slot, meant in zip((2, 0), means, strict=False):
            down = torch.cat([part for part, _ in meant]).double()
            up = block_diag(*[part.T for _, part in meant]).double()
            mine = torch.tensor(slots) == of_slot
            want[mine] += x[mine].double() @ down.T @ up
        torch.testing.assert_close(product(factors, x, y, slots).double(), want, rtol=1e-4, atol=1e-4)
        contents.put(0, other)
    kept = factors.arrays(np.array([0, 2]))
    assert (kept.down.dtype == np.uint16) == (second is torch.bfloat16)
    assert_slot_holds(factors, 2, first_means)
    assert_slot_holds(factors, 0, other_means)
