"""Goes from a method and a space to the function that merges a stack: the only place that knows all spaces."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from amalgam.domain.recipe import EnergyRank
from amalgam.errors.merge_run import BackendUnavailable
from amalgam.errors.merging import NonFinite
from amalgam.kernels.backend import select_backend
from amalgam.kernels.cpu_tiles import CpuTiles
from amalgam.kernels.philox import stable_id
from amalgam.kernels.tiles import ReferenceTiles, TileBackend, TileInput
from amalgam.merge import core, delta, factor, knots, linear
from amalgam.merge.coefficients import COEFFICIENTS
from amalgam.merge.lowrank import NUMERICAL_RANK, Factors
from amalgam.merge.methods import Consensus, LambdaParameters, Space, Sparsify
from amalgam.merge.plan import MergePlan
from amalgam.merge.rules import Randomness, apply, counts_entries
from amalgam.merge.stack import Stack


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a merge depends on besides its inputs and its recipe."""

    plan: MergePlan
    adapter_ids: tuple[int, ...]
    """It has a stable id for each input of the recipe."""
    device: torch.device
    tiles: TileBackend | None
    """Delta space has them; other spaces have none."""
    max_workspace_bytes: int
    spectrum: bool
    threads: int = 1
    """So many modules of delta space are worked on at once."""
    thresholds: tuple[float, ...] | None = None
    """They are those of the recipe's inputs, for a method with one threshold for the whole adapter."""

    @property
    def energy(self) -> float | None:
        """The share of energy the output rank asks for."""
        rank = self.plan.recipe.output.rank
        return rank.energy if isinstance(rank, EnergyRank) else None

    def randomness(self, stack: Stack, suffix: str = "") -> Randomness:
        """The streams of a stack's inputs and modules."""
        adapters = tuple(self.adapter_ids[index] for index in stack.inputs)
        tensors = tuple(stable_id(module.name + suffix) for module in stack.modules)
        return Randomness(self.plan.recipe.seed, adapters, tensors)

    def thresholds_of(self, stack: Stack) -> list[float] | None:
        """The whole-adapter thresholds of a stack's inputs."""
        return None if self.thresholds is None else [self.thresholds[index] for index in stack.inputs]


def tile_backend(plan: MergePlan, requested: str, device: torch.device) -> TileBackend | None:
    """The tile backend of a plan in delta space; None in the other spaces, which are plain torch.

    Raises:
        BackendUnavailable: it does not exist, or not for this method and device.
    """
    rule = delta.tile_rule(plan.spec, plan.parameters)
    if plan.space is Space.DELTA:
        return select_backend(requested, device, rule)
    if requested not in ("auto", "reference", "cpu"):
        raise BackendUnavailable(requested[:32], str(device), f"space {plan.space} has no kernels of its own; use auto")
    return None


def merge_stack(stack: Stack, around: Circumstances) -> Factors:
    """Merge one batch of modules as the plan says.

    Raises:
        NonFinite: the rule produced NaN or infinity.
    """
    try:
        return _SPACES[around.plan.space](stack, around)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # Of finite numbers there always is a decomposition.
        alike = " or another module of its shape" if len(stack.modules) > 1 else ""
        raise NonFinite("The result", stack.modules[0].name + alike) from None


def _concat(stack: Stack, around: Circumstances) -> Factors:
    plan = around.plan
    return linear.merge(stack, plan.spec, plan.parameters, energy=around.energy, spectrum=around.spectrum)


def _rule(
    around: Circumstances, stack: Stack, x: Tensor, weights: Tensor, extents: Sequence[tuple[int, int]]
) -> Tensor:
    """The plan's rule on x [T, n, rows, columns]; where it counts entries, only on those that are there."""
    plan, randomness, thresholds = around.plan, around.randomness(stack), around.thresholds_of(stack)
    if not counts_entries(plan.parameters):
        return apply(x, weights, plan.spec, plan.parameters, randomness, thresholds)
    out = torch.zeros(x.shape[1:], dtype=x.dtype, device=x.device)
    for rows, columns in sorted(set(extents)):
        alike = [n for n, extent in enumerate(extents) if extent == (rows, columns)]
        if rows == 0 or columns == 0:
            continue
        inside = x[:, alike, :rows, :columns].contiguous()
        streams = replace(randomness, tensors=tuple(randomness.tensors[n] for n in alike))
        found = apply(inside, weights[:, alike], plan.spec, plan.parameters, streams, thresholds)
        out[alike, :rows, :columns] = found
    return out


def _knots(stack: Stack, around: Circumstances) -> Factors:
    if knots.is_streamed(len(stack.ranks), sum(stack.ranks), stack.A.shape[2]):
        return _knots_in_blocks(stack, around)
    return knots.merge(stack, partial(_rule, around, stack), energy=around.energy, spectrum=around.spectrum)


def _knots_in_blocks(stack: Stack, around: Circumstances) -> Factors:
    """The same, with the representations made and merged block by block of rows, as delta space does it."""
    plan, known, randomness = around.plan, knots.represent(stack), around.randomness(stack)
    tiles = CpuTiles() if around.device.type == "cpu" else ReferenceTiles()
    rule = delta.tile_rule(plan.spec, plan.parameters)
    work = delta.DeltaMerge(plan.spec, plan.parameters, rule, tiles, None, 0, around.thresholds)
    merged = torch.zeros((len(stack.modules), *known.basis.shape[1:2], stack.A.shape[2]), device=around.device)
    for n, (rows, columns) in enumerate(known.extents):
        if not counts_entries(plan.parameters):
            rows = known.basis.shape[1]
        inputs = [
            TileInput(mix[n, :rows].contiguous(), A[n].contiguous(), weight, randomness.stream(t, n))
            for t, (mix, (_, A), weight) in enumerate(
                zip(known.mix, stack.parts(), stack.weights[n].tolist(), strict=True)
            )
        ]
        scratch = torch.empty((rows, columns), device=around.device)
        for block, tile in work.tiles(inputs, stack.inputs, (rows, columns), scratch)():
            merged[n, block] = tile
    return knots.project(stack, known, merged, energy=around.energy, spectrum=around.spectrum)


def _core(stack: Stack, around: Circumstances) -> Factors:
    floor = NUMERICAL_RANK if counts_entries(around.plan.parameters) else 0.0
    rule = partial(_core_rule, around)
    return core.merge(stack, rule, floor=floor, energy=around.energy, spectrum=around.spectrum)


def _core_rule(around: Circumstances, inputs: core.Core, stack: Stack) -> core.MergedCore:
    plan = around.plan
    if isinstance(plan.parameters, LambdaParameters) and plan.spec.consensus in _SPECTRAL:
        return _SPECTRAL[plan.spec.consensus](inputs, stack, plan.parameters.lambda_, around.energy)
    if plan.spec.consensus in COEFFICIENTS and plan.spec.sparsify is Sparsify.NONE:
        weights = stack.columns(stack.weights)
        return core.MergedCore((inputs.columns * weights.unsqueeze(-2)) @ inputs.rows)
    return core.MergedCore(_rule(around, stack, inputs.matrices(stack.ranks), stack.weights.T, inputs.extents))


def _factor(stack: Stack, around: Circumstances) -> Factors:
    plan = around.plan
    streams = around.randomness(stack, ".lora_A"), around.randomness(stack, ".lora_B")
    return factor.merge(stack, plan.spec, plan.parameters, streams, energy=around.energy, spectrum=around.spectrum)


def _delta(stack: Stack, around: Circumstances) -> Factors:
    """Module by module; on a processor several at once, since each runs best on one thread.

    Fused kernels take many modules together, where matrices fit and no rule needs to see all inputs first, as SCE does.
    """
    plan, count = around.plan, len(stack.modules)
    assert around.tiles is not None
    shape = (stack.modules[0].out_features, stack.modules[0].in_features)
    workers = max(1, min(around.threads, count, around.max_workspace_bytes // delta.buffered_bytes(*shape)))
    work = delta.DeltaMerge(
        plan.spec, plan.parameters, delta.tile_rule(plan.spec, plan.parameters), around.tiles,
        around.energy, around.max_workspace_bytes // workers, around.thresholds,
    )  # fmt: skip
    randomness = around.randomness(stack)
    if around.tiles.name == "triton" and plan.spec.consensus is not Consensus.SCE:
        from amalgam.merge.delta_batch import merge_together

        if delta.bytes_together(*shape) <= around.max_workspace_bytes // 2:
            return _joined(merge_together(stack, work, randomness))

    def share(worker: int) -> list[Factors]:
        buffer = work.scratch(stack)
        return [work.merge(stack, row, randomness, buffer) for row in range(worker, count, workers)]

    if workers == 1:
        return _joined(share(0))
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        shares = list(pool.map(share, range(workers)))
    return _joined([shares[row % workers][row // workers] for row in range(count)])


def _joined(results: Sequence[Factors]) -> Factors:
    """Batches as one batch, padded with zeros to the largest rank."""
    q = max(result.B.shape[2] for result in results)
    return Factors(
        B=torch.cat([functional.pad(result.B, (0, q - result.B.shape[2])) for result in results]),
        A=torch.cat([functional.pad(result.A, (0, 0, 0, q - result.A.shape[1])) for result in results]),
        ranks=tuple(rank for result in results for rank in result.ranks),
        spectrum=torch.cat([result.spectrum for result in results]),
        total=torch.cat([result.total for result in results]),
    )


_SPACES: Final[Mapping[Space, Callable[[Stack, Circumstances], Factors]]] = {
    Space.CONCAT: _concat,
    Space.KNOTS: _knots,
    Space.CORE: _core,
    Space.DELTA: _delta,
    Space.FACTOR: _factor,
}

_SPECTRAL: Final[Mapping[Consensus, Callable[[core.Core, Stack, float, float | None], core.MergedCore]]] = {
    Consensus.TSV: core.tsv,
    Consensus.ISO_C: core.iso_c,
}
