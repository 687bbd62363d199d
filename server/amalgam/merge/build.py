"""The one call that turns a recipe and opened inputs into a written adapter."""

import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch.nn import functional

import amalgam
from amalgam.domain.adapter import AdapterHeader
from amalgam.domain.delta_bound import MAX_ENTRY, DeltaBound
from amalgam.domain.diagnostics import ModuleDiagnostics
from amalgam.domain.recipe import Recipe
from amalgam.errors.merging import DeltaTooLarge, EnergyTooLow, FactorTooLarge, OutputTooLarge
from amalgam.kernels.backend import usable_device
from amalgam.merge.diagnostics import DiagnosticsCollector, brief
from amalgam.merge.methods import Space
from amalgam.merge.peft_config import peft_config
from amalgam.merge.plan import MergePlan, plan
from amalgam.merge.run import MergedModule, RunOptions, run, stacks
from amalgam.merge.sources import AdapterSink, TensorSource
from amalgam.merge.spaces import tile_backend

_WHOLE: Final = 1 - 1e-9
"""Shares of energy from here on are all of it, to what float64 can tell."""

STORAGE_WARNING: Final = 0.01
"""Above this relative error of what is stored, beside what was computed, the stored type is worth a warning."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Bounds and circumstances of a build."""

    max_rank: int
    """It is the largest rank that serving allows."""
    run: RunOptions = field(default_factory=RunOptions)
    base_model: str | None = None
    """It is ``base_model_name_or_path`` of the result; None: that of the inputs."""
    bases: Mapping[str, str | None] = field(default_factory=dict)
    """It identifies each input's base model, where known; two that differ are refused."""
    max_output_bytes: int | None = None
    """It bounds the result's factors at the planned ranks; None for no bound."""
    delta_bound: DeltaBound = field(default_factory=DeltaBound)
    """It bounds what the result may change; without the base model's weights, it is a wide one."""
    notes: tuple[str, ...] = ()
    """They are to be said of the result too: warnings before all others."""


@dataclass(frozen=True, slots=True)
class MergeOutcome:
    """What was built."""

    recipe: Recipe
    """It is completed: nothing is left to a default."""
    rank: int
    module_count: int
    energy_kept: float | None
    """It is the share of Σσ² over all modules; None where no spectrum was computed."""
    warnings: tuple[str, ...]
    config: Mapping[str, Any]
    lineage: Mapping[str, Any]
    """It is as written beside the weights, less the diagnostics of single modules."""
    diagnostics: tuple[ModuleDiagnostics, ...]
    seconds: Mapping[str, float]
    """It tells where the time went; it is not in the lineage, so that equal recipes give equal bytes."""


def build_adapter(
    recipe: Recipe,
    sources: Mapping[str, TensorSource],
    sink: AdapterSink,
    options: BuildOptions,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> MergeOutcome:
    """Plan, compute and write a merge; nothing is written unless all of it succeeded.

    Args:
        recipe: With inputs spelled as in ``sources``.
        sources: Every adapter of ``recipe.adapters``, opened.
        sink: Takes the result once, at the end.
        options: Bounds and circumstances.
        on_progress: Told (modules done, modules in all).
        is_cancelled: Asked between batches.
        clock: Seconds, for ``MergeOutcome.seconds``.

    Raises:
        InvalidRequest: one of `amalgam.errors.merging`, mostly before a tensor is read.
        MergeCancelled: ``is_cancelled`` said so.
    """
    started = clock()
    headers = {name: source.header for name, source in sources.items()}
    layout = plan(recipe, headers, max_rank=options.max_rank, bases=options.bases)
    if options.max_output_bytes is not None and layout.output_bytes > options.max_output_bytes:
        raise OutputTooLarge(layout.output_bytes, options.max_output_bytes)
    # In the plan's order, which its modules count by.
    names = [entry.adapter for entry in layout.recipe.inputs]
    collector = DiagnosticsCollector(names, every_sign=layout.space is Space.DELTA)
    observe = collector.observe if options.run.diagnostics else None
    merged = list(
        run(layout, sources, options.run, on_progress=on_progress, is_cancelled=is_cancelled, on_batch=observe)
    )
    _require_bounded(merged, options.delta_bound)
    computed = clock()
    kept, found = _judge_energy(layout, merged)
    warnings = [*options.notes, *found]
    if layout.recipe.output.uniform_rank:
        merged = _padded(merged)
    ranks = {module.name: int(module.A.shape[0]) for module in merged}
    config = peft_config(ranks, options.base_model or layout.base_model, layout.task_type)
    lineage = _lineage(layout, sources, options, ranks, kept, warnings)
    stored = lineage["result"]["storage_error"] = _storage_error(merged) if options.run.diagnostics else None
    if stored is not None and stored > STORAGE_WARNING:
        warnings.append(f"storing in {layout.recipe.output.dtype} is {stored:.4f} off; dtype float32 is exact")
    if options.run.diagnostics:
        lineage["overall"] = dict(collector.overall())
    details = {"diagnostics": [brief(module) for module in collector.modules]}
    sink.write({module.name: (module.A, module.B) for module in merged}, config, lineage | details)
    seconds = {"compute": computed - started, "write": clock() - computed}
    return MergeOutcome(
        layout.recipe,
        max(ranks.values()),
        len(ranks),
        kept,
        tuple(warnings),
        config,
        lineage,
        tuple(collector.modules),
        seconds,
    )


def diagnose(
    recipe: Recipe,
    sources: Mapping[str, TensorSource],
    options: BuildOptions,
    *,
    is_cancelled: Callable[[], bool] | None = None,
) -> tuple[MergePlan, list[ModuleDiagnostics], Mapping[str, object]]:
    """Plan a merge and describe its inputs, module by module and over all, without building it.

    Raises:
        InvalidRequest: as ``build_adapter`` does before it writes.
    """
    headers = {name: source.header for name, source in sources.items()}
    layout = plan(recipe, headers, max_rank=options.max_rank, bases=options.bases)
    # In the plan's order, which its modules count by.
    collector = DiagnosticsCollector([entry.adapter for entry in layout.recipe.inputs])
    for stack in stacks(layout, sources, options.run, is_cancelled):
        collector.observe(stack, None)
    return layout, collector.modules, collector.overall()


def _require_bounded(merged: Iterable[MergedModule], bound: DeltaBound) -> None:
    """Raises DeltaTooLarge where a module's change is out of bounds; no delta is multiplied out."""
    for module in merged:
        shape = (int(module.B.shape[0]), int(module.A.shape[1]))
        sizes = [float(torch.linalg.vector_norm(factor, dtype=torch.float64)) for factor in (module.A, module.B)]
        ratio = bound.ratio(module.name, sizes[0] * sizes[1], shape)
        if not bound.allows(ratio):
            # The product of the norms is only an upper bound, and factors of a sum may cancel.
            a, b = module.A.double(), module.B.double()
            square = float(((b.T @ b) * (a @ a.T)).sum())
            ratio = bound.ratio(module.name, math.sqrt(max(square, 0.0)), shape)
        largest = max(float(factor.abs().max()) for factor in (module.A, module.B))
        if not bound.allows(ratio):
            raise DeltaTooLarge(module.name, ratio, bound.max_ratio)
        if not bound.allows_entry(largest):
            raise FactorTooLarge(module.name, largest, MAX_ENTRY)


def _judge_energy(layout: MergePlan, merged: list[MergedModule]) -> tuple[float | None, list[str]]:
    """The share of energy kept and what is to be said about it."""
    warnings = list(layout.warnings)
    if not any(module.spectrum for module in merged):
        return None, warnings
    empty = sum(1 for module in merged if module.energy_total == 0)
    if empty:
        warnings.append(f"{empty} modules of the result are zero")
    total = sum(module.energy_total for module in merged)
    # A result of zero loses nothing.
    share = min(1.0, sum(module.energy_kept for module in merged) / total) if total > 0 else 1.0
    wanted = layout.recipe.output.min_energy
    if wanted is not None and share < wanted:
        raise EnergyTooLow(share, wanted, layout.rank)
    if layout.rank < layout.exact_rank and share < _WHOLE:
        warnings.append(
            f"rank {layout.rank} of an exact {layout.exact_rank} keeps {share:.4f} of the energy; "
            "a higher rank would keep more"
        )
    return share, warnings


def _padded(merged: list[MergedModule]) -> list[MergedModule]:
    """All modules at the largest rank, with rows and columns of zeros."""
    rank = max(module.A.shape[0] for module in merged)
    return [
        replace(
            module,
            A=functional.pad(module.A, (0, 0, 0, rank - module.A.shape[0])),
            B=functional.pad(module.B, (0, rank - module.B.shape[1])),
        )
        for module in merged
    ]


def _storage_error(merged: list[MergedModule]) -> float:
    """‖stored - computed‖ / ‖computed‖ over all modules; 0 where the result is zero."""
    total = sum(module.norm_squared for module in merged)
    return math.sqrt(sum(module.storage_error_squared for module in merged) / total) if total > 0 else 0.0


def _lineage(
    layout: MergePlan,
    sources: Mapping[str, TensorSource],
    options: BuildOptions,
    ranks: Mapping[str, int],
    kept: float | None,
    warnings: list[str],
) -> dict[str, Any]:
    recipe = layout.recipe
    device = usable_device(options.run.device)
    tiles = tile_backend(layout, options.run.backend, device)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_digest": recipe.digest(),
        "inputs": {name: sources[name].digest for name in recipe.adapters},
        "input_factors": {name: _factors(sources[name].header) for name in recipe.adapters},
        "seed": recipe.seed,
        "computed_on": {"device": device.type, "backend": tiles.name if tiles is not None else "torch"},
        "versions": {
            "amalgam": amalgam.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "result": {
            "modules": len(ranks),
            "partial_modules": {name: list(absent) for name, absent in layout.partial.items()},
            "rank": max(ranks.values()),
            "exact_rank": layout.exact_rank,
            "energy_kept": kept,
        },
        "warnings": warnings,
    }


def _factors(header: AdapterHeader) -> dict[str, Any]:
    """How an input's factors were read: least and largest rank, and scale of B·A, over its modules."""
    ranks = [module.rank for module in header.modules.values()]
    scales = [module.scaling for module in header.modules.values()]
    return {"modules": len(ranks), "rank": [min(ranks), max(ranks)], "scaling": [min(scales), max(scales)]}
