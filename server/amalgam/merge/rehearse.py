"""A merge without its end: everything is computed, nothing is written, and the time it may take is bounded."""

import contextlib
import time
from collections.abc import Callable, Mapping

from amalgam.domain.diagnostics import MergeForecast
from amalgam.domain.recipe import Recipe
from amalgam.errors.merge_run import MergeCancelled
from amalgam.merge.build import BuildOptions
from amalgam.merge.diagnostics import DiagnosticsCollector
from amalgam.merge.plan import MergePlan, plan
from amalgam.merge.run import module_bytes, peak_bytes, run
from amalgam.merge.sources import TensorSource


def rehearse(
    recipe: Recipe,
    sources: Mapping[str, TensorSource],
    options: BuildOptions,
    *,
    is_over: Callable[[], bool],
    clock: Callable[[], float] = time.perf_counter,
) -> MergeForecast:
    """Merge module after module until all are done or ``is_over`` says so, and describe what came of it.

    Args:
        recipe: With inputs spelled as in ``sources``.
        sources: Every adapter of ``recipe.adapters``, opened.
        options: Bounds and circumstances of the merge.
        is_over: Asked between batches; whether the time is up.
        clock: Seconds.

    Raises:
        InvalidRequest: as ``build_adapter`` does before it writes.
    """
    headers = {name: source.header for name, source in sources.items()}
    layout = plan(recipe, headers, max_rank=options.max_rank, bases=options.bases)
    # In the plan's order, which its modules count by.
    collector = DiagnosticsCollector([entry.adapter for entry in layout.recipe.inputs])
    memory_bytes = peak_bytes(layout, options.run)
    kept = total = 0.0
    seen = 0
    began = clock()
    # What was seen until the time was up is the answer.
    with contextlib.suppress(MergeCancelled):
        for module in run(layout, sources, options.run, is_cancelled=is_over, on_batch=collector.observe):
            seen += 1
            kept, total = kept + module.energy_kept, total + module.energy_total
    seconds = clock() - began
    return MergeForecast(
        is_complete=seen == len(layout.modules),
        modules_seen=len(collector.modules),
        memory_bytes=memory_bytes,
        compute_s=_extrapolated(layout, seen, seconds),
        energy_kept=min(1.0, kept / total) if total > 0 else None,
        overall=dict(collector.overall()),
        modules=tuple(collector.modules),
    )


def _extrapolated(layout: MergePlan, seen: int, seconds: float) -> float | None:
    """Seconds of all modules, by the work that the first ``seen`` of them were."""
    if seen == 0:
        return None
    work = [float(module_bytes(module, layout.space)) for module in layout.modules]
    return seconds * sum(work) / sum(work[:seen])
