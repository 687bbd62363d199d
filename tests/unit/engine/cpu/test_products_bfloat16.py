"""LoRA products on CPU of bfloat16 rows: rounded once, to the nearest, whoever is in the batch beside."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from amalgam.engine.cpu.plan import TALL_ROWS, plan_rows
from amalgam.engine.cpu.products import add_low_rank_
from tests.unit.engine.cpu.product_cases import (
    BFLOAT16_TOLERANCE,
    FLOAT32_TOLERANCE,
    MAX_RANK,
    MIXES,
    NEIGHBOURS,
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


HALF_MIXES = {
    "interleaved": MIXES["interleaved"],
    "long run among single rows": MIXES["long run among single rows"],
    "many of one slot, scattered": MIXES["many of one slot, scattered"],
    "prompts of few ranks": [0] * (TALL_ROWS + 3)
    + [1] * TALL_ROWS
    + [-1] * 3
    + [3] * (TALL_ROWS + 2)
    + [0] * 129
    + [3],
    "prompts": [4] * TALL_ROWS + [-1] * 3 + [2] * (TALL_ROWS + 5) + [0, 1, 3] + [4] * 300,
}


@pytest.mark.parametrize("mix", HALF_MIXES.values(), ids=HALF_MIXES.keys())
@pytest.mark.parametrize("widths", SLICES.values(), ids=SLICES.keys())
def test_bfloat16_rows(mix: Sequence[int], widths: Sequence[int], plan_of: PlanOf) -> None:
    a_stacked, b_stacked = random_factors(widths, ranks=(8, 1, 64, 3, 16), dtype=torch.bfloat16)
    x, y = random_rows(mix, widths, dtype=torch.bfloat16)
    got = y.clone()
    add_low_rank_(got, x, fresh(a_stacked, b_stacked, torch.bfloat16), plan_of(mix), scale=0.3)
    want = reference(y, x, a_stacked, b_stacked, mix, scale=0.3)
    # Plain products round what is added, too.
    tolerance = 2 * BFLOAT16_TOLERANCE if plan_of([0] * TALL_ROWS).runs else BFLOAT16_TOLERANCE
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=2 * tolerance)
    assert_base_rows_untouched(got, y, mix)


@pytest.mark.parametrize("mix", HALF_MIXES.values(), ids=HALF_MIXES.keys())
@pytest.mark.parametrize("has_units", [False, True], ids=["compiled", "units"])
def test_nothing_but_the_result_is_rounded_to_bfloat16(mix: Sequence[int], has_units: bool) -> None:
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 1, 64, 3, 16), dtype=torch.bfloat16)
    x, y = random_rows(mix, SLICES["qkv"], dtype=torch.bfloat16)
    got = y.clone()
    plan = plan_rows(torch.tensor(mix), compiled=True, has_units=has_units)
    add_low_rank_(got, x, fresh(a_stacked, b_stacked, torch.bfloat16), plan, scale=0.3)
    nearest = reference(y, x, a_stacked, b_stacked, mix, scale=0.3).bfloat16()
    assert (got != nearest).float().mean() < NEIGHBOURS


@pytest.mark.parametrize("has_units", [False, True], ids=["compiled", "units"])
def test_a_row_says_the_same_alone_and_among_others(has_units: bool) -> None:
    """The same number but for `NEIGHBOURS`, whichever way its rows go."""
    prompt = [2] * (TALL_ROWS + 10)
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 1, 64, 3, 16), dtype=torch.bfloat16)
    x, y = random_rows([0, 1, *prompt, 4], SLICES["qkv"], dtype=torch.bfloat16)
    factors, own = fresh(a_stacked, b_stacked, torch.bfloat16), slice(2, 2 + len(prompt))

    def answered(rows: slice, mix: Sequence[int]) -> Tensor:
        got = y[rows].clone()
        add_low_rank_(got, x[rows], factors, plan_rows(torch.tensor(mix), compiled=True, has_units=has_units))
        return got

    among = answered(slice(None), [0, 1, *prompt, 4])[own]
    assert (among != answered(own, prompt)).float().mean() < NEIGHBOURS
    by_one = torch.cat([answered(slice(row, row + 1), [2]) for row in range(own.start, own.stop)])
    assert (among != by_one).float().mean() < NEIGHBOURS


def test_a_prompt_of_few_ranks_says_the_same_whoever_is_beside_it() -> None:
    """Rows are taken four at a time: bit by bit the same, wherever the first four of them begin."""
    prompt = [0] * (TALL_ROWS + 1)
    mix = [3] * (TALL_ROWS + 2) + prompt + [1] * (TALL_ROWS + 3)
    a_stacked, b_stacked = random_factors(SLICES["qkv"], ranks=(8, 1, 64, 3, 16), dtype=torch.bfloat16)
    x, y = random_rows(mix, SLICES["qkv"], dtype=torch.bfloat16)
    factors, own = fresh(a_stacked, b_stacked, torch.bfloat16), slice(TALL_ROWS + 2, TALL_ROWS + 2 + len(prompt))
    among, alone = y.clone(), y[own].clone()
    add_low_rank_(among, x, factors, plan_rows(torch.tensor(mix), compiled=True, has_units=True))
    add_low_rank_(alone, x[own], factors, plan_rows(torch.tensor(prompt), compiled=True, has_units=True))
    assert torch.equal(among[own], alone)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_bfloat16_rows_are_rounded_to_the_nearest_and_to_even(rows: int) -> None:
    """Products of one and of powers of two, so that sums are exact: halfway cases, signs, infinities and beyond."""
    sums = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-16, 3.4e38, -3.4e38, float("inf"), float("nan"), -0.0]
    down, up = torch.zeros(SLOTS, 1, MAX_RANK, WIDTH_IN), torch.zeros(SLOTS, 1, len(sums), MAX_RANK)
    # A sum is three bfloat16 numbers: what it is in bfloat16, and twice what is left of it.
    left = torch.tensor(sums)
    for rank in range(3):
        part = left.bfloat16().float()
        down[1, 0, rank, rank], up[1, 0, :, rank] = 1, torch.where(left.isfinite(), part, 0)
        left = torch.where(left.isfinite(), left - part, 0)
    x = torch.zeros(rows, WIDTH_IN, dtype=torch.bfloat16)
    x[:, :3] = 1
    y = torch.tensor([0, 0, 0, 0, 0, 0, float("inf"), float("nan"), -0.0]).bfloat16().repeat(rows, 1)
    add_low_rank_(
        y,
        x,
        fresh((down.bfloat16(),), (up.bfloat16(),), torch.bfloat16),
        plan_rows(torch.tensor([1] * rows), compiled=True),
    )
    want = torch.tensor(sums).bfloat16().repeat(rows, 1)
    assert want[0, :4].tolist() == [1.0, 1 + 2**-6, -1.0, 1 + 2**-7]
    assert torch.equal(y.nan_to_num(7.0), want.nan_to_num(7.0))
    assert y.isnan().equal(want.isnan())


@pytest.mark.parametrize("has_units", [False, True], ids=["compiled", "units"])
@pytest.mark.parametrize("columns", [72, 80, 64])
def test_bfloat16_output_may_be_wider_or_narrower_by_padding(columns: int, has_units: bool) -> None:
    mix = MIXES["interleaved"] + [0] * TALL_ROWS
    a_stacked, b_stacked = random_factors((72,), ranks=(8,) * SLOTS, dtype=torch.bfloat16)
    x, _ = random_rows(mix, (72,), dtype=torch.bfloat16)
    got = torch.full((len(mix), columns), 7.0, dtype=torch.bfloat16)
    plan = plan_rows(torch.tensor(mix), compiled=True, has_units=has_units)
    add_low_rank_(got, x, fresh(a_stacked, b_stacked, torch.bfloat16), plan)
    want = reference(torch.full((len(mix), 72), 7.0), x, a_stacked, b_stacked, mix)
    common = min(columns, 72)
    torch.testing.assert_close(
        got[:, :common].double(), want[:, :common], rtol=BFLOAT16_TOLERANCE, atol=BFLOAT16_TOLERANCE
    )
    assert (got[:, common:] == 7.0).all()


def test_float32_output_beside_bfloat16_input(plan_of: PlanOf) -> None:
    """A head that computes its logits in float32."""
    mix = MIXES["skewed"]
    a_stacked, b_stacked = random_factors(SLICES["plain"], ranks=(8,) * SLOTS, dtype=torch.bfloat16)
    x, _ = random_rows(mix, SLICES["plain"], dtype=torch.bfloat16)
    y = torch.zeros(len(mix), 72)
    add_low_rank_(y, x, fresh(a_stacked, b_stacked, torch.bfloat16), plan_of(mix))
    want = reference(torch.zeros_like(y), x, a_stacked, b_stacked, mix)
    torch.testing.assert_close(y.double(), want, rtol=FLOAT32_TOLERANCE, atol=FLOAT32_TOLERANCE)
