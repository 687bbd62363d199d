"""Our LoRA products on CPU, in torch, compiled and in bfloat16 units, against a dense float64 reference."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch

from amalgam.engine.cpu import products
from amalgam.engine.cpu.factors import Occupancy
from amalgam.engine.cpu.loops import add_low_rank, add_low_rank_together
from amalgam.engine.cpu.plan import GROUP_ROWS, SOLO_ROWS, plan_rows
from amalgam.engine.cpu.products import TOGETHER_ROWS, add_low_rank_, expand_, shrink_
from tests.unit.engine.cpu.product_cases import (
    FLOAT16_TOLERANCE,
    FLOAT32_TOLERANCE,
    MAX_RANK,
    MIXES,
    SLICES,
    SLOTS,
    WIDTH_IN,
    PlanOf,
    assert_base_rows_untouched,
    fresh,
    plan_of,
    random_factors,
    random_rows,
    reference,
)

__all__ = ["plan_of"]


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("widths", SLICES.values(), ids=SLICES.keys())
def test_every_row_gets_its_own_adapter(mix: Sequence[int], widths: Sequence[int], plan_of: PlanOf) -> None:
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
def test_ranks(rank: int, mix: Sequence[int], plan_of: PlanOf) -> None:
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(rank,) * SLOTS)
    x, y = random_rows(mix, SLICES["qkv"])
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of(mix))
    want = reference(y, x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("rows", range(1, SOLO_ROWS + 2))
def test_every_number_of_rows_of_one_slot(rows: int, plan_of: PlanOf) -> None:
    mix = [-1, 3, -1] * rows
    a_stacked, b_stacked = random_factors(SLICES["gate_up"], ranks=(6,) * SLOTS)
    x, y = random_rows(mix, SLICES["gate_up"])
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of(mix), scale=-3.0)
    want = reference(y, x, a_stacked, b_stacked, mix, scale=-3.0)
    torch.testing.assert_close(got.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)
    assert_base_rows_untouched(got, y, mix)


def test_base_rows_keep_their_bits_even_where_inputs_are_not_finite(plan_of: PlanOf) -> None:
    mix = [4, -1, 3, -1, 4]
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    x, y = random_rows(mix, SLICES["qkv"])
    x[1], y[3] = float("nan"), -0.0
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of(mix))
    assert got[[1, 3]].view(torch.int32).equal(y[[1, 3]].view(torch.int32))
    assert got.isfinite().all()


@pytest.mark.parametrize("columns", [72, 80, 64])
def test_output_may_be_wider_or_narrower_by_padding(columns: int, plan_of: PlanOf) -> None:
    mix = MIXES["interleaved"] + [0] * 80
    a_stacked, b_stacked = random_factors((72,), ranks=(8,) * SLOTS)
    x, _ = random_rows(mix, (72,))
    got = torch.full((len(mix), columns), 7.0)
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of(mix))
    want = reference(torch.full((len(mix), 72), 7.0), x, a_stacked, b_stacked, mix)
    common = min(columns, 72)
    torch.testing.assert_close(got[:, :common].double(), want[:, :common], rtol=1e-5, atol=1e-5)
    assert (got[:, common:] == 7.0).all()


def test_what_is_not_a_number_stays_with_its_row(plan_of: PlanOf) -> None:
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
def loops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the compiled loops."""
    calls = []

    def counted(name: str, compiled: Any, *arguments: Any) -> None:
        calls.append(name)
        compiled(*arguments)

    for name in ("add_low_rank", "add_low_rank_together"):
        monkeypatch.setattr(products, name, partial(counted, name, getattr(products, name)))
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
def test_all_rows_of_all_slots_take_one_compiled_call(
    threads: int, mix: Sequence[int], call: str, loops: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8,) * SLOTS)
    x, y = random_rows(mix, SLICES["qkv"])
    add_low_rank_(y, x, fresh(a_stacked, b_stacked), plan_rows(torch.tensor(mix), compiled=True))
    assert loops == [call]


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_share_the_adapters_and_change_no_bit(threads: int) -> None:
    """One, some and none of the groups for each thread; some have no factors here."""
    mix = [0, 1, 2, 3, 4, -1, 2, 2, 4, 0, -1] + [4] * (2 * GROUP_ROWS + 3)
    a_stacked, b_stacked = random_factors(SLICES["odd"], ranks=(8, 0, 64, (0, 3, 1), 16))
    x, y = random_rows(mix, SLICES["odd"])
    factors, groups = fresh(a_stacked, b_stacked), plan_rows(torch.tensor(mix), compiled=True).groups
    assert groups is not None
    operands = x.numpy(), groups.rows, groups.starts, groups.slots, *factors.arrays(groups.slots), 0.5
    alone, shared = y.clone(), y.clone()
    add_low_rank(alone.numpy(), *operands)
    add_low_rank_together(shared.numpy(), *operands, threads)
    assert shared.equal(alone)
    assert_base_rows_untouched(shared, y, mix)


@pytest.mark.parametrize("case", ["view of y", "view of x", "transposed x", "float16", "float64 y"])
def test_what_the_loops_do_not_take_goes_through_torch(case: str, loops: list[str]) -> None:
    mix = MIXES["skewed"]
    dtype = torch.float16 if case == "float16" else torch.float32
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
    # In float16 what is added is rounded, too.
    tolerance = 2 * FLOAT16_TOLERANCE if case == "float16" else FLOAT32_TOLERANCE
    want = reference(y, x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=2 * tolerance)
    assert not loops
    assert (around[:, :4] == 7).all()
    assert (around[:, -5:] == 7).all()


def test_modules_an_adapter_does_not_change(plan_of: PlanOf) -> None:
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


def test_rows_of_zeros_in_the_middle_of_a_factor_do_not_end_it(plan_of: PlanOf) -> None:
    a_stacked, b_stacked = random_factors((72,), ranks=(8,) * SLOTS)
    a_stacked[0][2, 0, 3] = 0
    x, y = random_rows([2] * 4, (72,))
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked), plan_of([2] * 4))
    torch.testing.assert_close(
        got.double(), reference(y, x, a_stacked, b_stacked, [2] * 4), rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE
    )


def test_occupancy_follows_writes() -> None:
    occupied, stacked = Occupancy(), torch.zeros(2, 1, 4, 4)
    assert not occupied(stacked)
    stacked[1, 0, 0, 0] = 1
    assert occupied(stacked)
    stacked[1] = 0
    assert not occupied(stacked)


@pytest.mark.parametrize("add_inputs", [True, False])
def test_expand(add_inputs: bool) -> None:
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


def test_shrink_adds_to_a_buffer_that_may_be_wider() -> None:
    mix = MIXES["interleaved"]
    (a,), _ = random_factors((24,), ranks=(8,) * SLOTS)
    x, _ = random_rows(mix, (24,))
    got = torch.ones(len(mix), MAX_RANK + 3)
    shrink_(got, x, a, 2.0, plan_rows(torch.tensor(mix)).rows_by_slot())
    for row, slot in enumerate(mix):
        want = 1 + 2 * (a[slot, 0].double() @ x[row].double()) if slot >= 0 else torch.ones(MAX_RANK).double()
        torch.testing.assert_close(got[row, :MAX_RANK].double(), want, rtol=1e-5, atol=1e-5)
    assert (got[:, MAX_RANK:] == 1).all()
