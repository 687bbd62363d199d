"""Our LoRA products on CPU, in torch and compiled, against a dense float64 reference."""

from functools import partial

import pytest
import torch

from amalgam.engine import cpu_lora_ops
from amalgam.engine.cpu_lora_cache import Occupancy, ProductDtype
from amalgam.engine.cpu_lora_compiled import add_low_rank, add_low_rank_together
from amalgam.engine.cpu_lora_factors import ModuleFactors
from amalgam.engine.cpu_lora_ops import TOGETHER_ROWS, add_low_rank_, expand_, shrink_
from amalgam.engine.cpu_lora_plan import GROUP_ROWS, SOLO_ROWS, plan_rows

SLOTS = 5
MAX_RANK = 64
WIDTH_IN = 51
SLICES = {"qkv": (40, 24, 24), "gate_up": (56, 56), "plain": (72,), "odd": (37, 5, 11)}

# float32 sums of at most 64 + 51 terms of size one, in another order than the reference's.
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
    """Stacked as vLLM has them: zero beyond each slot's rank, which is one number or one for each slice."""
    generator = torch.Generator().manual_seed(seed)
    a_stacked, b_stacked = [], []
    for part, width in enumerate(widths):
        a = torch.zeros(SLOTS, 1, MAX_RANK, WIDTH_IN)
        b = torch.zeros(SLOTS, 1, width, MAX_RANK)
        for slot, of_slot in enumerate(ranks):
            rank = of_slot[part] if isinstance(of_slot, tuple) else of_slot
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


@pytest.fixture(params=[False, True], ids=["torch", "compiled"])
def plan_of(request):
    """Plans a mix for either kind of product."""
    return lambda mix: plan_rows(torch.tensor(mix), compiled=request.param)


def assert_base_rows_untouched(after, before, mix):
    base = torch.tensor(mix) < 0
    assert after[base].equal(before[base])


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("widths", SLICES.values(), ids=SLICES.keys())
def test_every_row_gets_its_own_adapter(mix, widths, plan_of):
    a_stacked, b_stacked = random_factors(widths, ranks=(8, 1, 64, 3, 16))
    x, y = random_rows(mix, widths)
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of(mix), scale=0.5)
    want = reference(y, x, a_stacked, b_stacked, mix, scale=0.5)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)
    assert_base_rows_untouched(got, y, mix)


@pytest.mark.parametrize(
    "rank", [1, 2, 3, 4, 5, 7, 8, 9, 17, 31, 64, (4, 2, 3), (0, 9, 1), (7, 0, 64)], ids=lambda rank: str(rank)
)
@pytest.mark.parametrize("mix", [MIXES["interleaved"] + MIXES["long runs"], [0, 1, 1, 2, 4, 4, 4]], ids=["many", "few"])
def test_ranks(rank, mix, plan_of):
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(rank,) * SLOTS)
    x, y = random_rows(mix, SLICES["qkv"])
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of(mix))
    want = reference(y, x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("rows", range(1, SOLO_ROWS + 2))
def test_every_number_of_rows_of_one_slot(rows, plan_of):
    mix = [-1, 3, -1] * rows
    a_stacked, b_stacked = random_factors(SLICES["gate_up"], ranks=(6,) * SLOTS)
    x, y = random_rows(mix, SLICES["gate_up"])
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of(mix), scale=-3.0)
    want = reference(y, x, a_stacked, b_stacked, mix, scale=-3.0)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)
    assert_base_rows_untouched(got, y, mix)


@pytest.mark.parametrize(
    ("native", "tolerance"), [(False, BFLOAT16_TOLERANCE), (True, NATIVE_BFLOAT16_TOLERANCE)], ids=["float32", "native"]
)
@pytest.mark.parametrize("mix", ["interleaved", "long run among single rows", "many of one slot, scattered"])
def test_bfloat16_models(mix, native, tolerance, plan_of):
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 1, 64, 3, 16), dtype=torch.bfloat16)
    x, y = random_rows(MIXES[mix], SLICES["qkv"], dtype=torch.bfloat16)
    got = y.clone()
    dtype = ProductDtype(native_bfloat16=native)(torch.bfloat16)
    add_low_rank_(got, x, fresh(a_stacked, b_stacked, dtype), plan_of(MIXES[mix]))
    want = reference(y, x, a_stacked, b_stacked, MIXES[mix])
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=2 * tolerance)
    assert_base_rows_untouched(got, y, MIXES[mix])


def test_products_are_in_float32_without_bfloat16_hardware():
    assert ProductDtype(native_bfloat16=False)(torch.bfloat16) == torch.float32
    assert ProductDtype(native_bfloat16=True)(torch.bfloat16) == torch.bfloat16
    assert ProductDtype(native_bfloat16=True)(torch.float16) == torch.float32


def test_float32_output_beside_bfloat16_input(plan_of):
    """A head that computes its logits in float32."""
    mix = MIXES["skewed"]
    a_stacked, b_stacked = random_factors(SLICES["plain"], ranks=(8,) * SLOTS, dtype=torch.bfloat16)
    x, _ = random_rows(mix, SLICES["plain"], dtype=torch.bfloat16)
    y = torch.zeros(len(mix), 72)
    add_low_rank_(y, x, fresh(a_stacked, b_stacked), plan_of(mix))
    want = reference(torch.zeros_like(y), x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(y.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)


def test_base_rows_keep_their_bits_even_where_inputs_are_not_finite(plan_of):
    mix = [4, -1, 3, -1, 4]
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    x, y = random_rows(mix, SLICES["qkv"])
    x[1], y[3] = float("nan"), -0.0
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of(mix))
    assert got[[1, 3]].view(torch.int32).equal(y[[1, 3]].view(torch.int32))
    assert got.isfinite().all()


@pytest.mark.parametrize("columns", [72, 80, 64])
def test_output_may_be_wider_or_narrower_by_padding(columns, plan_of):
    mix = MIXES["interleaved"] + [0] * 80
    a_stacked, b_stacked = random_factors((72,), ranks=(8,) * SLOTS)
    x, _ = random_rows(mix, (72,))
    got = torch.full((len(mix), columns), 7.0)
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of(mix))
    want = reference(torch.full((len(mix), 72), 7.0), x, a_stacked, b_stacked, mix)
    common = min(columns, 72)
    torch.testing.assert_close(got[:, :common].double(), want[:, :common], rtol=1e-5, atol=1e-5)
    assert (got[:, common:] == 7.0).all()


def test_what_is_not_a_number_stays_with_its_row(plan_of):
    """Four rows of a slot are multiplied together, also where there are but three or two."""
    mix = [3, 3, 3, 1, 1]
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    x, y = random_rows(mix, SLICES["qkv"])
    x[0, 5], x[4, 0] = float("nan"), float("inf")
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of(mix))
    assert got[0].isnan().all()
    assert not got[4].isfinite().any()
    assert got[1:4].isfinite().all()


@pytest.fixture
def loops(monkeypatch):
    """The calls of the compiled loops."""
    calls = []

    def counted(name, compiled, *arguments):
        calls.append(name)
        compiled(*arguments)

    for name in ("add_low_rank", "add_low_rank_together"):
        monkeypatch.setattr(cpu_lora_ops, name, partial(counted, name, getattr(cpu_lora_ops, name)))
    return calls


@pytest.mark.parametrize(
    ("threads", "mix", "call"),
    [
        (1, [0, 1, 2, 3], "add_low_rank"),
        (2, [0, 1, 2][: TOGETHER_ROWS - 1], "add_low_rank"),
        (2, [0, 1, 2, 3][:TOGETHER_ROWS], "add_low_rank_together"),
        (2, [2] * GROUP_ROWS, "add_low_rank"),
        (2, [2] * (GROUP_ROWS + 1), "add_low_rank_together"),
        (2, [slot % SLOTS for slot in range(19)] + [2] * 700, "add_low_rank_together"),
    ],
    ids=["one thread", "few rows", "enough rows", "one group", "two groups", "many"],
)
def test_all_rows_of_all_slots_take_one_compiled_call(threads, mix, call, loops, monkeypatch):
    monkeypatch.setattr(cpu_lora_ops.torch, "get_num_threads", lambda: threads)
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    x, y = random_rows(mix, SLICES["qkv"])
    add_low_rank_(y, x, fresh(a_stacked, b_stacked), plan_rows(torch.tensor(mix), compiled=True))
    assert loops == [call]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_share_the_adapters_and_change_no_bit(threads):
    """One, some and none of the groups for each thread; some have no factors here."""
    mix = [0, 1, 2, 3, 4, -1, 2, 2, 4, 0, -1] + [4] * (2 * GROUP_ROWS + 3)
    a_stacked, b_stacked = random_factors(SLICES["odd"], ranks=(8, 0, 64, (0, 3, 1), 16))
    x, y = random_rows(mix, SLICES["odd"])
    factors, groups = fresh(a_stacked, b_stacked), plan_rows(torch.tensor(mix), compiled=True).groups
    operands = x.numpy(), groups.rows, groups.starts, groups.slots, *factors.arrays(groups.slots), 0.5
    alone, shared = y.clone(), y.clone()
    add_low_rank(alone.numpy(), *operands)
    add_low_rank_together(shared.numpy(), *operands, threads)
    assert shared.equal(alone)
    assert_base_rows_untouched(shared, y, mix)


@pytest.mark.parametrize("case", ["view of y", "view of x", "transposed x", "bfloat16", "float64 y"])
def test_what_the_loops_do_not_take_goes_through_torch(case, loops):
    mix = MIXES["skewed"]
    dtype = torch.bfloat16 if case == "bfloat16" else torch.float32
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 1, 64, 3, 16), dtype=dtype)
    x, y = random_rows(mix, SLICES["qkv"], dtype=dtype)
    got = y.double() if case == "float64 y" else y.clone()
    around = torch.full((len(mix), y.shape[1] + 9), 7.0)
    if case == "view of y":
        got = around[:, 4:-5].copy_(y)
    elif case == "view of x":
        x = torch.cat([x, x], dim=1)[:, :WIDTH_IN]
    elif case == "transposed x":
        x = x.T.contiguous().T
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_rows(torch.tensor(mix), compiled=True))
    # In bfloat16 what is added is rounded too.
    tolerance = 2 * BFLOAT16_TOLERANCE if case == "bfloat16" else FLOAT32_TOLERANCE
    want = reference(y, x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=2 * tolerance)
    assert not loops
    assert (around[:, :4] == 7).all()
    assert (around[:, -5:] == 7).all()


def test_modules_an_adapter_does_not_change(plan_of):
    """Slot 1 changes nothing here, slot 3 only the middle slice."""
    mix = [0, 1, 3, -1] * 6 + [3] * 100 + [1] * 30
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 0, 4, 8, 2))
    for slice_index in (0, 2):
        a_stacked[slice_index][3] = 0
        b_stacked[slice_index][3] = 0
    x, y = random_rows(mix, SLICES["qkv"])
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of(mix))
    want = reference(y, x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)
    assert got[torch.tensor(mix) == 1].equal(y[torch.tensor(mix) == 1])


def test_rows_of_zeros_in_the_middle_of_a_factor_do_not_end_it(plan_of):
    a_stacked, b_stacked = random_factors((72,), ranks=(8,) * SLOTS)
    a_stacked[0][2, 0, 3] = 0
    x, y = random_rows([2] * 4, (72,))
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of([2] * 4))
    torch.testing.assert_close(
        got.double(), reference(y, x, a_stacked, b_stacked, [2] * 4), rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE
    )


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
