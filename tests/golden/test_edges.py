"""Places where shipped libraries, or earlier versions of this one, left the definition: each against dense float64."""

from typing import Any

import pytest
import torch

from tests.golden import dense
from tests.merge_factory import make_adapter, make_recipe, merge_dense, relative

WIDE = {"model.layers.0.mlp.up_proj": (330, 310)}
"""Large enough for a result of rank 300."""
[NAME] = WIDE
SMALL = {NAME: (33, 31)}
ROUNDING = 2e-6


def merged(method: str, sources: Any, weights: Any, **fields: Any) -> torch.Tensor:
    return merge_dense(make_recipe(method, weights, **fields), sources, max_rank=512)[NAME]


@pytest.fixture(scope="module")
def wide() -> Any:
    return {name: make_adapter(seed, rank=100, shapes=WIDE) for seed, name in enumerate("abc", start=1)}


@pytest.fixture(scope="module")
def small() -> Any:
    return {name: make_adapter(seed, rank=8, shapes=SMALL) for seed, name in enumerate("ab", start=1)}


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_sce_at_rank_300_is_its_definition(wide: Any, density: float) -> None:
    """In `delta`, where it was 5e-3 off: thresholds and signs have to be those of the values that are kept."""
    weights = {"a": 1.0, "b": -0.5, "c": 0.8}
    expected = dense.sce([wide[name].delta(NAME) for name in "abc"], list(weights.values()), density)
    found = merged("sce", wide, weights, parameters={"density": density}, space="delta", rank=310)
    assert relative(found, expected) < 5e-5


@pytest.mark.parametrize("apart", [0.0, 1e-3, 2e-2])
def test_slerp_of_near_copies_is_the_straight_line(small: Any, apart: float) -> None:
    """Above a cosine of 0.9995 the arc's own formula divides nothing by nothing."""
    a, other = small["a"], small["b"]
    near = make_adapter(1, rank=8, shapes=SMALL)
    near.tensors = {NAME: (a.tensors[NAME][0], a.tensors[NAME][1] + apart * other.tensors[NAME][1])}
    pair = {"a": a, "near": near}
    one, two = (source.delta(NAME) for source in pair.values())
    assert float((one * two).sum() / (one.norm() * two.norm())) > 0.9995
    found = merged("slerp", pair, {"a": 1.0, "near": 1.0}, parameters={"t": 0.25}, rank=16)
    assert relative(found, 0.75 * one + 0.25 * two) < ROUNDING


@pytest.mark.parametrize("space", ["knots", "delta", "core"])
def test_subtraction_in_ties_cancels_no_further_than_its_votes(space: str) -> None:
    """τ = (1, -0.4) with weights (1, -0.9) is 0.716 by the definition, where a signed divisor gives 13.6."""
    one = torch.zeros(1, 31)
    one[0, 0] = 1.0
    sources = {}
    for name, value in (("a", 1.0), ("b", -0.4)):
        source = make_adapter(1, rank=1, alpha=1.0, shapes=SMALL)
        source.tensors = {NAME: (one, torch.eye(33)[:, :1] * value)}
        sources[name] = source
    found = merged("ties", sources, {"a": 1.0, "b": -0.9}, parameters={"density": 1.0}, space=space)
    assert abs(float(found[0, 0])) == pytest.approx(1.36 / 1.9, rel=1e-5)
    assert float(found.norm()) == pytest.approx(abs(float(found[0, 0])), rel=1e-5)


@pytest.mark.parametrize("method", ["task_arithmetic", "cat", "svd"])
def test_a_scale_by_the_root_of_the_rank_is_in_the_result_once(method: str) -> None:
    """Side by side, an rsLoRA adapter comes out √r too large elsewhere; and a weight counts once, not on A and on B."""
    source = make_adapter(4, rank=16, rslora=True, shapes=SMALL)
    found = merged(method, {"a": source}, {"a": 0.5}, rank=16)
    assert relative(found, 0.5 * source.delta(NAME)) < ROUNDING


def test_norm_balance_and_calibration_leave_a_zero_adapter_zero(small: Any) -> None:
    nothing = make_adapter(9, rank=2, shapes=SMALL)
    nothing.tensors = {NAME: (nothing.tensors[NAME][0], torch.zeros_like(nothing.tensors[NAME][1]))}
    sources = {"a": small["a"], "nothing": nothing}
    for step in ({"norm_balance": True}, {"calibrate": "pico"}):
        found = merged("task_arithmetic", sources, {"a": 1.0, "nothing": 1.0}, rank=16, **step)
        assert torch.isfinite(found).all()
        direction = small["a"].delta(NAME)
        cosine = float((found * direction).sum() / (found.norm() * direction.norm()))
        assert cosine > 0.999 if "norm_balance" in step else cosine > 0.9
