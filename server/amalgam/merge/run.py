"""Walks a plan: modules of one shape in batches, memory bounded, cancellable between batches, in a fixed order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from amalgam.errors.merge_run import MergeCancelled, WorkspaceTooSmall
from amalgam.errors.merging import NonFinite
from amalgam.kernels.backend import usable_device
from amalgam.kernels.philox import stable_id
from amalgam.kernels.selection import TILE_ENTRIES
from amalgam.merge.delta import bytes_together
from amalgam.merge.knots import is_streamed
from amalgam.merge.lowrank import Factors
from amalgam.merge.methods import Space
from amalgam.merge.plan import MergePlan, ModulePlan
from amalgam.merge.presteps import prepare
from amalgam.merge.sources import TensorSource
from amalgam.merge.spaces import Circumstances, merge_stack, tile_backend
from amalgam.merge.stack import Stack, load, load_references
from amalgam.merge.thresholds import GlobalThresholds, is_global

DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""The result may be stored in these."""

BATCH_BYTES: Final = 96 << 20
"""It bounds one batch on a processor however large the workspace: beyond it batching saves nothing and caches are lost.
On a GPU a call costs the same however much it does, so there half the workspace is a batch's."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to compute; nothing here changes what is computed."""

    device: str = "cpu"
    backend: str = "auto"
    max_workspace_bytes: int = 1 << 30
    diagnostics: bool = True
    """It tells whether to look at the result's spectrum where nothing is cut."""


@dataclass(frozen=True, slots=True)
class MergedModule:
    """One module of the result: Δ ≈ B·A, scale 1, in the recipe's dtype on the CPU."""

    name: str
    A: Tensor
    B: Tensor
    energy_kept: float
    """It is Σσ² of what was kept; 0 where no spectrum was asked for."""
    energy_total: float
    spectrum: tuple[float, ...]
    """It has the singular values, descending; empty where no spectrum was asked for."""
    norm_squared: float = 0.0
    """It is ‖B·A‖² before it was rounded; 0 where nobody asked."""
    storage_error_squared: float = 0.0
    """It is ‖what is stored - B·A‖²; 0 where nobody asked."""


def run(
    plan: MergePlan,
    sources: Mapping[str, TensorSource],
    options: RunOptions,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    on_batch: Callable[[Stack, Factors], None] | None = None,
) -> Iterator[MergedModule]:
    """Compute the plan's modules, batch after batch.

    Args:
        plan: What to compute.
        sources: By the recipe's own spelling of the adapter.
        options: Device, backend and bounds.
        on_progress: Told (modules done, modules in all) after each batch.
        is_cancelled: Asked before each batch.
        on_batch: Shown each batch's inputs and result, for diagnostics.

    Raises:
        MergeCancelled: ``is_cancelled`` said so.
        NonFinite, MergeUndefined, ShapeMismatch: what only tensors can tell.
        WorkspaceTooSmall: one module does not fit into the workspace.
        BackendUnavailable: the device or the backend is not there.
    """
    device = usable_device(options.device)
    threads = torch.get_num_threads() if device.type == "cpu" and plan.space is Space.DELTA else 1
    around = Circumstances(
        plan=plan,
        adapter_ids=tuple(stable_id(sources[entry.adapter].digest) for entry in plan.recipe.inputs),
        device=device,
        tiles=tile_backend(plan, options.backend, device),
        max_workspace_bytes=options.max_workspace_bytes,
        spectrum=options.diagnostics,
        threads=threads,
    )
    prepared = partial(stacks, plan, sources, options, is_cancelled)
    with _one_thread_each(threads):
        if is_global(plan.parameters):
            around = replace(around, thresholds=_global_thresholds(plan, around, prepared))
        done, total = 0, len(plan.modules)
        for stack in prepared():
            factors = merge_stack(stack, around)
            yield from _cut(stack, factors, plan, compare=options.diagnostics)
            if on_batch is not None:
                on_batch(stack, factors)
            done += len(stack.modules)
            if on_progress is not None:
                on_progress(done, total)


@contextmanager
def _one_thread_each(threads: int) -> Iterator[None]:
    """Where several threads merge modules, torch's own would only wait for work in loops and take their time."""
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def stacks(
    plan: MergePlan,
    sources: Mapping[str, TensorSource],
    options: RunOptions,
    is_cancelled: Callable[[], bool] | None,
) -> Iterator[Stack]:
    """The inputs after their pre-steps, batch after batch.

    Raises:
        MergeCancelled, NonFinite, ShapeMismatch, WorkspaceTooSmall: as ``run``.
    """
    device = usable_device(options.device)
    names = [entry.adapter for entry in plan.recipe.inputs]
    opened = [sources[name] for name in names]
    references = [sources[name] for name in plan.recipe.orthogonalize_against]
    for modules in _batches(plan, options):
        if is_cancelled is not None and is_cancelled():
            raise MergeCancelled
        stack = load(modules, opened, device, names=names)
        yield prepare(stack, plan.recipe, load_references(modules, references, device))


def _global_thresholds(
    plan: MergePlan, around: Circumstances, prepared: Callable[[], Iterator[Stack]]
) -> tuple[float, ...]:
    thresholds = GlobalThresholds(plan)
    for _ in range(2):
        for stack in prepared():
            thresholds.observe(stack, around)
        thresholds.advance()
    return thresholds.values


def _batches(plan: MergePlan, options: RunOptions) -> Iterator[Sequence[ModulePlan]]:
    for group in plan.groups:
        needed = module_bytes(group[0], plan.space)
        if needed > options.max_workspace_bytes:
            raise WorkspaceTooSmall(group[0].name, needed, options.max_workspace_bytes)
        workspace = options.max_workspace_bytes
        size = max(1, (min(workspace, BATCH_BYTES) if options.device == "cpu" else workspace // 2) // needed)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def peak_bytes(plan: MergePlan, options: RunOptions) -> int:
    """Most memory a run takes beside its inputs: the largest batch, and the results of all that came before.

    Raises:
        WorkspaceTooSmall: as ``run``.
    """
    return plan.output_bytes + max(
        len(modules) * module_bytes(modules[0], plan.space) + _together_bytes(modules, plan, options)
        for modules in _batches(plan, options)
    )


def _together_bytes(modules: Sequence[ModulePlan], plan: MergePlan, options: RunOptions) -> int:
    """What a device takes beside the batch, to merge many modules of delta space at once."""
    if plan.space is not Space.DELTA or options.device == "cpu":
        return 0
    each = bytes_together(modules[0].out_features, modules[0].in_features)
    return min(len(modules) * each, max(each, options.max_workspace_bytes // 2))


def module_bytes(module: ModulePlan, space: Space) -> int:
    """Least workspace of one module: its inputs in float32 and float64, the result, and what the space adds.

    Delta space needs no more than tiles beyond that; it takes more where it may.
    """
    sides = module.in_features + module.out_features
    count, total = len(module.inputs), module.stacked_rank
    needed = sides * (12 * total + 8 * (module.rank + 16)) + 64 * total**2
    if space is Space.KNOTS and is_streamed(count, total, module.in_features):
        # Two matrices of the merged result in float32, one in float64, and blocks of every input.
        needed += 16 * total * module.in_features + 8 * count * TILE_ENTRIES
    elif space is Space.KNOTS:
        needed += (12 * count + 8) * total * module.in_features
    elif space is Space.CORE:
        needed += 24 * count * total**2
    return needed


def _cut(stack: Stack, factors: Factors, plan: MergePlan, *, compare: bool) -> Iterator[MergedModule]:
    """Each module's factors at its own rank, in the recipe's dtype, checked for overflow, by ``compare`` for loss."""
    dtype = DTYPES[plan.recipe.output.dtype]
    kept, total = factors.kept.tolist(), factors.total.tolist()
    spectra = factors.spectrum.tolist()
    A, B = factors.A.to("cpu", dtype), factors.B.to("cpu", dtype)
    for row, (module, rank) in enumerate(zip(stack.modules, factors.ranks, strict=True)):
        a, b = A[row, :rank].clone(), B[row, :, :rank].clone(memory_format=torch.contiguous_format)
        if not (_finite(a) and _finite(b)):
            raise NonFinite("The result", module.name)
        norm = error = 0.0
        if compare:
            norm, error = _rounding(factors.A[row, :rank], factors.B[row, :, :rank], a, b)
        yield MergedModule(module.name, a, b, kept[row], total[row], tuple(spectra[row]), norm, error)


def _rounding(A: Tensor, B: Tensor, stored_a: Tensor, stored_b: Tensor) -> tuple[float, float]:
    """‖B·A‖² and ‖B̃·Ã - B·A‖² for what is stored of them, from Gram matrices: B̃Ã - BA = [B̃ - B, B]·[Ã; Ã - A]."""
    norm = float(((B.mT @ B).double() * (A @ A.mT).double()).sum())
    if stored_a.dtype == A.dtype:
        return norm, 0.0
    wide_a, wide_b = stored_a.to(A.device, A.dtype), stored_b.to(B.device, B.dtype)
    left, right = torch.cat([wide_b - B, B], dim=1), torch.cat([wide_a, wide_a - A])
    return norm, float(((left.mT @ left).double() * (right @ right.mT).double()).sum().clamp_min(0))


def _finite(x: Tensor) -> bool:
    """Whether all entries are finite; a finite sum shows it in one cheap pass."""
    return bool(torch.isfinite(x.sum(dtype=torch.float32))) or bool(torch.isfinite(x).all())
