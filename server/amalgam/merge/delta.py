"""Delta space: the papers' rules on the full matrices, computed from the factors tile by tile.

A merged matrix has full rank and is cut by a randomised range finder (Halko, Martinsson and Tropp, 2011) with one power
iteration. At most one module's merged matrix is held; where even that does not fit, tiles are recomputed in every pass.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from amalgam.errors.merging import NonFinite
from amalgam.kernels import reference
from amalgam.kernels.selection import blocks, select
from amalgam.kernels.tiles import TileBackend, TileInput, TileRule
from amalgam.merge.lowrank import Factors, choose_ranks
from amalgam.merge.methods import (
    BreadcrumbsParameters,
    Consensus,
    DellaParameters,
    DropElectParameters,
    DropParameters,
    ElectParameters,
    LambdaParameters,
    MethodSpec,
    Parameters,
    SceParameters,
    Sparsify,
    TiesParameters,
    TrimParameters,
)
from amalgam.merge.rules import Randomness, crumb_ranks
from amalgam.merge.stack import Stack

OVERSAMPLING: Final = 16
"""The range finder has so many columns beyond the rank."""

_NEARLY_ALL: Final = 0.75
"""From this share of a matrix's smaller side on, a sketch takes all of it."""

_SKETCH_SEED: Final = 0x5EED

_CHOSEN_BYTES: Final = 1 << 18
"""A GPU takes so much for a module's thresholds, its sample and its counters; see ``kernels.triton_selection``."""

_TILE_CONSENSUS: Final[dict[Consensus, Literal["elect", "elect_plain"]]] = {
    Consensus.ELECT: "elect",
    Consensus.SCE: "elect_plain",
}

Tiles = Callable[[], Iterator[tuple[slice, Tensor]]]
"""It yields the merged matrix block by block; it may be called again and yields the same."""


def tile_rule(spec: MethodSpec, parameters: Parameters) -> TileRule:
    """The method as flags of the tile operation."""
    drops = isinstance(parameters, (DropParameters, DropElectParameters, DellaParameters))
    return TileRule(
        sparsify=str(spec.sparsify),  # type: ignore[arg-type]
        consensus=_TILE_CONSENSUS.get(spec.consensus, "sum"),
        scale=parameters.lambda_ if isinstance(parameters, LambdaParameters) else 1.0,
        frequency=isinstance(parameters, ElectParameters) and parameters.election == "frequency",
        density=parameters.density if drops else 1.0,  # type: ignore[attr-defined]
        epsilon=parameters.epsilon if isinstance(parameters, DellaParameters) else 0.0,
    )


@dataclass(frozen=True, slots=True)
class DeltaMerge:
    """A delta-space method, ready for modules."""

    spec: MethodSpec
    parameters: Parameters
    rule: TileRule
    backend: TileBackend
    energy: float | None
    max_workspace_bytes: int
    thresholds: Sequence[float] | None = None
    """It has one for each input of the recipe, where one threshold holds for the whole adapter."""

    def scratch(self, stack: Stack) -> Tensor | None:
        """A buffer for the matrix of any module of a stack, to be used again and again; None where it does not fit."""
        shape = (stack.modules[0].out_features, stack.modules[0].in_features)
        if buffered_bytes(*shape) > self.max_workspace_bytes:
            return None
        return torch.empty(shape, dtype=torch.float32, device=stack.B.device)

    def merge(self, stack: Stack, row: int, randomness: Randomness, buffer: Tensor | None) -> Factors:
        """One module of a stack, as factors of batch size 1.

        Args:
            stack: Its inputs. row: Which.
            randomness: For the random methods.
            buffer: Of `scratch`; overwritten.

        Raises:
            NonFinite: the rule produced NaN or infinity.
        """
        inputs = module_inputs(stack, row, randomness)
        module = stack.modules[row]
        shape = (module.out_features, module.in_features)
        computed = self.tiles(inputs, stack.inputs, shape, buffer)
        tiles = computed if buffer is None else _held(computed, buffer)
        factors = truncate(tiles, shape, module.rank, self.energy, inputs[0].B.device)
        if not bool(torch.isfinite(factors.total).all()):
            raise NonFinite("The result", module.name)
        return factors

    def tiles(
        self, inputs: list[TileInput], positions: Sequence[int], shape: tuple[int, int], buffer: Tensor | None
    ) -> Tiles:
        """The merged matrix of ``inputs``, block by block.

        Args:
            inputs: Factors of matrices of ``shape``. positions: Theirs in the recipe.
            buffer: Memory for one such matrix, overwritten; None where there is none.
        """
        inputs = self._with_thresholds(inputs, positions, shape, buffer)
        inputs, gate = self._selected(inputs, shape, buffer)

        def computed() -> Iterator[tuple[slice, Tensor]]:
            for block in blocks(shape, inputs[0].B.device):
                passed = gate(block) if gate is not None else None
                yield block, self.backend.merge_rows(inputs, self.rule, block.start, block.stop, passed)

        return computed

    def _with_thresholds(
        self, inputs: list[TileInput], positions: Sequence[int], shape: tuple[int, int], buffer: Tensor | None
    ) -> list[TileInput]:
        """The inputs with the magnitudes between which an entry stays."""
        if self.thresholds is not None:
            return [replace(part, low=self.thresholds[at]) for part, at in zip(inputs, positions, strict=True)]
        wanted = self.selection(shape[0] * shape[1])
        if wanted is None:
            return inputs
        rule, ks = wanted
        found = [self.backend.order_statistics(part, rule, shape, ks, buffer) for part in inputs]
        # One statistic is the lower edge alone.
        edges = [(one[0], one[1] if len(one) > 1 else part.high) for part, one in zip(inputs, found, strict=True)]
        return [replace(part, low=low, high=high) for part, (low, high) in zip(inputs, edges, strict=True)]

    def selection(self, entries: int) -> tuple[TileRule, tuple[int, ...]] | None:
        """The rule, and the how many largest magnitude is the lower edge of what stays, and the upper one.

        None where magnitudes do not decide, or where one threshold holds for the whole adapter.
        """
        if isinstance(self.parameters, BreadcrumbsParameters):
            top, last = crumb_ranks(self.parameters, entries)
            return replace(self.rule, sparsify="none"), (last, top + 1)
        density = trim_density(self.parameters)
        if density is None:
            return None
        drops = self.spec.sparsify is Sparsify.DROP
        return replace(self.rule, sparsify="drop" if drops else "none"), (reference.kept_count(density, entries),)

    def _selected(
        self, inputs: list[TileInput], shape: tuple[int, int], buffer: Tensor | None
    ) -> tuple[list[TileInput], Callable[[slice], Tensor] | None]:
        """What SCE needs: weights times the share of energy, and which positions of a block are selected."""
        if not isinstance(self.parameters, SceParameters):
            return inputs, None

        def spread(block: slice) -> Tensor:
            parts = [reference.delta_tile(part.B[block], part.A) for part in inputs]
            return reference.variance(torch.stack(parts))

        gate = None
        device = inputs[0].B.device
        if self.parameters.density < 1:
            k = reference.kept_count(self.parameters.density, shape[0] * shape[1])
            least = select((lambda: (spread(block) for block in blocks(shape, device))), shape, (k,), buffer, device)[0]

            def gate(block: slice) -> Tensor:
                return spread(block) >= least

        energies = [0.0] * len(inputs)
        for block in blocks(shape, device):
            passed = gate(block) if gate is not None else None
            for t, part in enumerate(inputs):
                x = reference.delta_tile(part.B[block], part.A)
                energies[t] += float((x if passed is None else x * passed).square().sum(dtype=torch.float64))
        total = sum(energies) or 1.0
        return [replace(p, weight=p.weight * e / total) for p, e in zip(inputs, energies, strict=True)], gate


def trim_density(parameters: Parameters) -> float | None:
    """The density a method trims to; None where it does not trim."""
    if isinstance(parameters, (TiesParameters, TrimParameters)) and parameters.density < 1:
        return parameters.density
    if isinstance(parameters, DropElectParameters) and parameters.trim_after and parameters.trim_density < 1:
        return parameters.trim_density
    return None


def module_inputs(stack: Stack, row: int, randomness: Randomness) -> list[TileInput]:
    """One module's inputs with their scales in B."""
    return [
        TileInput(
            B=(B[row] * float(stack.scaling[row, t])).contiguous(),
            A=A[row].contiguous(),
            weight=float(stack.weights[row, t]),
            stream=randomness.stream(t, row),
        )
        for t, (B, A) in enumerate(stack.parts())
    ]


def buffered_bytes(out_features: int, in_features: int) -> int:
    """Workspace of one module whose matrix is held: first an input's magnitudes, then the merged matrix."""
    return 4 * out_features * in_features


def bytes_together(out_features: int, in_features: int) -> int:
    """What a module takes where many are merged at once: its matrix, bases of its range, and its thresholds."""
    return 5 * out_features * in_features + _CHOSEN_BYTES


def _held(computed: Tiles, buffer: Tensor) -> Tiles:
    """The same tiles, computed once and kept in a buffer."""
    for block, tile in computed():
        buffer[block] = tile
    return lambda: iter([(slice(0, buffer.shape[0]), buffer)])


def truncate(tiles: Tiles, shape: tuple[int, int], limit: int, energy: float | None, device: torch.device) -> Factors:
    """The best approximation of the tiled matrix at a rank, nearly: see the module's text.

    Where the sketch is as wide as the matrix it is exact.
    """
    out_features, in_features = shape
    sketch = sketch_of(shape, limit, device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for _, tile in tiles():
        total += torch.linalg.vector_norm(tile).double().square()
    columns = _orthonormal(_images(tiles, sketch, out_features))
    rows = _orthonormal(_preimages(tiles, columns, in_features))
    basis = _orthonormal(_images(tiles, rows, out_features))
    # D ≈ basisᵀ·back with back = basis·D, so the singular values are those of the small R of backᵀ = Q·R.
    Q, R = torch.linalg.qr(_preimages(tiles, basis, in_features).mT)
    V, values, Uh = torch.linalg.svd(R.double(), full_matrices=False)
    ranks = choose_ranks(values[None], limit, energy, total[None])
    root = values[: ranks[0]].sqrt()
    B = basis.mT @ (Uh.mT[:, : ranks[0]] * root).float()
    A = (Q @ (V[:, : ranks[0]] * root).float()).mT
    # Rounding must not make what is kept larger than the whole.
    return Factors(B[None], A[None], ranks, values[None], torch.maximum(total, values.square().sum())[None])


def sketch_of(shape: tuple[int, int], limit: int, device: torch.device) -> Tensor:
    """The random directions of the range finder, the same on all devices: [width, in]."""
    width = min(limit + OVERSAMPLING, *shape)
    if width >= _NEARLY_ALL * min(shape):
        # So many directions leave little out, and all of them make the result exact.
        width = min(shape)
    generator = torch.Generator().manual_seed(_SKETCH_SEED)
    return torch.randn((width, shape[1]), generator=generator).to(device)


def _orthonormal(vectors: Tensor) -> Tensor:
    """An orthonormal basis of the span of the rows, as rows: [width, n] -> [width, n]."""
    basis: Tensor = torch.linalg.qr(vectors.mT).Q.mT
    return basis


def _images(tiles: Tiles, vectors: Tensor, out_features: int) -> Tensor:
    """vectors·Dᵀ, [width, out]."""
    images = torch.empty((vectors.shape[0], out_features), device=vectors.device)
    for block, tile in tiles():
        images[:, block] = vectors @ tile.mT
    return images


def _preimages(tiles: Tiles, vectors: Tensor, in_features: int) -> Tensor:
    """vectors·D, [width, in]."""
    product = torch.zeros((vectors.shape[0], in_features), device=vectors.device)
    for block, tile in tiles():
        product.addmm_(vectors[:, block], tile)
    return product
