"""What is written beside what was computed: rounding, near copies, one rank for all, and a lineage of bounded size."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amalgam.cli.merge_report import render
from amalgam.domain.recipe import Recipe
from amalgam.merge.build import BuildOptions, MergeOutcome, build_adapter
from amalgam.store.peft_folder import read_peft_folder
from amalgam.store.tensor_files import FolderSink, open_tensors
from tests.merge_factory import SHAPES, MemoryAdapter, make_adapter, make_recipe, relative

FLAT = {"a": 1.0, "b": 1.0}


def build(
    folder: Path, sources: Mapping[str, MemoryAdapter], recipe: Recipe
) -> tuple[MergeOutcome, dict[str, tuple[Tensor, Tensor]]]:
    outcome = build_adapter(recipe, sources, FolderSink(folder), BuildOptions(max_rank=64))
    opened = open_tensors(folder, read_peft_folder(folder, None).require())
    return outcome, {name: opened.factors(name) for name in opened.header.modules}


def test_what_storing_costs_is_said(tmp_path: Path) -> None:
    """In bfloat16 a few thousandths, as a dense comparison finds it; in float32 nothing."""
    sources = {"a": make_adapter(1), "b": make_adapter(2)}
    found = {}
    for dtype in ("bfloat16", "float32"):
        outcome, written = build(tmp_path / dtype, sources, make_recipe("task_arithmetic", FLAT, dtype=dtype))
        found[dtype] = outcome.lineage["result"]["storage_error"]
        error = total = 0.0
        for name, (a, b) in written.items():
            exact = sources["a"].delta(name) + sources["b"].delta(name)
            error += float((b.double() @ a.double() - exact).square().sum())
            total += float(exact.square().sum())
        assert found[dtype] == pytest.approx((error / total) ** 0.5, rel=0.02, abs=2e-7)
    assert 1e-3 < found["bfloat16"] < 5e-3


def test_near_copies_subtract_right(tmp_path: Path) -> None:
    """A checkpoint less an earlier one, 1 % apart: stored side by side, bfloat16 would be 23 % off."""
    later = make_adapter(1, rank=8)
    step = make_adapter(2, rank=8)
    near = {n: (a + 0.01 * step.tensors[n][0], b + 0.01 * step.tensors[n][1]) for n, (a, b) in later.tensors.items()}
    sources = {"a": later, "b": replace(later, tensors=near, digest="b" * 64, reads=[])}
    recipe = make_recipe("task_arithmetic", {"a": 1.0, "b": -1.0}, dtype="bfloat16")
    outcome, written = build(tmp_path, sources, recipe)
    for name, (a, b) in written.items():
        exact = sources["a"].delta(name) - sources["b"].delta(name)
        assert relative(b.double() @ a.double(), exact) < 6e-3
    assert outcome.lineage["result"]["storage_error"] < 6e-3
    assert not outcome.warnings


def test_one_rank_everywhere_for_readers_that_know_no_patterns(tmp_path: Path) -> None:
    ranks = dict(zip(SHAPES, (2, 4, 3, 5), strict=True))
    sources = {"a": make_adapter(1, rank=ranks)}
    plain, before = build(tmp_path / "plain", sources, make_recipe("linear", {"a": 1.0}))
    even, after = build(tmp_path / "even", sources, make_recipe("linear", {"a": 1.0}, uniform_rank=True))
    assert plain.config["rank_pattern"]
    assert even.config["rank_pattern"] == even.config["alpha_pattern"] == {}
    for name, (a, b) in after.items():
        assert (a.shape[0], b.shape[1]) == (5, 5)
        assert torch.equal(b @ a, before[name][1] @ before[name][0])


def test_a_lineage_of_many_inputs_stays_small(tmp_path: Path) -> None:
    shapes = {f"model.layers.{i}.mlp.{kind}_proj": (24, 20) for i in range(32) for kind in "abcdefg"}
    sources = {f"in{i:02}": make_adapter(i, rank=1, shapes=shapes) for i in range(40)}
    build(tmp_path, sources, make_recipe("linear", dict.fromkeys(sources, 1.0)))
    assert (tmp_path / "lineage.json").stat().st_size < 1 << 20
    assert "<svg" in render(json.loads((tmp_path / "lineage.json").read_text()))
