"""The copies of vLLM's stacked tensors: what they hold after each kind of write, and that no write is missed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amalgam.engine.cpu.copies import used_rows
from amalgam.engine.cpu.factors import FactorCache, ModuleFactors
from amalgam.engine.cpu.plan import plan_rows
from amalgam.engine.cpu.products import add_low_rank_
from amalgam.engine.cpu.sources import CompiledSource, TorchSource, source_of
from tests.unit.engine.cpu.product_cases import (
    FLOAT32_TOLERANCE,
    MAX_RANK,
    SLICES,
    SLOTS,
    WIDTH_IN,
    block_diag,
    fresh,
    random_factors,
    random_rows,
    reference,
)

IDS = [1, 2, 3, 4, None]
"""Adapter ids by slot."""


@pytest.fixture(params=[False, True], ids=["torch", "compiled"])
def compiled(request: pytest.FixtureRequest) -> bool:
    """Whether a plan of few rows goes to the compiled loops."""
    return bool(request.param)


@pytest.fixture
def cache() -> FactorCache:
    return FactorCache()


def test_weights_written_later_are_used(cache: FactorCache, compiled: bool) -> None:
    """vLLM writes a newly active adapter into its stacked tensors, in inference mode and through views."""
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 8, 0, 8, 8))
    mix = [0, 1, 2, 3]
    x, y = random_rows(mix, SLICES["qkv"])
    plan = plan_rows(torch.tensor(mix), compiled=compiled)
    add_low_rank_(y.clone(), x, cache.get(a_stacked, b_stacked, range(SLOTS)), plan)
    with torch.inference_mode():
        new_a, new_b = random_factors(SLICES["qkv"], ranks=(0, 0, 32, 0, 0), seed=9)
        for old, new in zip((*a_stacked, *b_stacked), (*new_a, *new_b), strict=True):
            old[2, 0, :40, :32].copy_(new[2, 0, :40, :32])
    for b in b_stacked:
        b[0, 0, :, 1].mul_(3)
    got = y.clone()
    add_low_rank_(got, x, cache.get(a_stacked, b_stacked, range(SLOTS)), plan)
    want = reference(y, x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)


def test_factors_are_copied_once_while_nothing_changes(cache: FactorCache) -> None:
    a_stacked, b_stacked = random_factors((72,), ranks=(8,) * SLOTS)
    assert cache.get(a_stacked, b_stacked, range(SLOTS)).slot(0) is cache.get(
        tuple(a_stacked), b_stacked, range(SLOTS)
    ).slot(0)


def activate(
    a_stacked: Sequence[Tensor], b_stacked: Sequence[Tensor], slot: int, *, ranks: Sequence[Any], seed: int
) -> None:
    """Put another adapter into a slot, with the writes that vLLM does; rank 0 is a slice that it does not change."""
    new_a, new_b = random_factors(SLICES["qkv"], ranks=(ranks,) * SLOTS, seed=seed)
    with torch.inference_mode():
        for stacked in (*a_stacked, *b_stacked):
            stacked[slot] = 0
        for part, rank in enumerate(ranks):
            if rank:
                a_stacked[part][slot, 0, :rank].copy_(new_a[part][slot, 0, :rank])
                b_stacked[part][slot, 0, :, :rank].copy_(new_b[part][slot, 0, :, :rank])


def dense(a_stacked: Sequence[Tensor], b_stacked: Sequence[Tensor], slot: int) -> tuple[Tensor, Tensor]:
    """What a slot's copies hold by their definition: down [rank, in] and up [rank, out], of the rank it really has."""
    ranks = [int(a[slot, 0].any(dim=1).nonzero().max()) + 1 if a[slot].any() else 0 for a in a_stacked]
    down = torch.cat([a[slot, 0, :rank] for a, rank in zip(a_stacked, ranks, strict=True)])
    up = block_diag(*[b[slot, 0, :, :rank].T for b, rank in zip(b_stacked, ranks, strict=True)])
    return down, up


def assert_copies_are(factors: ModuleFactors, a_stacked: Sequence[Tensor], b_stacked: Sequence[Tensor]) -> None:
    """Every slot, exactly, with nothing but zeros beyond its rank."""
    for slot in range(SLOTS):
        want_down, want_up = (matrix.float() for matrix in dense(a_stacked, b_stacked, slot))
        rank = len(want_down)
        got = factors.slot(slot)
        pair = factors.batch(slot, slot + 1)
        assert (got is None) == (pair is None) == (rank == 0)
        if got is None or pair is None:
            continue
        assert got.down.T.equal(want_down)
        assert got.up.equal(want_up)
        down, up = pair
        assert down[0, :, :rank].T.equal(want_down)
        assert up[0, :rank].equal(want_up)
        assert not down[0, :, rank:].any()
        assert not up[0, rank:].any()
        # The blocks alone make up the matrix.
        only = torch.zeros_like(want_up)
        for block in got.blocks:
            only[block.ranks, block.columns] = block.up
        assert only.equal(want_up)
        arrays, stops = factors.arrays(np.array([slot])), [0] + [block.ranks.stop for block in got.blocks]
        assert sorted({0, *arrays.blocks[slot, :, 1].tolist()}) == stops
        assert values(arrays.down[slot, :rank]).equal(want_down)
        assert values(arrays.up[slot, :rank]).equal(want_up)
        assert of_tiles(factors, slot).equal(want_up.T @ want_down)
        assert factors.rank(slot) == rank
        assert factors.twice(slot).float().equal(torch.cat((want_up, want_up)))


def values(kept: Any) -> Tensor:
    """What is kept, in float32."""
    kept = torch.from_numpy(kept)
    found: Tensor = kept.view(torch.bfloat16).float() if kept.dtype == torch.uint16 else kept
    return found


def of_tiles(factors: ModuleFactors, slot: int) -> Tensor:
    """The sum of the products of a slot's tiles, [out, in]."""
    total = torch.zeros(factors.width, WIDTH_IN)
    for tile in factors.tiles(slot):
        total[tile.columns] += tile.scale * (tile.up.float().T @ tile.down.float().T)
    return total


@pytest.mark.parametrize("rank", [0, 3, 8, 20])
@pytest.mark.parametrize("also_in_place", [None, 1])
def test_another_adapter_in_one_slot(rank: int, also_in_place: int | None, cache: FactorCache, compiled: bool) -> None:
    """Slot 3 gets another adapter; where asked, slot 1's weights change too, under the id it had."""
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    before = cache.get(a_stacked, b_stacked, IDS).slot(0)
    activate(a_stacked, b_stacked, 3, ranks=(rank,) * 3, seed=7)
    if also_in_place is not None:
        activate(a_stacked, b_stacked, also_in_place, ranks=(0, 0, 0), seed=8)
    mix = [0, 1, 2, 3, 4, -1] * 3 + [3] * 70
    x, y = random_rows(mix, SLICES["qkv"])
    got = y.clone()
    factors = cache.get(a_stacked, b_stacked, [1, 2, 3, 9, None])
    add_low_rank_(got, x, factors, plan_rows(torch.tensor(mix), compiled=compiled))
    want = reference(y, x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)
    # Other slots are copied again only where that is needed: for a larger rank, or when writes are unaccounted for.
    assert (factors.slot(0) is before) == (rank <= 8 and also_in_place is None)


SUCCESSIONS = {
    "smaller": [(2, 3, 1)],
    "larger": [(9, 12, 10)],
    "larger than all": [(9, 20, 10)],
    "as large": [(8, 8, 8)],
    "as large, split otherwise": [(12, 0, 12), (0, 24, 0), (1, 22, 1), (8, 8, 8)],
    "to nobody and on": [(0, 0, 0), (5, 6, 7)],
    "down and up": [(1, 1, 1), (8, 8, 8), (3, 3, 3), (8, 0, 8), (0, 8, 0)],
}


@pytest.mark.parametrize("adapters", SUCCESSIONS.values(), ids=SUCCESSIONS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", [True, False], ids=["asked in between", "asked at the end"])
def test_a_slot_that_gets_another_adapter_keeps_nothing_of_the_last_one(
    adapters: Sequence[Any], dtype: torch.dtype, asked: bool
) -> None:
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 8, (10, 12, 8), 8, 0), dtype=dtype)
    factors = ModuleFactors(a_stacked, b_stacked, dtype)
    factors.refresh(IDS)
    assert_copies_are(factors, a_stacked, b_stacked)
    for adapter_id, ranks in enumerate(adapters, start=50):
        activate(a_stacked, b_stacked, 3, ranks=ranks, seed=adapter_id)
        factors.refresh([1, 2, 3, adapter_id, None])
        if asked:
            assert_copies_are(factors, a_stacked, b_stacked)
    assert_copies_are(factors, a_stacked, b_stacked)


def test_an_adapter_is_copied_when_it_is_first_asked_for(cache: FactorCache) -> None:
    """A step of other adapters does not wait for one that was just loaded."""
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    everything = np.arange(SLOTS)
    before = cache.get(a_stacked, b_stacked, IDS).arrays(everything).down.copy()
    activate(a_stacked, b_stacked, 3, ranks=(8, 8, 8), seed=7)
    others = cache.get(a_stacked, b_stacked, [1, 2, 3, 9, None]).arrays(np.array([0, 2]))
    assert (others.down == before).all()
    asked = cache.get(a_stacked, b_stacked, [1, 2, 3, 9, None]).arrays(np.array([3]))
    assert (asked.down[3] != before[3]).all()
    assert (asked.down[:3] == before[:3]).all()


def test_a_module_that_only_an_uncopied_adapter_changes_is_not_empty(cache: FactorCache) -> None:
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(0,) * SLOTS)
    assert cache.get(a_stacked, b_stacked, [None] * SLOTS).empty
    activate(a_stacked, b_stacked, 3, ranks=(0, 2, 0), seed=7)
    assert not cache.get(a_stacked, b_stacked, [None, None, None, 9, None]).empty
    activate(a_stacked, b_stacked, 3, ranks=(0, 0, 0), seed=8)
    assert cache.get(a_stacked, b_stacked, [None, None, None, 10, None]).empty


def test_what_is_read_anew_and_has_no_ranks_left_reads_none(cache: FactorCache) -> None:
    """Weights are taken out under the ids they had, so that all is read anew, into copies of a smaller rank."""
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 2, 8, 8, 8))
    cache.get(a_stacked, b_stacked, IDS).arrays(np.arange(SLOTS))
    for slot in (0, 2, 3, 4):
        activate(a_stacked, b_stacked, slot, ranks=(0, 0, 0), seed=7)
    arrays = cache.get(a_stacked, b_stacked, IDS).arrays(np.arange(SLOTS))
    assert arrays.blocks[:, :, 1].max(axis=1).tolist() == [0, 6, 0, 0, 0]
    assert arrays.down.shape[1] == 6


def test_two_slots_that_swap_adapters_at_once(cache: FactorCache) -> None:
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    kept = cache.get(a_stacked, b_stacked, IDS).slot(0)
    activate(a_stacked, b_stacked, 1, ranks=(4, 0, 8), seed=7)
    activate(a_stacked, b_stacked, 4, ranks=(1, 2, 3), seed=8)
    factors = cache.get(a_stacked, b_stacked, [1, 70, 3, 4, 80])
    assert_copies_are(factors, a_stacked, b_stacked)
    assert factors.slot(0) is kept


def test_an_adapter_written_anew_under_its_id(cache: FactorCache) -> None:
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    cache.get(a_stacked, b_stacked, IDS)
    activate(a_stacked, b_stacked, 2, ranks=(8, 8, 8), seed=9)
    assert_copies_are(cache.get(a_stacked, b_stacked, IDS), a_stacked, b_stacked)


def test_a_slot_that_came_back_to_its_first_adapter_unseen(cache: FactorCache) -> None:
    """Between two steps: another adapter goes in, and the first one comes back with other weights."""
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    cache.get(a_stacked, b_stacked, IDS)
    activate(a_stacked, b_stacked, 2, ranks=(3, 3, 3), seed=9)
    activate(a_stacked, b_stacked, 2, ranks=(5, 5, 5), seed=10)
    assert_copies_are(cache.get(a_stacked, b_stacked, IDS), a_stacked, b_stacked)


@pytest.mark.parametrize("rank", [1, 3, 8, 16, 17, 33, MAX_RANK])
@pytest.mark.parametrize("widths", SLICES.values(), ids=SLICES.keys())
def test_both_sources_read_the_same(rank: int, widths: Sequence[int]) -> None:
    a_stacked, b_stacked = random_factors(widths, ranks=(0, rank, MAX_RANK, 1, rank))
    loops, plain = source_of(a_stacked, b_stacked, torch.float32), TorchSource(a_stacked, b_stacked)
    assert isinstance(loops, CompiledSource)
    copies = []
    for source in (loops, plain):
        down = torch.full((SLOTS, MAX_RANK + 5, WIDTH_IN), 7.0)
        up = torch.full((SLOTS, MAX_RANK + 5, sum(widths)), 7.0)
        for part in range(len(widths)):
            ranks = [source.rank(part, slot) for slot in range(SLOTS)]
            assert ranks == [0, rank, MAX_RANK, 1, rank]
            column = sum(widths[:part])
            block = torch.tensor([5, 5 + rank, column, column + widths[part]]).numpy()
            source.copy(part, 1, block, down, up)
        copies.append((down, up))
    assert copies[0][0].equal(copies[1][0])
    assert copies[0][1].equal(copies[1][1])


@pytest.mark.parametrize("odd", ["bfloat16", "product type", "view"])
def test_what_is_not_float32_and_contiguous_is_read_by_torch(odd: Any) -> None:
    a_stacked, b_stacked = random_factors((72,), ranks=(8,) * SLOTS)
    if odd == "bfloat16":
        a_stacked, b_stacked = ((a_stacked[0].bfloat16(),), (b_stacked[0].bfloat16(),))
    if odd == "view":
        a_stacked = (a_stacked[0][:, :, :, 1:],)
    dtype = torch.bfloat16 if odd == "product type" else torch.float32
    assert isinstance(source_of(a_stacked, b_stacked, dtype), TorchSource)


@pytest.mark.parametrize(
    ("last", "rank"), [(float("nan"), 4), (-1e-45, 4), (0.0, 2), (-0.0, 2)], ids=["nan", "tiny", "zero", "minus zero"]
)
def test_rank_ends_with_the_last_row_that_is_not_zero(last: int, rank: int) -> None:
    a = torch.zeros(2, 1, 6, WIDTH_IN)
    a[1, 0, 1, 0] = 1
    a[1, 0, 3, -1] = last
    assert used_rows(a.numpy(), 1) == TorchSource((a,), ()).rank(0, 1) == rank
    assert used_rows(a.numpy(), 0) == TorchSource((a,), ()).rank(0, 0) == 0


def test_rank_is_the_adapters_own() -> None:
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 1, 64, 3, 16))
    factors = fresh(a_stacked, b_stacked)
    slots = [factors.slot(slot) for slot in range(SLOTS)]
    assert [slot.down.shape[1] for slot in slots if slot is not None] == [24, 3, 192, 9, 48]
