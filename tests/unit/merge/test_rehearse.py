"""A rehearsal computes what a build computes, writes nothing, and stops when the time is up."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from amalgam.errors.merge_run import WorkspaceTooSmall
from amalgam.merge import run
from amalgam.merge.build import BuildOptions, build_adapter
from amalgam.merge.rehearse import rehearse
from amalgam.merge.run import RunOptions, module_bytes, peak_bytes
from amalgam.store.tensor_files import FolderSink
from tests.merge_factory import make_adapter, make_recipe

SOURCES = {"a": make_adapter(1, rank=4), "b": make_adapter(2, rank=3)}
OPTIONS = BuildOptions(max_rank=64)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties"])
def test_it_foretells_what_is_built(tmp_path: Path, method: str) -> None:
    recipe = make_recipe(method, {"a": 1.0, "b": 0.5}, rank=3)
    built = build_adapter(recipe, SOURCES, FolderSink(tmp_path), OPTIONS)
    forecast = rehearse(recipe, SOURCES, OPTIONS, is_over=lambda: False)
    assert forecast.is_complete
    assert forecast.modules_seen == built.module_count
    assert forecast.modules == built.diagnostics
    assert forecast.overall == built.lineage["overall"]
    assert forecast.energy_kept == pytest.approx(built.energy_kept)
    assert forecast.energy_kept is not None
    assert forecast.energy_kept < 1


def test_it_ends_in_time_and_extrapolates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BATCH_BYTES", 1)
    recipe = make_recipe("linear", {"a": 1.0, "b": 1.0})
    batches = itertools.count()
    seconds = itertools.count(0, 10)
    forecast = rehearse(
        recipe, SOURCES, OPTIONS, is_over=lambda: next(batches) == 2, clock=lambda: float(next(seconds))
    )
    assert not forecast.is_complete
    assert forecast.modules_seen == len(forecast.modules) == 2
    layout = run_plan(recipe)
    work = [module_bytes(module, layout.space) for module in layout.modules]
    assert forecast.compute_s == pytest.approx(10 * sum(work) / sum(work[:2]))
    nothing = rehearse(recipe, SOURCES, OPTIONS, is_over=lambda: True)
    assert (nothing.is_complete, nothing.modules_seen, nothing.compute_s, nothing.energy_kept) == (False, 0, None, None)


def test_memory_is_the_largest_batch_and_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe("linear", {"a": 1.0, "b": 1.0})
    layout = run_plan(recipe)
    one = max(module_bytes(module, layout.space) for module in layout.modules)
    together = peak_bytes(layout, RunOptions())
    monkeypatch.setattr(run, "BATCH_BYTES", 1)
    assert peak_bytes(layout, RunOptions()) == layout.output_bytes + one
    assert together > layout.output_bytes + one
    with pytest.raises(WorkspaceTooSmall):
        peak_bytes(layout, RunOptions(max_workspace_bytes=16))


def run_plan(recipe: Any) -> Any:
    from amalgam.merge.plan import plan

    return plan(recipe, {name: source.header for name, source in SOURCES.items()}, max_rank=64)
