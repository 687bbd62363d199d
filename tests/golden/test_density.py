"""Density counts what exists: rows of zeros, ranks that are not used and adapters that do nothing change no result."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from amalgam.domain.adapter import AdapterHeader, ModuleHeader
from amalgam.kernels import selection
from amalgam.merge import knots
from amalgam.merge.plan import plan
from amalgam.merge.run import RunOptions, peak_bytes
from tests.merge_factory import MemoryAdapter, make_adapter, make_recipe, merge_dense, relative

SAME = 5e-5
"""An elementwise rule after factors that were rounded to float32 on another way."""

WEIGHTS = {"a": 1.0, "b": 0.8}
METHODS = {
    "ties": {"density": 0.3},
    "magnitude_prune": {"density": 0.3},
    "dare_linear": {"density": 0.4},
    "dare_ties": {"density": 0.4, "trim_after": True, "trim_density": 0.3},
    "della": {"density": 0.5, "epsilon": 0.2},
    "della_linear": {"density": 0.5, "epsilon": 0.2},
    "breadcrumbs": {"density": 0.5, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.05},
    "sce": {"density": 0.3},
}


@pytest.fixture(scope="module")
def sources() -> Any:
    return {"a": make_adapter(1, rank=3), "b": make_adapter(2, rank=2)}


def rescaled(adapter: MemoryAdapter, tensors: Any) -> MemoryAdapter:
    """The scale belongs to B·A as it is: what a config says of ranks plays no part here."""
    return replace(adapter, tensors=tensors, reads=[])


def padded(adapter: MemoryAdapter, rank: int) -> MemoryAdapter:
    """The same with ``rank`` more rows of A, which are zero."""
    tensors = {}
    for name, (a, b) in adapter.tensors.items():
        more = torch.randn(b.shape[0], rank, generator=torch.Generator().manual_seed(3))
        tensors[name] = torch.cat([a, torch.zeros(rank, a.shape[1])]), torch.cat([b, more], dim=1)
    return rescaled(adapter, tensors)


def repeated(adapter: MemoryAdapter) -> MemoryAdapter:
    """The same with every row of A twice and half of every column of B twice: half of the rank is not used."""
    tensors = {name: (torch.cat([a, a]), torch.cat([b, b], dim=1) / 2) for name, (a, b) in adapter.tensors.items()}
    return rescaled(adapter, tensors)


def nothing(adapter: MemoryAdapter) -> MemoryAdapter:
    """An adapter of rank 2 that does nothing."""
    zero = make_adapter(9, rank=2)
    return rescaled(zero, {name: (a, torch.zeros_like(b)) for name, (a, b) in zero.tensors.items()})


def largest_difference(
    method: str, space: str, sources: Any, others: Any, weights: Any = None, **parameters: object
) -> float:
    def recipe(given: Any) -> Any:
        fields = {"parameters": METHODS[method] | parameters, "space": space, "seed": 7, "rank": 20}
        return make_recipe(method, given, **fields)

    plain, found = merge_dense(recipe(WEIGHTS), sources), merge_dense(recipe(weights or WEIGHTS), others)
    return max(relative(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("space", ["knots", "core"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", [lambda x: padded(x, 5), repeated, lambda x: repeated(x).regauged(4)])
def test_ranks_that_are_not_used_change_nothing(method: Any, space: str, change: Any, sources: Any) -> None:
    others = {"a": change(sources["a"]), "b": sources["b"]}
    assert largest_difference(method, space, sources, others) < SAME


@pytest.mark.parametrize("space", ["knots", "core"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "sce"])
def test_an_adapter_that_does_nothing_changes_nothing(method: Any, space: str, sources: Any) -> None:
    """But for SCE, whose variance counts it as one more task."""
    others = sources | {"z": nothing(sources["a"])}
    assert largest_difference(method, space, sources, others, WEIGHTS | {"z": 1.0}) < SAME


@pytest.mark.parametrize("space", ["knots", "core", "delta"])
@pytest.mark.parametrize("method", ["ties", "magnitude_prune"])
def test_one_threshold_for_all_modules_counts_the_same(method: str, space: str, sources: Any) -> None:
    others = {"a": padded(repeated(sources["a"]), 5), "b": sources["b"]}
    assert largest_difference(method, space, sources, others, scope="global") < SAME


@pytest.mark.parametrize("space", ["knots", "core"])
def test_modules_of_several_ranks_in_one_batch(space: str) -> None:
    """Two modules of one shape whose inputs have lost different ranks are counted each by itself."""
    names = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
    whole = {"a": make_adapter(1, rank=4), "b": make_adapter(2, rank=4)}
    a, b = whole["a"].tensors[names[0]]
    lost = dict(whole["a"].tensors) | {names[0]: (torch.cat([a[:2], a[:2]]), b)}
    together = whole | {"a": rescaled(whole["a"], lost)}
    alone = {n: rescaled(s, {names[0]: s.tensors[names[0]]}) for n, s in together.items()}
    recipe = make_recipe("ties", WEIGHTS, parameters={"density": 0.3}, space=space, rank=20)
    assert relative(merge_dense(recipe, together)[names[0]], merge_dense(recipe, alone)[names[0]]) < SAME
    assert relative(merge_dense(recipe, together)[names[1]], merge_dense(recipe, whole)[names[1]]) < SAME


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("method", [*METHODS, "ties at density 1"])
def test_representations_made_in_blocks_give_the_same(
    method: Any, scope: str, sources: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too large to hold is made and merged block by block of rows."""
    name = method.partition(" ")[0]
    parameters: dict[str, Any] = {"density": 1.0} if name != method else METHODS[method]
    if scope == "global" and name not in ("ties", "magnitude_prune"):
        return
    if scope == "global":
        parameters = parameters | {"scope": scope}
    three = sources | {"c": padded(make_adapter(3, rank=3), 2)}
    recipe = make_recipe(name, WEIGHTS | {"c": -0.5}, parameters=parameters, space="knots", seed=7, rank=20)
    held = merge_dense(recipe, three)
    monkeypatch.setattr(knots, "HELD_BYTES", 0)
    monkeypatch.setattr(selection, "TILE_ENTRIES", 3 * 20)
    made = merge_dense(recipe, three)
    assert max(relative(made[module], held[module]) for module in held) < SAME


@pytest.mark.parametrize(("method", "space"), [("ties", None), ("dare_ties", "knots"), ("sce", None), ("ties", "core")])
def test_forty_adapters_of_an_8b_model_fit_the_default_workspace(method: str, space: str | None) -> None:
    shapes = {"q": (4096, 4096), "k": (1024, 4096), "gate": (14336, 4096), "down": (4096, 14336)}
    modules = {
        name: ModuleHeader(name, 16, columns, rows, 2.0, "BF16")
        for layer in range(32)
        for kind, (rows, columns) in shapes.items()
        for name in [f"model.layers.{layer}.{kind}_proj"]
    }
    names = [f"in{i}" for i in range(40)]
    headers = dict.fromkeys(names, AdapterHeader(modules, None, 0))
    layout = plan(make_recipe(method, dict.fromkeys(names, 1.0), space=space), headers, max_rank=32)
    assert peak_bytes(layout, RunOptions()) < RunOptions().max_workspace_bytes + layout.output_bytes
