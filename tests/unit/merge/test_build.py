"""Building as a whole: bytes, lineage, energy, cancellation, bounds, and what only tensors can tell."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from amalgam.domain.delta_bound import DeltaBound
from amalgam.errors.merge_run import BackendUnavailable, MergeCancelled, WorkspaceTooSmall
from amalgam.errors.merging import DeltaTooLarge, EnergyTooLow, MergeUndefined, NonFinite
from amalgam.merge.build import BuildOptions, build_adapter, diagnose
from amalgam.merge.peft_config import peft_config
from amalgam.merge.run import RunOptions
from amalgam.store.tensor_files import FolderSink, open_tensors
from tests.merge_factory import make_adapter, make_recipe, merge_dense, relative

SOURCES = {"a": make_adapter(1, rank=4), "b": make_adapter(2, rank=3)}


def build(folder: Any, recipe: Any, sources: Any = None, options: Any = None, **hooks: Any) -> Any:
    return build_adapter(recipe, sources or SOURCES, FolderSink(folder), options or BuildOptions(max_rank=64), **hooks)


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_equal_recipes_give_equal_bytes(tmp_path: Path, method: str) -> None:
    recipe = make_recipe(method, {"a": 1.0, "b": 0.5}, dtype="bfloat16", seed=3)
    one, two = build(tmp_path / "1", recipe), build(tmp_path / "2", recipe)
    for name in ("adapter_model.safetensors", "adapter_config.json", "lineage.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert one.lineage == two.lineage


def test_written_tensors_read_back_as_merged(tmp_path: Path) -> None:
    recipe = make_recipe("task_arithmetic", {"a": 1.0, "b": -0.5})
    outcome = build(tmp_path, recipe)
    header = SOURCES["a"].header
    opened = open_tensors(tmp_path, header)
    expected = merge_dense(recipe, SOURCES)
    for module in header.modules:
        a, b = opened.factors(module)
        assert a.dtype == torch.float32
        assert relative(b.double() @ a.double(), expected[module]) < 1e-12
    assert outcome.config["r"] == outcome.config["lora_alpha"] == 7
    assert outcome.rank == 7
    assert outcome.energy_kept == pytest.approx(1.0)


def test_lineage_says_what_was_done(tmp_path: Path) -> None:
    outcome = build(tmp_path, make_recipe("ties", {"a": 1.0, "b": 0.5}, rank=2))
    lineage = json.loads((tmp_path / "lineage.json").read_text())
    assert lineage["recipe"]["parameters"]["density"] == 1.0
    assert lineage["recipe_digest"] == outcome.recipe.digest()
    assert lineage["inputs"] == {name: source.digest for name, source in SOURCES.items()}
    scales = [module.scaling for module in SOURCES["b"].header.modules.values()]
    assert lineage["input_factors"]["b"] == {"modules": 4, "rank": [3, 3], "scaling": [min(scales), max(scales)]}
    assert lineage["computed_on"] == {"device": "cpu", "backend": "torch"}
    assert lineage["result"]["rank"] == 2
    assert len(lineage["diagnostics"]) == 4
    assert "diagnostics" not in outcome.lineage


def test_low_energy_warns_and_min_energy_refuses(tmp_path: Path) -> None:
    outcome = build(tmp_path / "1", make_recipe("task_arithmetic", {"a": 1.0, "b": 1.0}, rank=1))
    total = kept = 0.0
    for module in SOURCES["a"].tensors:
        squares = torch.linalg.svdvals(SOURCES["a"].delta(module) + SOURCES["b"].delta(module)).square()
        total, kept = total + float(squares.sum()), kept + float(squares[0])
    assert outcome.energy_kept == pytest.approx(kept / total, rel=1e-5)
    assert any("energy" in text for text in outcome.warnings)
    with pytest.raises(EnergyTooLow):
        build(tmp_path / "2", make_recipe("task_arithmetic", {"a": 1.0, "b": 1.0}, rank=1, min_energy=0.9))
    assert not (tmp_path / "2").exists()


def test_cancelling_writes_nothing(tmp_path: Path) -> None:
    seen = []
    with pytest.raises(MergeCancelled):
        build(
            tmp_path / "out", make_recipe("linear", {"a": 1.0}),
            on_progress=lambda done, total: seen.append((done, total)), is_cancelled=lambda: bool(seen),
        )  # fmt: skip
    assert seen[0][1] == 4
    assert not (tmp_path / "out").exists()


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen = []
    build(tmp_path, make_recipe("linear", {"a": 1.0}), on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_bad_numbers_in_an_input_name_the_adapter_and_the_module(tmp_path: Path, value: Any, side: int) -> None:
    bad = make_adapter(3, rank=4)
    bad.tensors["lm_head"][side][1, 2] = value
    with pytest.raises(NonFinite, match=r"bad holds .* lm_head"):
        build(tmp_path / "out", make_recipe("linear", {"a": 1.0, "bad": 1.0}), {**SOURCES, "bad": bad})
    assert not (tmp_path / "out").exists()


def test_overflow_of_float16_is_refused(tmp_path: Path) -> None:
    huge = make_adapter(3, rank=2, size=1e8)
    unbounded = BuildOptions(max_rank=64, delta_bound=DeltaBound(math.inf))
    with pytest.raises(NonFinite, match="bfloat16"):
        build(tmp_path / "out", make_recipe("task_arithmetic", {"h": 1e6}, dtype="float16"), {"h": huge}, unbounded)
    build(tmp_path / "fits", make_recipe("task_arithmetic", {"h": 1e6}, dtype="bfloat16"), {"h": huge}, unbounded)


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "ties"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_result_that_would_overflow_in_the_model_is_refused(tmp_path: Path, method: str, dtype: str) -> None:
    """Finite, and stored without loss; no file is written."""
    for size in (1e6, 1e12, 1e15):
        sources = {"a": make_adapter(1, rank=4, size=size), "b": make_adapter(2, rank=3, size=size)}
        with pytest.raises(DeltaTooLarge, match="times its own size"):
            build(tmp_path / "out", make_recipe(method, {"a": 1e3, "b": 1e2}, dtype=dtype), sources)
    assert not (tmp_path / "out").exists()


def test_weights_that_people_give_are_in_bounds(tmp_path: Path) -> None:
    """Against weights of the size that models have."""
    bound = DeltaBound(weight_rms=lambda module: 0.05)
    trained = {name: make_adapter(seed, rank=4, size=0.05) for seed, name in enumerate(("a", "b"))}
    for weights in ({"a": 5.0, "b": 1.0}, {"a": 10.0, "b": -5.0}, {"a": 1.0, "b": -1.0}, {"a": 0.01, "b": 0.0001}):
        options = BuildOptions(max_rank=64, delta_bound=bound)
        build(tmp_path / "out", make_recipe("task_arithmetic", weights), trained, options)


def test_inputs_that_cancel_are_judged_by_what_is_left(tmp_path: Path) -> None:
    large = make_adapter(3, rank=2, size=20.0)
    recipe = make_recipe("task_arithmetic", {"h": 1e3, "i": -0.9999e3}, dtype="float32")
    build(tmp_path / "out", recipe, {"h": large, "i": large})


def test_opposite_deltas_have_no_arc(tmp_path: Path) -> None:
    opposite = make_adapter(1, rank=4)
    opposite.scaling = {name: -value for name, value in opposite.scaling.items()}
    for method in ("slerp", "karcher", "multislerp"):
        with pytest.raises(MergeUndefined, match=method):
            build(tmp_path, make_recipe(method, {"a": 1.0, "n": 1.0}), {"a": SOURCES["a"], "n": opposite})


def test_zero_deltas_are_no_trouble() -> None:
    zero = make_adapter(1, rank=4, size=0.0)
    sources = {"a": SOURCES["a"], "zero": zero}
    for method in ("linear", "ties", "slerp", "karcher", "model_stock", "tsv", "iso_c", "sce", "dare_ties"):
        found = merge_dense(make_recipe(method, {"a": 1.0, "zero": 1.0}), sources)
        assert all(torch.isfinite(x).all() for x in found.values()), method
    alone = merge_dense(make_recipe("ties", {"zero": 1.0}), sources)
    assert all(float(x.norm()) == 0 for x in alone.values())


def test_workspace_and_backend_are_refused_not_ignored(tmp_path: Path) -> None:
    recipe = make_recipe("ties", {"a": 1.0, "b": 1.0}, space="delta")
    small = BuildOptions(max_rank=64, run=RunOptions(max_workspace_bytes=1000))
    with pytest.raises(WorkspaceTooSmall):
        build(tmp_path, recipe, options=small)
    for run in (RunOptions(backend="triton"), RunOptions(backend="nope"), RunOptions(device="cuda:99"),
                RunOptions(device="nope")):  # fmt: skip
        with pytest.raises(BackendUnavailable):
            build(tmp_path, recipe, options=BuildOptions(max_rank=64, run=run))


def test_nothing_is_read_when_the_plan_refuses(tmp_path: Path) -> None:
    watched = make_adapter(5)
    with pytest.raises(Exception, match="rank"):
        build(tmp_path, make_recipe("linear", {"w": 1.0}, rank=500), {"w": watched})
    assert watched.reads == []


def test_diagnose_describes_inputs_without_building() -> None:
    layout, modules, overall = diagnose(make_recipe("linear", {"a": 1.0, "b": 1.0}), SOURCES, BuildOptions(max_rank=64))
    assert len(modules) == len(layout.modules) == 4
    for module in modules:
        a, b = SOURCES["a"].delta(module.name), SOURCES["b"].delta(module.name)
        assert module.result is None
        assert module.given.norms == pytest.approx([float(a.norm()), float(b.norm())], rel=1e-4)
        assert module.given.cosine[0][1] == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), abs=1e-4)
        assert module.given.sum_norm == pytest.approx(float((a + b).norm()) / 2, rel=1e-4)
        Qa, Qb = (torch.linalg.svd(x)[0][:, :r] for x, r in ((a, 4), (b, 3)))
        assert module.given.column_overlap[0][1] == pytest.approx(float((Qa.mT @ Qb).square().sum() / 3), rel=1e-3)
        conflict = float((a.sign() != b.sign()).double().mean())
        assert module.given.sign_conflict[0][1] == pytest.approx(conflict, abs=1e-4)  # small modules are sampled whole
    cosines: Any = overall["cosine"]
    assert cosines[0][0] == pytest.approx(1.0)


def test_result_diagnostics_match_the_dense_result(tmp_path: Path) -> None:
    recipe = make_recipe("task_arithmetic", {"a": 1.0, "b": -0.5}, rank=3)
    outcome = build(tmp_path, recipe)
    merged = merge_dense(recipe, SOURCES)
    for module in outcome.diagnostics:
        assert module.result is not None
        out = merged[module.name]
        a, b = SOURCES["a"].delta(module.name), SOURCES["b"].delta(module.name)
        sigma = torch.linalg.svdvals(a - 0.5 * b)
        assert module.result.norm == pytest.approx(float(out.norm()), rel=1e-4)
        assert module.result.spectrum == pytest.approx(sigma[:7].tolist(), rel=1e-4)
        assert module.result.stable_rank == pytest.approx(float(sigma.square().sum() / sigma[0] ** 2), rel=1e-4)
        retention = [float((out * x).sum() / x.square().sum()) for x in (a, b)]
        assert module.result.retention == pytest.approx(retention, rel=1e-3)
        U, _, V = torch.linalg.svd(out)
        inside = [float((U[:, :3].mT @ x @ V[:3].mT).square().sum() / x.square().sum()) for x in (a, b)]
        assert module.result.inside == pytest.approx(inside, rel=1e-3)


def test_config_names_ranks_and_targets() -> None:
    names = [f"model.layers.{i}.{kind}" for i in range(12) for kind in ("self_attn.q_proj", "mlp.up_proj")]
    config = peft_config(dict.fromkeys(names, 8), "base")
    assert config["target_modules"] == sorted(names)
    assert config["task_type"] is None
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    mixed = peft_config({names[0]: 4, **dict.fromkeys(names[1:], 8)}, None)
    assert mixed["rank_pattern"] == mixed["alpha_pattern"] == {names[0]: 4}
    assert (mixed["r"], mixed["lora_alpha"], mixed["use_rslora"]) == (8, 8, False)


def test_a_merge_of_deltas_counts_every_sign(tmp_path: Path) -> None:
    """In a module larger than the sample: the share of all entries, to the last one."""
    name = "model.layers.0.q_proj"
    sources = {key: make_adapter(seed, rank=3, shapes={name: (150, 130)}) for seed, key in enumerate("ab")}
    exact = float((sources["a"].delta(name) * sources["b"].delta(name) < 0).double().mean())
    errors = {}
    for space in ("delta", "knots"):
        recipe = make_recipe("ties", {"a": 1.0, "b": -0.5}, space=space, rank=4)
        (module,) = build(tmp_path / space, recipe, sources).diagnostics
        errors[space] = abs(module.given.sign_conflict[0][1] - exact)
    assert errors["delta"] < 2e-5 < errors["knots"] < 0.05
