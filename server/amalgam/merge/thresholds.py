"""One trim threshold for a whole adapter: the k-th magnitude over all its modules, exactly, in two passes."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from amalgam.kernels import reference
from amalgam.kernels.selection import RadixSelect, blocks
from amalgam.merge import core, delta, knots
from amalgam.merge.methods import Parameters, Space, TiesParameters, TrimParameters
from amalgam.merge.plan import MergePlan
from amalgam.merge.spaces import Circumstances
from amalgam.merge.stack import Stack


def is_global(parameters: Parameters) -> bool:
    """Whether the method wants one threshold per adapter."""
    return isinstance(parameters, (TiesParameters, TrimParameters)) and (
        parameters.scope == "global" and parameters.density < 1
    )


def representation_entries(plan: MergePlan) -> list[int]:
    """How many entries each input of the recipe has in the plan's space, over all its modules."""
    entries = [0] * len(plan.recipe.inputs)
    for module in plan.modules:
        size = {
            Space.KNOTS: module.stacked_rank * module.in_features,
            Space.CORE: module.stacked_rank**2,
        }.get(plan.space, module.out_features * module.in_features)
        for part in module.inputs:
            entries[part.index] += size
    return entries


class GlobalThresholds:
    """Two rounds over all stacks; then the thresholds."""

    def __init__(self, plan: MergePlan) -> None:
        assert isinstance(plan.parameters, (TiesParameters, TrimParameters))
        density = plan.parameters.density
        self._space = plan.space
        self._selections = [RadixSelect(reference.kept_count(density, n)) if n else None
                            for n in representation_entries(plan)]  # fmt: skip

    def observe(self, stack: Stack, around: Circumstances) -> None:
        """Count one stack's entries."""
        for index, x in self._representations(stack, around):
            selection = self._selections[index]
            assert selection is not None
            selection.observe(x)

    def _representations(self, stack: Stack, around: Circumstances) -> Iterable[tuple[int, Tensor]]:
        if self._space is Space.KNOTS:
            return zip(stack.inputs, knots.represent(stack)[1], strict=True)
        if self._space is Space.CORE:
            return zip(stack.inputs, core.represent(stack).matrices(stack.ranks).float(), strict=True)
        return _tiles(stack, around)

    def advance(self) -> None:
        """End a round."""
        for selection in self._selections:
            if selection is not None:
                selection.advance()

    @property
    def values(self) -> tuple[float, ...]:
        """Per input of the recipe, after two rounds."""
        return tuple(0.0 if selection is None else selection.value for selection in self._selections)


def _tiles(stack: Stack, around: Circumstances) -> Iterator[tuple[int, Tensor]]:
    randomness = around.randomness(stack)
    for row, module in enumerate(stack.modules):
        shape = (module.out_features, module.in_features)
        for index, part in zip(stack.inputs, delta.module_inputs(stack, row, randomness), strict=True):
            for block in blocks(shape, around.device):
                yield index, reference.delta_tile(part.B[block], part.A)
