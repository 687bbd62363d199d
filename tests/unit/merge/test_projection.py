"""Projected adapters against the minimum that they are defined by, in float64 and dense."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from amalgam.errors.merging import NonFinite
from amalgam.merge.projection import RIDGE, Projection

CPU = torch.device("cpu")
IN, OUT = 12, 7


def adapters(seed: int, ranks: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> A [rank, IN], B [OUT, rank]."""
    chance = torch.Generator().manual_seed(seed)
    return {
        f"a{at}": (torch.randn(rank, IN, generator=chance), torch.randn(OUT, rank, generator=chance))
        for at, rank in enumerate(ranks)
    }


def projected(
    factors: Mapping[str, tuple[Tensor, Tensor]],
    own: Mapping[str, Sequence[Tensor]],
    given: Mapping[str, Sequence[Tensor]] | None = None,
) -> Mapping[str, Mapping[str, Tensor]]:
    projection = Projection({name: {"q": a} for name, (a, _) in factors.items()}, IN, CPU)
    for name in factors:
        for at, rows in enumerate(own[name]):
            projection.observe(name, rows, None if given is None else given[name][at])
        projection.end_of(name)
    return projection.projected()


def merged(factors: Mapping[str, tuple[Tensor, Tensor]], found: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    return torch.stack([b.double() @ found[name]["q"].double() for name, (_, b) in factors.items()]).sum(dim=0)


def loss(
    delta: Tensor,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    own: Mapping[str, Sequence[Tensor]],
    given: Mapping[str, Sequence[Tensor]],
) -> Tensor:
    """What the merge is to make small: see `amalgam.merge.projection`."""
    total = torch.zeros((), dtype=torch.float64)
    grams = 0.0
    for name, (a, b) in factors.items():
        mine, met = (torch.cat(list(one[name])).double() for one in (own, given))
        size = (IN / met.square().sum()).sqrt()
        total = total + (met * size @ delta.T - mine * size @ (b.double() @ a.double()).T).square().sum()
        grams += float((met * size).square().sum())
    mean = torch.stack([b.double() @ a.double() for a, b in factors.values()]).mean(dim=0)
    return total + RIDGE * grams / IN * (delta - mean).square().sum()


@given(
    seed=st.integers(0, 1 << 30),
    ranks=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    tokens=st.integers(1, 30),
    is_first=st.booleans(),
)
def test_the_sum_of_projected_adapters_is_the_minimum(seed: int, ranks: list[int], tokens: int, is_first: bool) -> None:
    factors = adapters(seed, ranks)
    chance = torch.Generator().manual_seed(seed + 1)
    own, met = (
        {name: [torch.randn(tokens, IN, generator=chance) * (at + 1)] * 2 for at, name in enumerate(factors)}
        for _ in range(2)
    )
    met = own if is_first else met
    delta = merged(factors, projected(factors, own, None if is_first else met)).requires_grad_()
    value = loss(delta, factors, own, met)
    (slope,) = torch.autograd.grad(value, delta)
    reach = max(float(b.norm() * a.norm()) for a, b in factors.values())
    assert float(slope.norm()) < 1e-4 * reach


def test_inputs_that_never_meet_keep_nearly_all_that_they_do() -> None:
    factors = adapters(1, [2, 3])
    read = {"a0": [torch.eye(IN)[:6]], "a1": [torch.eye(IN)[6:]]}
    delta = merged(factors, projected(factors, read))
    changes = {name: b.double() @ a.double() for name, (a, b) in factors.items()}
    mean = torch.stack(list(changes.values())).mean(dim=0)
    for name, change in changes.items():
        alone, kept, between = (read[name][0].double() @ one.T for one in (change, delta, mean))
        # The mean of the diagonal is 2 here, and a direction's own is 2: RIDGE draws each to the mean of the inputs.
        torch.testing.assert_close(kept, (alone + RIDGE * between) / (1 + RIDGE), rtol=1e-5, atol=1e-5)


def test_inputs_that_read_the_same_are_averaged() -> None:
    factors = adapters(2, [2, 2])
    same = torch.linalg.qr(torch.randn(IN, IN, generator=torch.Generator().manual_seed(0)))[0]
    delta = merged(factors, projected(factors, {"a0": [same], "a1": [same * 5]}))
    mean = torch.stack([b.double() @ a.double() for a, b in factors.values()]).mean(dim=0)
    torch.testing.assert_close(delta, mean, rtol=1e-5, atol=1e-5)


def test_where_no_prompt_says_anything_the_merge_is_the_mean_of_all_inputs() -> None:
    factors = adapters(7, [2, 1, 2])
    seen = torch.eye(IN)[:3]
    projection = Projection({name: {"q": a} if name != "a2" else {} for name, (a, _) in factors.items()}, IN, CPU)
    for name in factors:
        projection.observe(name, seen)
        projection.end_of(name)
    found = projection.projected()
    assert found["a2"] == {}
    for name in ("a0", "a1"):
        torch.testing.assert_close(found[name]["q"][:, 3:], factors[name][0][:, 3:] / 3)


def test_parts_of_what_is_read_make_what_all_of_it_makes() -> None:
    factors = adapters(3, [1, 2])
    chance = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(9, IN, generator=chance) for name in factors}
    whole = projected(factors, {name: [one] for name, one in rows.items()})
    parts = projected(factors, {name: [one[:4], one[4:5], one[5:]] for name, one in rows.items()})
    for name in factors:
        torch.testing.assert_close(parts[name]["q"], whole[name]["q"], rtol=1e-4, atol=1e-5)


def test_an_adapter_that_nothing_came_to_is_there_as_far_as_the_mean_is() -> None:
    factors = adapters(4, [2, 2])
    found = projected(factors, {"a0": [torch.eye(IN)], "a1": []})
    torch.testing.assert_close(found["a1"]["q"], factors["a1"][0] * (RIDGE / 2) / (1 + RIDGE))
    torch.testing.assert_close(found["a0"]["q"], factors["a0"][0] * (1 + RIDGE / 2) / (1 + RIDGE))


def test_where_nothing_came_at_all_nothing_is_told() -> None:
    assert projected(adapters(5, [1, 1]), {"a0": [], "a1": [torch.zeros(3, IN)]}) == {}


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFinite, match="What the base model computes"):
        projected(adapters(6, [1]), {"a0": [torch.full((2, IN), torch.inf)]})
