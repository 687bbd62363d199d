"""Factors that are handed over as they are stored: what their copies hold, and when the stored ones are let go."""

import numpy as np
import pytest
import torch

from amalgam.engine.cpu_lora_factors import ModuleFactors
from amalgam.engine.cpu_lora_handed import HandedStack, Hands, StoredPair

SLOTS = 4
MAX_RANK = 16
WIDTH_IN = 37
WIDTHS = (40, 33)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def stacks():
    """As vLLM's layers have them, for one slot."""
    hands = Hands()
    a = [torch.zeros(1, 1, MAX_RANK, WIDTH_IN) for _ in WIDTHS]
    b = [torch.zeros(1, 1, width, MAX_RANK) for width in WIDTHS]
    return HandedStack(a, SLOTS, hands), HandedStack(b, SLOTS, hands), hands


def random_pairs(ranks, *, seed, dtypes=(torch.bfloat16, torch.bfloat16), scale=0.3):
    """Stored tensors by slice and what they mean in float32; rank 0 is a slice that the adapter leaves alone."""
    generator = torch.Generator().manual_seed(seed)
    pairs, meant = [], []
    for rank, width in zip(ranks, WIDTHS, strict=True):
        a = torch.randn(rank, WIDTH_IN, generator=generator).to(dtypes[0])
        b = torch.randn(width, rank, generator=generator).to(dtypes[1])
        pairs.append(StoredPair.of(a, b, scale) if rank else None)
        meant.append((a.float(), b.float() * torch.tensor(scale)))
    return pairs, meant


def assert_slot_holds(factors, slot, meant, dtype=torch.float32):
    down = torch.cat([a for a, _ in meant]).to(dtype)
    up = torch.block_diag(*[b.T for _, b in meant]).to(dtype)
    got = factors.slot(slot)
    if not len(down):
        assert got is None
        return
    assert got.down.T.equal(down)
    assert got.up.equal(up)
    rows, columns = factors.batch(slot, slot + 1)
    assert not rows[0, :, len(down) :].any()
    assert not columns[0, len(down) :].any()


def test_the_stacks_have_vllms_shapes_and_no_memory():
    a, b, _ = stacks()
    assert [tuple(t.shape) for t in a] == [(SLOTS, 1, MAX_RANK, WIDTH_IN)] * 2
    assert [tuple(t.shape) for t in b] == [(SLOTS, 1, width, MAX_RANK) for width in WIDTHS]
    assert max(t.untyped_storage().nbytes() for t in (*a, *b)) == 4


@pytest.mark.parametrize("product", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("b_dtype", DTYPES)
@pytest.mark.parametrize("a_dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 2.0, 0.3])
def test_copies_are_the_stored_values_times_their_scale_rounded_once(a_dtype, b_dtype, scale, product):
    a, b, hands = stacks()
    factors = ModuleFactors(a, b, product)
    pairs, meant = random_pairs((5, 3), seed=1, dtypes=(a_dtype, b_dtype), scale=scale)
    hands.give(2, pairs)
    factors.refresh([])
    assert_slot_holds(factors, 2, meant, product)


@pytest.mark.parametrize("values", [[float("inf"), -0.0, 1e-40], [float("-inf"), 3e38, -1e-45]])
def test_every_bit_pattern_is_kept(values):
    """Infinities, subnormals and the sign of zero; a scale of one changes nothing."""
    a, b, hands = stacks()
    factors = ModuleFactors(a, b, torch.float32)
    stored = torch.tensor(values).repeat(WIDTH_IN)[:WIDTH_IN].view(1, -1)
    hands.give(0, [StoredPair.of(stored, torch.ones(WIDTHS[0], 1), 1.0), None])
    factors.refresh([])
    assert factors.slot(0).down.T.view(torch.int32).equal(stored.view(torch.int32))


HANDS = {
    "smaller": [(2, 1)],
    "larger": [(7, 6)],
    "much larger, later": [(1, 1), (16, 16), (3, 0)],
    "as large, split otherwise": [(8, 0), (0, 8), (1, 7)],
    "to nobody and on": [(0, 0), (5, 6)],
}


@pytest.mark.parametrize("asked", [True, False], ids=["asked in between", "asked at the end"])
@pytest.mark.parametrize("hands", HANDS.values(), ids=HANDS.keys())
def test_a_slot_that_changes_hands_keeps_nothing_of_the_last_adapter(hands, asked):
    a, b, given = stacks()
    factors = ModuleFactors(a, b, torch.float32)
    other, other_means = random_pairs((4, 4), seed=100)
    first, means = random_pairs((4, 4), seed=101)
    given.give(0, other)
    given.give(1, first)
    factors.refresh([])
    assert_slot_holds(factors, 0, other_means)
    assert_slot_holds(factors, 1, means)
    for seed, ranks in enumerate(hands):
        pairs, means = random_pairs(ranks, seed=seed)
        given.give(1, pairs)
        factors.refresh([])
        if asked:
            assert_slot_holds(factors, 1, means)
    assert_slot_holds(factors, 1, means)
    # More room for one slot does not cost another one its factors, whose stored form is gone by now.
    assert_slot_holds(factors, 0, other_means)
    assert 0 not in given.pairs


def test_what_is_stored_is_let_go_once_it_is_copied_and_not_before():
    a, b, hands = stacks()
    factors = ModuleFactors(a, b, torch.float32)
    pairs, _ = random_pairs((4, 2), seed=5)
    hands.give(3, pairs)
    factors.refresh([])
    factors.arrays(np.array([0, 1]))
    assert hands.pairs[3] == pairs
    factors.arrays(np.array([3]))
    assert 3 not in hands.pairs


def test_nothing_is_done_where_nobody_handed_anything_over():
    a, b, hands = stacks()
    factors = ModuleFactors(a, b, torch.float32)
    hands.give(0, random_pairs((4, 2), seed=5)[0])
    factors.refresh([])
    before = factors.slot(0)
    factors.refresh([7, 8])
    assert factors.slot(0) is before
    assert not hands.ranks
