"""What must hold for any method, over shapes, ranks, patterns, rsLoRA, missing modules, signs and dtypes.

Each invariant has a name in ``INVARIANTS`` and lists the methods it is claimed for; what a method's definition excludes
is excluded by name, with the reason beside it.
"""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amalgam.merge.methods import METHODS, Consensus, Space, Sparsify
from amalgam.merge.run import RunOptions
from tests.merge_factory import MemoryAdapter, make_adapter, make_recipe, merge_dense, relative

ROUNDING = 5e-6
"""float32 products and sums, a few hundred of them."""

GAUGE = 2e-4
"""A gauge of condition number around 10 costs the factors themselves about 1e-6; elections may flip where a sum is 0 to
float32, which moves single entries."""

NAMES = ("model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.1.up_proj")
LINEAR = tuple(name for name, spec in METHODS.items() if spec.sparsify is Sparsify.NONE
               and spec.consensus in (Consensus.SUM, Consensus.PICK))  # fmt: skip
CASES = [(name, str(space)) for name, spec in METHODS.items() for space in spec.spaces]
GAUGE_FREE = [(name, space) for name, space in CASES if space != Space.FACTOR]
FLATTENING = {"iso_c"}  # sets all singular values to their mean, so one adapter does not come back
PAIR_ONLY = {"slerp"}

DENSE = {
    "ties": {"density": 1.0},
    "magnitude_prune": {"density": 1.0},
    "dare_linear": {"density": 1.0},
    "dare_ties": {"density": 1.0},
    "della": {"density": 1.0, "epsilon": 0.0},
    "della_linear": {"density": 1.0, "epsilon": 0.0},
    "breadcrumbs": {"density": 1.0, "gamma": 0.0},
    "breadcrumbs_ties": {"density": 1.0, "gamma": 0.0},
    "sce": {"density": 1.0},
}
"""Parameters under which a sparsifying method keeps everything."""

FEW = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

shapes = st.fixed_dictionaries({name: st.tuples(st.integers(5, 20), st.integers(5, 20)) for name in NAMES[1:]}).map(
    lambda found: {NAMES[0]: found[NAMES[1]], **found}
)
seeds = st.integers(0, 10_000)


@st.composite
def adapters(draw: Any, shape: Any, *, equal_ranks: bool = False) -> Any:
    """An adapter of any kind: rank pattern, alpha, rsLoRA, dtype."""
    ranks = 3 if equal_ranks else {name: draw(st.integers(1, 4)) for name in NAMES}
    return make_adapter(
        draw(seeds),
        rank=ranks,
        alpha=draw(st.sampled_from([1.0, 8.0, 16.0])),
        rslora=draw(st.booleans()),
        shapes=shape,
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
    )


def merged(method: Any, space: Any, weights: Any, sources: Any, **fields: Any) -> Any:
    parameters = fields.pop("parameters", DENSE.get(method, {}))
    recipe = make_recipe(method, weights, space=space, parameters=parameters, **fields)
    return merge_dense(recipe, sources, options=RunOptions(diagnostics=False))


def twin(adapter: MemoryAdapter) -> MemoryAdapter:
    return MemoryAdapter(dict(adapter.tensors), dict(adapter.scaling), digest="f" * 64)


@pytest.mark.parametrize(("method", "space"), [c for c in CASES if c[0] not in FLATTENING | PAIR_ONLY])
@FEW
@given(data=st.data())
def test_1_one_adapter_with_weight_1_is_itself(method: Any, space: Any, data: Any) -> None:
    source = data.draw(adapters(data.draw(shapes)))
    found = merged(method, space, {"a": 1.0}, {"a": source})
    for name in NAMES:
        assert relative(found[name], source.delta(name)) < ROUNDING


@pytest.mark.parametrize(("method", "space"), [c for c in CASES if c[0] in LINEAR])
@FEW
@given(data=st.data(), weight=st.sampled_from([-2.0, -0.3, 0.5, 3.0]))
def test_2_one_adapter_with_weight_w_is_w_times_itself(method: Any, space: Any, data: Any, weight: Any) -> None:
    source = data.draw(adapters(data.draw(shapes)))
    found = merged(method, space, {"a": weight}, {"a": source})
    for name in NAMES:
        assert relative(found[name], weight * source.delta(name)) < ROUNDING


# Not claimed: passthrough takes one adapter per module; model_stock has no weights; factor space multiplies sums.
HALVES = [c for c in CASES if c[0] not in FLATTENING | {"passthrough", "model_stock"} and c[1] != Space.FACTOR]


@pytest.mark.parametrize(("method", "space"), HALVES)
@FEW
@given(data=st.data())
def test_3_halves_of_one_adapter_are_itself(method: Any, space: Any, data: Any) -> None:
    source = data.draw(adapters(data.draw(shapes)))
    found = merged(method, space, {"a": 0.5, "b": 0.5}, {"a": source, "b": twin(source)})
    for name in NAMES:
        assert relative(found[name], source.delta(name)) < ROUNDING


# Claimed for sums. An election sees u = x and u = -x, a tie that counts as +, and keeps |x| by definition.
CANCELLING = [
    (name, space) for name, space in CASES
    if METHODS[name].consensus in (Consensus.SUM, Consensus.TSV, Consensus.ISO_C) and space != Space.FACTOR
]  # fmt: skip


@pytest.mark.parametrize(("method", "space"), CANCELLING)
@FEW
@given(data=st.data())
def test_4_an_adapter_minus_itself_is_zero(method: Any, space: Any, data: Any) -> None:
    source = data.draw(adapters(data.draw(shapes)))
    parameters = {} if METHODS[method].random else DENSE.get(method, {})
    if METHODS[method].random:
        parameters = DENSE[method]  # the two copies have masks of their own; only when all is kept do they cancel
    found = merged(method, space, {"a": 1.0, "b": -1.0}, {"a": source, "b": twin(source)}, parameters=parameters)
    for name in NAMES:
        assert float(found[name].norm()) < 2e-6 * float(source.delta(name).norm())


@pytest.mark.parametrize(("method", "space"), GAUGE_FREE)
@FEW
@given(data=st.data(), gauge=seeds)
def test_5_splitting_a_delta_otherwise_changes_nothing(method: Any, space: Any, data: Any, gauge: Any) -> None:
    shape = data.draw(shapes)
    names = ("a",) if method == "passthrough" else ("a", "b")
    sources = {name: data.draw(adapters(shape)) for name in names}
    sources = {name: source.regauged(0, spread=0.0) for name, source in sources.items()}
    other = {name: source.regauged(gauge + 1, spread=0.7) for name, source in sources.items()}
    weights = dict.fromkeys(names, 1.0)
    # All singular values of an isotropic merge are equal, so a cut would be arbitrary.
    rank = "auto" if method == "iso_c" else 3
    before, after = (merged(method, space, weights, s, parameters={}, rank=rank) for s in (sources, other))
    for name in NAMES:
        scale = max(source.delta(name).norm() for source in sources.values())
        assert float((after[name] - before[name]).norm()) < GAUGE * float(scale)


@pytest.mark.parametrize(("method", "space"), [c for c in CASES if c[0] not in PAIR_ONLY | {"passthrough"}])
@FEW
@given(data=st.data())
def test_6_the_order_of_inputs_does_not_matter_to_the_last_bit(method: Any, space: Any, data: Any) -> None:
    shape = data.draw(shapes)
    sources = {name: data.draw(adapters(shape, equal_ranks=True)) for name in ("a", "b", "c")}
    weights = dict.fromkeys("abc", 1.0) if method == "model_stock" else {"a": 1.0, "b": 0.5, "c": 0.25}
    turned = {name: weights[name] for name in ("c", "a", "b")}
    before, after = (merged(method, space, w, sources, parameters={}) for w in (weights, turned))
    for name in NAMES:
        assert torch.equal(before[name], after[name])


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "ties", "breadcrumbs", "sce"])
@FEW
@given(data=st.data())
def test_6_workspace_and_tiles_do_not_matter(method: str, data: Any, monkeypatch_tiles: Any) -> None:
    shape = data.draw(shapes)
    sources = {name: data.draw(adapters(shape)) for name in ("a", "b")}
    recipe = make_recipe(method, {"a": 1.0, "b": -0.5}, space="delta", rank=4)
    wide = merge_dense(recipe, sources, options=RunOptions(max_workspace_bytes=1 << 28))
    least = merge_dense(recipe, sources, options=RunOptions(max_workspace_bytes=40_000))
    with monkeypatch_tiles(7):
        tiled = merge_dense(recipe, sources)
    for name in NAMES:
        assert relative(least[name], wide[name]) < 1e-4
        assert relative(tiled[name], wide[name]) < 1e-4


@FEW
@given(data=st.data())
def test_6_a_mask_does_not_depend_on_the_other_adapters(data: Any) -> None:
    shape = data.draw(shapes)
    sources = {name: data.draw(adapters(shape)) for name in ("a", "b", "c")}
    for name, source in sources.items():
        source.digest = name * 64
    options = {"parameters": {"density": 0.4}, "seed": 5, "rank": 20}
    together = merged("dare_linear", "delta", {"a": 1.0, "b": 2.0, "c": -1.0}, sources, **options)
    alone = [merged("dare_linear", "delta", {name: w}, sources, **options)
             for name, w in (("a", 1.0), ("b", 2.0), ("c", -1.0))]  # fmt: skip
    for name in NAMES:
        assert relative(together[name], sum(part[name] for part in alone)) < 1e-5


# Missing modules count as zero in sums and abstain in averages; factor space refuses unequal ranks and says so.
MIXED = [
    (name, space) for name, space in CASES if space != Space.FACTOR and name not in PAIR_ONLY | {"passthrough"}
]  # fmt: skip


@pytest.mark.parametrize(("method", "space"), MIXED)
@FEW
@given(data=st.data())
def test_7_a_module_that_one_adapter_lacks_is_the_other_adapters(method: Any, space: Any, data: Any) -> None:
    shape = data.draw(shapes)
    sources = {name: data.draw(adapters(shape)) for name in ("a", "b")}
    del sources["b"].tensors[NAMES[2]]
    alone = merged(method, space, {"a": 1.0}, sources)[NAMES[2]]
    both = merged(method, space, {"a": 1.0, "b": 1.0}, sources)
    assert set(both) == set(NAMES)
    share = 0.5 if method == "linear" else 1.0
    assert relative(both[NAMES[2]], share * alone) < ROUNDING


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_7_mixed_ranks_rslora_and_missing_modules_are_exact(data: Any) -> None:
    """Different ranks, one rsLoRA, one with fewer modules, weights (1, -0.5): 1e-5 of the dense answer."""
    shape = data.draw(shapes)
    first = make_adapter(data.draw(seeds), rank=4, alpha=16, rslora=True, shapes=shape)
    second = make_adapter(data.draw(seeds), rank=2, alpha=8, shapes=shape, drop=NAMES[:1])
    for rank in ("auto", 3):
        recipe = make_recipe("task_arithmetic", {"a": 1.0, "b": -0.5}, rank=rank)
        found = merge_dense(recipe, {"a": first, "b": second})
        for name in NAMES:
            expected = first.delta(name)
            if name in second.tensors:
                expected = expected - 0.5 * second.delta(name)
            if rank == 3:
                U, S, V = torch.linalg.svd(expected, full_matrices=False)
                expected = (U[:, :3] * S[:3]) @ V[:3]
            assert relative(found[name], expected) < 1e-5


@pytest.mark.parametrize("step", [{"norm_balance": True}, {"calibrate": "pico"}, {"orthogonalize_against": ("old",)},
                                  {"orthogonalize_against": ("old",), "orthogonalize_rows": True}])  # fmt: skip
@FEW
@given(data=st.data(), gauge=seeds)
def test_pre_steps_do_what_they_say_in_any_gauge(step: dict[str, Any], data: Any, gauge: Any) -> None:
    shape = data.draw(shapes)
    sources = {name: make_adapter(data.draw(seeds), rank=2, shapes=shape, size=size)
               for name, size in (("a", 1.0), ("b", 5.0), ("old", 1.0))}  # fmt: skip
    found = merged("task_arithmetic", "concat", {"a": 1.0, "b": 1.0}, sources, **step)
    other = {name: source.regauged(gauge + 7, spread=0.5) for name, source in sources.items()}
    again = merged("task_arithmetic", "concat", {"a": 1.0, "b": 1.0}, other, **step)
    for name in NAMES:
        a, b, old = (sources[n].delta(name) for n in ("a", "b", "old"))
        assert relative(again[name], found[name], scale=b) < 1e-4
        if "norm_balance" in step:
            mean = (a.norm() + b.norm()) / 2
            assert relative(found[name], mean * (a / a.norm() + b / b.norm())) < ROUNDING
        elif "calibrate" in step:
            assert relative(found[name], pico(a, b)) < 1e-4
        else:
            U, _, V = torch.linalg.svd(old)
            left, right = U[:, :2] @ U[:, :2].mT, V[:2].mT @ V[:2]
            expected = a + b - left @ (a + b)
            assert float((left @ found[name]).norm()) < 1e-5 * float((a + b).norm())
            if "orthogonalize_rows" in step:
                expected = expected - expected @ right
                assert float((found[name] @ right).norm()) < 1e-5 * float((a + b).norm())
            assert relative(found[name], expected, scale=b) < 1e-4


def pico(*deltas: Any) -> Any:
    """The calibration, densely, from its definition."""
    balanced = []
    for delta in deltas:
        U, S, _ = torch.linalg.svd(delta, full_matrices=False)
        balanced.append(U[:, :2] * S[:2].sqrt())
    U, S, _ = torch.linalg.svd(torch.cat(balanced, dim=1), full_matrices=False)
    damping = 1 / (1 + (len(deltas) - 1) * S**2 / (S**2).sum())
    damped = [delta + U @ ((damping - 1)[:, None] * (U.mT @ delta)) for delta in deltas]
    scale = sum(d.norm() for d in deltas) / sum(d.norm() for d in damped)
    return scale * sum(damped)
