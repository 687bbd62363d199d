"""Our LoRA products on CPU against a dense float64 reference."""

import pytest
import torch

from amalgam.engine.cpu_lora_cache import FactorCache, Occupancy, ProductDtype
from amalgam.engine.cpu_lora_factors import ModuleFactors
from amalgam.engine.cpu_lora_ops import add_low_rank_, expand_, shrink_
from amalgam.engine.cpu_lora_plan import plan_rows

SLOTS = 5
MAX_RANK = 64
WIDTH_IN = 48
SLICES = {"qkv": (40, 24, 24), "gate_up": (56, 56), "plain": (72,)}

# float32 sums of at most 64 + 48 terms of size one, in another order than the reference's.
FLOAT32_TOLERANCE = 2e-5
# One rounding of the result to 8 bits of mantissa.
BFLOAT16_TOLERANCE = 2**-8
# Products in bfloat16 round the rank-sized result in between, and the delta before it is added.
NATIVE_BFLOAT16_TOLERANCE = 2**-6

MIXES = {
    "all base": [-1] * 24,
    "one adapter": [2] * 24,
    "one row": [4],
    "one base row": [-1],
    "all different": [0, 1, 2, 3, 4],
    "interleaved": [0, 1, 2, -1] * 9,
    "interleaved, last slot and base": [4, -1] * 12,
    "apart": [0, 2, 4, -1] * 4,
    "skewed": [3] * 15 + [-1] + [0, 1, 2] + [3, 4] * 5 + [-1, 0],
    "many of one slot, scattered": [1, 2, 1, -1] * 40,
    "long runs": [0] * 70 + [-1] * 5 + [1] * 700 + [0] * 20 + [4] * 3,
    "long run among single rows": [0, 1, 2, 3] + [2] * 90 + [-1, 3, 4, 0],
    "two runs": [1, 1, 1, 0],
}


def random_factors(widths, *, ranks, dtype=torch.float32, seed=0):
    """Stacked as vLLM has them: zero beyond each slot's rank."""
    generator = torch.Generator().manual_seed(seed)
    a_stacked, b_stacked = [], []
    for width in widths:
        a = torch.zeros(SLOTS, 1, MAX_RANK, WIDTH_IN)
        b = torch.zeros(SLOTS, 1, width, MAX_RANK)
        for slot, rank in enumerate(ranks):
            a[slot, 0, :rank] = torch.randn(rank, WIDTH_IN, generator=generator) / WIDTH_IN**0.5
            b[slot, 0, :, :rank] = torch.randn(width, rank, generator=generator) / max(rank, 1) ** 0.5
        a_stacked.append(a.to(dtype))
        b_stacked.append(b.to(dtype))
    return tuple(a_stacked), tuple(b_stacked)


def reference(y, x, a_stacked, b_stacked, mix, scale=1.0):
    """Row by row in float64, as the definition says."""
    out = y.double().clone()
    for row, slot in enumerate(mix):
        if slot < 0:
            continue
        start = 0
        for a, b in zip(a_stacked, b_stacked, strict=True):
            width = b.shape[2]
            delta = b[slot, 0].double() @ (a[slot, 0].double() @ x[row].double())
            out[row, start : start + width] += scale * delta
            start += width
    return out


def random_rows(mix, widths, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(mix), WIDTH_IN, generator=generator).to(dtype)
    y = torch.randn(len(mix), sum(widths), generator=generator).to(dtype)
    return x, y


def fresh(a_stacked, b_stacked, dtype=torch.float32):
    factors = ModuleFactors(a_stacked, b_stacked, dtype)
    factors.refresh(range(SLOTS))
    return factors


def assert_base_rows_untouched(after, before, mix):
    base = torch.tensor(mix) < 0
    assert after[base].equal(before[base])


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("widths", SLICES.values(), ids=SLICES.keys())
def test_every_row_gets_its_own_adapter(mix, widths):
    a_stacked, b_stacked = random_factors(widths, ranks=(8, 1, 64, 3, 16))
    x, y = random_rows(mix, widths)
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_rows(torch.tensor(mix)), scale=0.5)
    want = reference(y, x, a_stacked, b_stacked, mix, scale=0.5)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)
    assert_base_rows_untouched(got, y, mix)


@pytest.mark.parametrize("rank", [1, 2, 8, 17, 64])
def test_ranks(rank):
    mix = MIXES["interleaved"] + MIXES["long runs"]
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(rank,) * SLOTS)
    x, y = random_rows(mix, SLICES["qkv"])
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_rows(torch.tensor(mix)))
    want = reference(y, x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize(
    ("native", "tolerance"), [(False, BFLOAT16_TOLERANCE), (True, NATIVE_BFLOAT16_TOLERANCE)], ids=["float32", "native"]
)
@pytest.mark.parametrize("mix", ["interleaved", "long run among single rows", "many of one slot, scattered"])
def test_bfloat16_models(mix, native, tolerance):
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 1, 64, 3, 16), dtype=torch.bfloat16)
    x, y = random_rows(MIXES[mix], SLICES["qkv"], dtype=torch.bfloat16)
    got = y.clone()
    dtype = ProductDtype(native_bfloat16=native)(torch.bfloat16)
    add_low_rank_(got, x, fresh(a_stacked, b_stacked, dtype), plan_rows(torch.tensor(MIXES[mix])))
    want = reference(y, x, a_stacked, b_stacked, MIXES[mix])
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=2 * tolerance)
    assert_base_rows_untouched(got, y, MIXES[mix])


def test_products_are_in_float32_without_bfloat16_hardware():
    assert ProductDtype(native_bfloat16=False)(torch.bfloat16) == torch.float32
    assert ProductDtype(native_bfloat16=True)(torch.bfloat16) == torch.bfloat16
    assert ProductDtype(native_bfloat16=True)(torch.float16) == torch.float32


def test_float32_output_beside_bfloat16_input():
    """A head that computes its logits in float32."""
    mix = MIXES["skewed"]
    a_stacked, b_stacked = random_factors(SLICES["plain"], ranks=(8,) * SLOTS, dtype=torch.bfloat16)
    x, _ = random_rows(mix, SLICES["plain"], dtype=torch.bfloat16)
    y = torch.zeros(len(mix), 72)
    add_low_rank_(y, x, fresh(a_stacked, b_stacked), plan_rows(torch.tensor(mix)))
    want = reference(torch.zeros_like(y), x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(y.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)


def test_base_rows_keep_their_bits_even_where_inputs_are_not_finite():
    mix = [4, -1, 3, -1, 4]
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    x, y = random_rows(mix, SLICES["qkv"])
    x[1], y[3] = float("nan"), -0.0
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_rows(torch.tensor(mix)))
    assert got[[1, 3]].view(torch.int32).equal(y[[1, 3]].view(torch.int32))
    assert got.isfinite().all()


@pytest.mark.parametrize("columns", [72, 80, 64])
def test_output_may_be_wider_or_narrower_by_padding(columns):
    mix = MIXES["interleaved"] + [0] * 80
    a_stacked, b_stacked = random_factors((72,), ranks=(8,) * SLOTS)
    x, _ = random_rows(mix, (72,))
    got = torch.full((len(mix), columns), 7.0)
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_rows(torch.tensor(mix)))
    want = reference(torch.full((len(mix), 72), 7.0), x, a_stacked, b_stacked, mix)
    common = min(columns, 72)
    torch.testing.assert_close(got[:, :common].double(), want[:, :common], rtol=1e-5, atol=1e-5)
    assert (got[:, common:] == 7.0).all()


def test_modules_an_adapter_does_not_change():
    """Slot 1 changes nothing here, slot 3 only the middle slice."""
    mix = [0, 1, 3, -1] * 6 + [3] * 100 + [1] * 30
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 0, 4, 8, 2))
    for slice_index in (0, 2):
        a_stacked[slice_index][3] = 0
        b_stacked[slice_index][3] = 0
    x, y = random_rows(mix, SLICES["qkv"])
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_rows(torch.tensor(mix)))
    want = reference(y, x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)
    assert got[torch.tensor(mix) == 1].equal(y[torch.tensor(mix) == 1])


def test_rows_of_zeros_in_the_middle_of_a_factor_do_not_end_it():
    a_stacked, b_stacked = random_factors((72,), ranks=(8,) * SLOTS)
    a_stacked[0][2, 0, 3] = 0
    x, y = random_rows([2] * 4, (72,))
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_rows(torch.tensor([2] * 4)))
    torch.testing.assert_close(
        got.double(), reference(y, x, a_stacked, b_stacked, [2] * 4), rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE
    )


def test_weights_written_later_are_used():
    """vLLM writes a newly active adapter into its stacked tensors, in inference mode and through views."""
    cache = FactorCache(ProductDtype(native_bfloat16=False))
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 8, 0, 8, 8))
    mix = [0, 1, 2, 3]
    x, y = random_rows(mix, SLICES["qkv"])
    plan = plan_rows(torch.tensor(mix))
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


def test_factors_are_copied_once_while_nothing_changes():
    cache = FactorCache(ProductDtype(native_bfloat16=False))
    a_stacked, b_stacked = random_factors((72,), ranks=(8,) * SLOTS)
    assert cache.get(a_stacked, b_stacked, range(SLOTS)).slot(0) is cache.get(
        tuple(a_stacked), b_stacked, range(SLOTS)
    ).slot(0)


def activate(a_stacked, b_stacked, slot, *, rank, seed):
    """Put another adapter into a slot, with the writes that vLLM does."""
    new_a, new_b = random_factors(SLICES["qkv"], ranks=(rank,) * SLOTS, seed=seed)
    with torch.inference_mode():
        for stacked in (*a_stacked, *b_stacked):
            stacked[slot] = 0
        if rank:
            for old, new in zip(a_stacked, new_a, strict=True):
                old[slot, 0, :rank].copy_(new[slot, 0, :rank])
            for old, new in zip(b_stacked, new_b, strict=True):
                old[slot, 0, :, :rank].copy_(new[slot, 0, :, :rank])


@pytest.mark.parametrize("rank", [0, 3, 8, 20])
@pytest.mark.parametrize("also_in_place", [None, 1])
def test_another_adapter_in_one_slot(rank, also_in_place):
    """Slot 3 gets another adapter; where asked, slot 1's weights change too, under the id it had."""
    cache = FactorCache(ProductDtype(native_bfloat16=False))
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    before = cache.get(a_stacked, b_stacked, [1, 2, 3, 4, None]).slot(0)
    activate(a_stacked, b_stacked, 3, rank=rank, seed=7)
    if also_in_place is not None:
        activate(a_stacked, b_stacked, also_in_place, rank=0, seed=8)
    mix = [0, 1, 2, 3, 4, -1] * 3 + [3] * 70
    x, y = random_rows(mix, SLICES["qkv"])
    got = y.clone()
    factors = cache.get(a_stacked, b_stacked, [1, 2, 3, 9, None])
    add_low_rank_(got, x, factors, plan_rows(torch.tensor(mix)))
    want = reference(y, x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)
    # Other slots are copied again only where that is needed: for a larger rank, or when writes are unaccounted for.
    assert (factors.slot(0) is before) == (rank <= 8 and also_in_place is None)


def test_rank_is_the_adapters_own():
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 1, 64, 3, 16))
    factors = fresh(a_stacked, b_stacked)
    assert [factors.slot(slot).down.shape[1] for slot in range(SLOTS)] == [24, 3, 192, 9, 48]


def test_occupancy_follows_writes():
    occupied, stacked = Occupancy(), torch.zeros(2, 1, 4, 4)
    assert not occupied(stacked)
    stacked[1, 0, 0, 0] = 1
    assert occupied(stacked)
    stacked[1] = 0
    assert not occupied(stacked)


@pytest.mark.parametrize("add_inputs", [True, False])
def test_expand(add_inputs):
    mix = MIXES["skewed"]
    _, (b,) = random_factors((24,), ranks=(8,) * SLOTS)
    x = torch.randn(len(mix), MAX_RANK, generator=torch.Generator().manual_seed(3))
    y = torch.full((len(mix), 24), 5.0)
    got = y.clone()
    expand_(got, x, b, plan_rows(torch.tensor(mix)).rows_by_slot(), add_inputs=add_inputs)
    for row, slot in enumerate(mix):
        delta = b[slot, 0].double() @ x[row].double() if slot >= 0 else torch.zeros(24).double()
        start = y[row].double() if add_inputs or slot < 0 else 0
        torch.testing.assert_close(got[row].double(), start + delta, rtol=1e-5, atol=1e-5)


def test_shrink_adds_to_a_buffer_that_may_be_wider():
    mix = MIXES["interleaved"]
    (a,), _ = random_factors((24,), ranks=(8,) * SLOTS)
    x, _ = random_rows(mix, (24,))
    got = torch.ones(len(mix), MAX_RANK + 3)
    shrink_(got, x, a, 2.0, plan_rows(torch.tensor(mix)).rows_by_slot())
    for row, slot in enumerate(mix):
        want = 1 + 2 * (a[slot, 0].double() @ x[row].double()) if slot >= 0 else torch.ones(MAX_RANK).double()
        torch.testing.assert_close(got[row, :MAX_RANK].double(), want, rtol=1e-5, atol=1e-5)
    assert (got[:, MAX_RANK:] == 1).all()
