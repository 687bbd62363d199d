"""Merging many modules together is merging them one by one: the fused kernels, interpreted, against the reference."""

import importlib
from typing import Any

import pytest
import torch

from amalgam.kernels.philox import stable_id
from amalgam.kernels.tiles import ReferenceTiles
from amalgam.merge import delta
from amalgam.merge.plan import plan
from amalgam.merge.run import RunOptions, stacks
from amalgam.merge.spaces import Circumstances
from tests.merge_factory import make_adapter, make_recipe, relative

SHAPES = {f"model.layers.{layer}.q_proj": (70, 67) for layer in range(3)}
AMPLE, FOR_ONE = 1 << 30, 2 * delta.bytes_together(70, 67)
"""Workspaces: for all modules together, and for one at a time."""

SAME = 2e-5
"""Of merged products: float32 sums in another order, and bases from Gram matrices."""


def stack_of(method: Any, density: Any, fields: Any, *, dtype: torch.dtype = torch.float32) -> Any:
    """A stack of three modules and what merging it needs."""
    sources = {
        name: make_adapter(seed, rank=rank, shapes=SHAPES, dtype=dtype)
        for seed, (name, rank) in enumerate([("a", 5), ("b", 3), ("c", 8)])
    }
    recipe = make_recipe(
        method, {"a": 1.0, "b": -0.5, "c": 0.7}, space="delta", seed=3, rank=8, parameters=density, **fields
    )
    layout = plan(recipe, {name: source.header for name, source in sources.items()}, max_rank=64)
    stack = next(stacks(layout, sources, RunOptions(), None))
    ids = tuple(stable_id(source.digest) for source in sources.values())
    around = Circumstances(layout, ids, torch.device("cpu"), ReferenceTiles(), 1 << 30, spectrum=False)
    return layout, stack, around.randomness(stack)


def work_of(layout: Any, tiles: Any, workspace: Any = 1 << 30) -> Any:
    rule = delta.tile_rule(layout.spec, layout.parameters)
    return delta.DeltaMerge(layout.spec, layout.parameters, rule, tiles, None, workspace)


@pytest.mark.parametrize(("method", "parameters", "workspace"), [
    ("ties", {"density": 0.2}, AMPLE), ("ties", {"density": 1.0, "election": "frequency"}, FOR_ONE),
    ("dare_ties", {"density": 0.5, "trim_after": True, "trim_density": 0.3}, AMPLE),
    ("breadcrumbs", {"density": 0.8, "gamma": 0.05}, FOR_ONE), ("dare_linear", {"density": 0.4}, AMPLE),
])  # fmt: skip
def test_together_is_one_by_one(triton_tiles: Any, method: str, parameters: dict[str, Any], workspace: Any) -> None:
    together = importlib.import_module("amalgam.merge.delta_batch")
    layout, stack, randomness = stack_of(method, parameters, {})
    batches = together.merge_together(stack, work_of(layout, triton_tiles.TritonTiles(), workspace), randomness)
    assert len(batches) == (1 if workspace == AMPLE else 3)
    found = torch.cat([batch.B @ batch.A for batch in batches])
    plain = work_of(layout, ReferenceTiles())
    for row in range(3):
        one = plain.merge(stack, row, randomness, plain.scratch(stack))
        assert relative(found[row], (one.B @ one.A)[0]) < SAME
        kept = torch.cat([batch.kept for batch in batches])[row]
        assert float(kept) == pytest.approx(float(one.kept[0]), rel=1e-5)
