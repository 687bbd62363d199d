"""One trim threshold for a whole adapter: the k-th magnitude over all its modules, exactly, in two passes."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from amalgam.kernels import reference
from amalgam.kernels.selection import RadixSelect, blocks
from amalgam.merge import core, delta, knots
from amalgam.merge.lowrank import NUMERICAL_RANK
from amalgam.merge.methods import Parameters, Space, TiesParameters, TrimParameters
from amalgam.merge.plan import MergePlan
from amalgam.merge.spaces import Circumstances
from amalgam.merge.stack import Stack


def is_global(parameters: Parameters) -> bool:
    """Whether the method wants one threshold per adapter."""
    return isinstance(parameters, (TiesParameters, TrimParameters)) and (
        parameters.scope == "global" and parameters.density < 1
    )


class GlobalThresholds:
    """Two rounds over all stacks; then the thresholds.

    How many entries an input has is counted in the first round: in knots and core those of its numerical rank.
    """

    def __init__(self, plan: MergePlan) -> None:
        assert isinstance(plan.parameters, (TiesParameters, TrimParameters))
        self._density = plan.parameters.density
        self._space = plan.space
        self._entries = [0] * len(plan.recipe.inputs)
        self._selections = [RadixSelect() for _ in plan.recipe.inputs]
        self._is_first = True

    def observe(self, stack: Stack, around: Circumstances) -> None:
        """Count one stack's entries."""
        for index, x in self._representations(stack, around):
            if self._is_first:
                self._entries[index] += x.numel()
            self._selections[index].observe(x)

    def _representations(self, stack: Stack, around: Circumstances) -> Iterable[tuple[int, Tensor]]:
        """Each input's entries that are there, module by module."""
        if self._space is Space.KNOTS:
            return _knotted(stack)
        if self._space is Space.CORE:
            cored = core.represent(stack, NUMERICAL_RANK)
            return _inside(stack, cored.matrices(stack.ranks).float(), cored.extents)
        return _tiles(stack, around)

    def advance(self) -> None:
        """End a round."""
        for entries, selection in zip(self._entries, self._selections, strict=True):
            if entries and self._is_first:
                selection.aim(reference.kept_count(self._density, entries))
            if entries:
                selection.advance()
        self._is_first = False

    @property
    def values(self) -> tuple[float, ...]:
        """Per input of the recipe, after two rounds."""
        found = zip(self._entries, self._selections, strict=True)
        return tuple(selection.value if entries else 0.0 for entries, selection in found)


def _knotted(stack: Stack) -> Iterator[tuple[int, Tensor]]:
    known = knots.represent(stack)
    if not knots.is_streamed(len(stack.ranks), sum(stack.ranks), stack.A.shape[2]):
        yield from _inside(stack, known.representations(stack), known.extents)
        return
    for n, shape in enumerate(known.extents):
        for index, mix, (_, A) in zip(stack.inputs, known.mix, stack.parts(), strict=True):
            for block in blocks(shape, A.device):
                yield index, reference.delta_tile(mix[n, block], A[n])


def _inside(stack: Stack, x: Tensor, extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, Tensor]]:
    for n, (rows, columns) in enumerate(extents):
        for t, index in enumerate(stack.inputs):
            yield index, x[t, n, :rows, :columns]


def _tiles(stack: Stack, around: Circumstances) -> Iterator[tuple[int, Tensor]]:
    randomness = around.randomness(stack)
    for row, module in enumerate(stack.modules):
        shape = (module.out_features, module.in_features)
        for index, part in zip(stack.inputs, delta.module_inputs(stack, row, randomness), strict=True):
            for block in blocks(shape, around.device):
                yield index, reference.delta_tile(part.B[block], part.A)
