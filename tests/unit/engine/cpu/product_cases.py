"""Mixes of rows, random factors and the dense float64 reference that our LoRA products on CPU are compared with."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from amalgam.engine.cpu.factors import ModuleFactors
from amalgam.engine.cpu.plan import RowPlan, plan_rows

SLOTS = 5
MAX_RANK = 64
WIDTH_IN = 51
SLICES = {"qkv": (40, 24, 24), "gate_up": (56, 56), "plain": (72,), "odd": (37, 5, 11)}

# float32 sums of at most 64 + 51 terms of size one, in another order than the reference's.
FLOAT32_TOLERANCE = 2e-5
# One rounding of the result to 8 bits of mantissa.
BFLOAT16_TOLERANCE = 2**-8
# One to 11 bits.
FLOAT16_TOLERANCE = 2**-11
# Share of bfloat16 results that may be a neighbour of the nearest one: those that lie between two, but for what float32
# or 16 bits round. Were what lies between A and B rounded to bfloat16, a third of them would be.
NEIGHBOURS = 0.01

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


PlanOf = Callable[[Sequence[int]], RowPlan]
"""Plans a mix of rows."""


def block_diag(*blocks: Tensor) -> Tensor:
    """The matrix that has them on its diagonal."""
    found: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return found


def random_factors(
    widths: Sequence[int], *, ranks: Sequence[Any], dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
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


def reference(
    y: Tensor,
    x: Tensor,
    a_stacked: Sequence[Tensor],
    b_stacked: Sequence[Tensor],
    mix: Sequence[int],
    scale: float = 1.0,
) -> Tensor:
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


def random_rows(
    mix: Sequence[int], widths: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 1
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(mix), WIDTH_IN, generator=generator).to(dtype)
    y = torch.randn(len(mix), sum(widths), generator=generator).to(dtype)
    return x, y


def fresh(
    a_stacked: Sequence[Tensor], b_stacked: Sequence[Tensor], dtype: torch.dtype = torch.float32
) -> ModuleFactors:
    factors = ModuleFactors(tuple(a_stacked), tuple(b_stacked), dtype)
    factors.refresh(range(SLOTS))
    return factors


@pytest.fixture(params=["torch", "compiled", "units"])
def plan_of(request: pytest.FixtureRequest) -> PlanOf:
    """Plans a mix for each kind of product; long runs of float32 rows go through torch where units are planned for."""
    kind = {"compiled": request.param != "torch", "has_units": request.param == "units"}
    return lambda mix: plan_rows(torch.tensor(mix), **kind)


def assert_base_rows_untouched(after: Tensor, before: Tensor, mix: Sequence[int]) -> None:
    base = torch.tensor(mix) < 0
    assert after[base].equal(before[base])
